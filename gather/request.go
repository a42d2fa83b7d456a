package gather

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"retinue/internal/clock"
)

// request is a client's request as the root understands it.
type request struct {
	id       string
	method   string
	path     string
	rawPath  string // when it differs from the encoding of path
	query    string
	header   http.Header // for leaves
	body     []byte
	start    clock.Instant
	deadline Deadline
	trace    Trace
	policy   Policy
	class    *Quantile
	shards   []int // that it needs
	explain  bool
	claim    claim  // on memory
	applied  string // Preference-Applied
}

// refusal is an error that the client gets, with the status it has.
type refusal struct {
	status int
	cause  string
	detail string
}

func (r *refusal) Error() string { return r.detail }

func badRequest(err error) *refusal {
	return &refusal{http.StatusBadRequest, "bad_request", err.Error()}
}

// parseRequest reads the client's headers. The deadline and the shards are set later.
func (root *Root) parseRequest(r *http.Request, now clock.Instant) (*request, time.Duration, *refusal) {
	req := &request{id: requestID(r.Header.Get("Retinue-Request-Id")), method: r.Method, path: r.URL.Path, rawPath: r.URL.RawPath, query: r.URL.RawQuery,
		start: now, trace: ParseTrace(r.Header.Get("Traceparent")), policy: root.cfg.Policy, explain: r.Header.Get("Retinue-Explain") == "1"}
	total := root.cfg.Deadline
	if s := r.Header.Get("Retinue-Deadline-Ms"); s != "" {
		d, err := ParseDeadline(s)
		if err != nil {
			return req, 0, badRequest(err)
		}
		total = min(d, root.cfg.DeadlineMax)
	}
	hop, err := ParseHop(r.Header.Get("Retinue-Hop"))
	if err != nil {
		return req, 0, badRequest(err)
	}
	if hop >= root.cfg.MaxHops {
		return req, 0, &refusal{http.StatusLoopDetected, "loop", fmt.Sprintf("the request has passed %d roots; a root is probably a leaf of itself", hop)}
	}
	tightened, ok, err := ParsePrefer(r.Header.Values("Prefer"))
	if err != nil {
		return req, 0, badRequest(err)
	}
	if ok {
		req.policy = req.policy.Tighten(tightened)
		req.applied = "retinue-partial=" + FormatFraction(tightened)
	}
	req.header = make(http.Header, len(root.forwarded)+8)
	for _, name := range root.forwarded {
		if values := r.Header[name]; len(values) > 0 {
			req.header[name] = values
		}
	}
	req.header["Retinue-Request-Id"] = []string{req.id}
	req.header["Retinue-Hop"] = []string{strconv.Itoa(hop + 1)}
	if req.header["User-Agent"] == nil {
		req.header["User-Agent"] = []string{""} // not Go's own
	}
	req.class = root.hedger.class(classOf(r.Method, r.URL.Path))
	return req, total, nil
}

// requestID takes the client's identifier when it is one, or makes one.
func requestID(s string) string {
	ok := s != "" && len(s) <= 64
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
	}
	if ok {
		return s
	}
	return fmt.Sprintf("%016x", rand.Uint64())
}

// ParseHop reads Retinue-Hop: how many roots a request has passed.
func ParseHop(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("Retinue-Hop %q is not a count", s)
	}
	return n, nil
}

// ParsePrefer reads the coverage that a client demands: Prefer: retinue-partial=0.95, or fail for a whole answer.
func ParsePrefer(values []string) (coverage float64, ok bool, err error) {
	for _, value := range values {
		for _, pref := range strings.Split(value, ",") {
			pref, _, _ = strings.Cut(pref, ";")
			name, arg, _ := strings.Cut(pref, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "retinue-partial") {
				continue
			}
			arg = strings.Trim(strings.TrimSpace(arg), `"`)
			f := 1.0
			if arg != string(PolicyFail) {
				if f, err = ParseFraction(arg); err != nil {
					return 0, false, fmt.Errorf("preference retinue-partial: %w", err)
				}
			}
			coverage, ok = max(coverage, f), true
		}
	}
	return coverage, ok, nil
}

// readBody keeps the request's body, so that it can be sent many times.
func (root *Root) readBody(ctx context.Context, r *http.Request, req *request, held *hold) *refusal {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil
	}
	body, err := readBounded(ctx, r.Body, r.ContentLength, root.cfg.MaxRequest, held)
	switch {
	case err == nil:
		req.body = body
		return nil
	case r.Context().Err() != nil:
		return &refusal{status: statusClientGone, cause: "client_gone", detail: "the client went away"}
	case ctx.Err() != nil:
		return &refusal{http.StatusGatewayTimeout, string(Timeout), "the body took longer than the deadline"}
	case int64(len(body)) > root.cfg.MaxRequest || r.ContentLength > root.cfg.MaxRequest:
		return &refusal{http.StatusRequestEntityTooLarge, "too_large", err.Error()}
	}
	return badRequest(fmt.Errorf("read the body: %w", err))
}

func bodyReader(body []byte) (io.ReadCloser, func() (io.ReadCloser, error)) {
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	rc, _ := open()
	return rc, open
}

// RequestLine is the request as the merge and the route container get it.
type RequestLine struct {
	ID         string            `json:"id"`
	Root       string            `json:"root"`
	Method     string            `json:"method"`
	Path       string            `json:"path"`
	Query      string            `json:"query"`
	Headers    map[string]string `json:"headers"`
	DeadlineMS int64             `json:"deadline_ms"`
	Shards     int               `json:"shards"`
	Encoding   string            `json:"encoding,omitempty"`
	Body       json.RawMessage   `json:"body,omitempty"`
}

func (root *Root) requestLine(req *request) RequestLine {
	line := RequestLine{ID: req.id, Root: root.cfg.Name, Method: req.method, Path: req.path, Query: req.query, Headers: flat(req.header),
		DeadlineMS: req.deadline.Total.Milliseconds(), Shards: len(req.shards)}
	if len(req.body) > 0 {
		line.Body, line.Encoding = encodeBody(req.header.Get("Content-Type"), req.body)
	}
	return line
}

// flat makes single strings of headers, without what is the root's own.
func flat(h http.Header) map[string]string {
	out := make(map[string]string, len(h))
	for name, values := range h {
		if !ownHeader(name) && len(values) > 0 && values[0] != "" {
			out[name] = strings.Join(values, ", ")
		}
	}
	return out
}

// encodeBody puts a body into JSON: JSON as it is, text as a string, the rest as base64.
func encodeBody(contentType string, body []byte) (encoded json.RawMessage, encoding string) {
	if isJSON(contentType) {
		var b bytes.Buffer
		if json.Compact(&b, body) == nil && b.Len() > 0 {
			return b.Bytes(), ""
		}
	}
	if utf8.Valid(body) {
		text, _ := json.Marshal(string(body))
		return text, "text"
	}
	binary, _ := json.Marshal(body)
	return binary, "base64"
}
