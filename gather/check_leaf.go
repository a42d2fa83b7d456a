package gather

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"
)

// leafKit asks a leaf what a root would ask it.
type leafKit struct {
	findings
	client *http.Client
	url    string
	sample []byte // its answer
	kind   string // Content-Type
}

// CheckLeaf tries the leaf contract on the container at url, a request that it answers. It returns the answer too, as a sample
// for the merge.
func CheckLeaf(ctx context.Context, url string) (list []Finding, sample []byte, contentType string) {
	k := &leafKit{findings: findings{subject: "leaf"}, url: url, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	defer k.client.CloseIdleConnections()
	if !k.answers(ctx) {
		return k.list, nil, ""
	}
	k.twice(ctx)
	k.head(ctx)
	k.deadline(ctx)
	k.parallel(ctx)
	k.abort(ctx)
	return k.list, k.sample, k.kind
}

type leafAnswer struct {
	status int
	header http.Header
	body   []byte
	took   time.Duration
	reused bool
}

func (k *leafKit) ask(ctx context.Context, method string, headers ...string) (a leafAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { a.reused = info.Reused }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, k.url, nil)
	if err != nil {
		return a, err
	}
	req.Header = http.Header{"Retinue-Shard": {"0/2"}, "Retinue-Request-Id": {"check"}, "Retinue-Deadline-Ms": {"4000"}, "Retinue-Hop": {"1"}, "Retinue-Hedge": {"0"},
		"Traceparent": {ParseTrace("").Span()}}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	start := time.Now()
	resp, err := k.client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	a.status, a.header, a.took = resp.StatusCode, resp.Header, time.Since(start)
	return a, err
}

func isAnswer(status int) bool {
	return status >= 200 && status < 300 && status != http.StatusPartialContent
}

func (k *leafKit) answers(ctx context.Context) bool {
	a, err := k.ask(ctx, http.MethodGet)
	if err != nil {
		k.add("answers", CheckFail, err.Error(), "is the leaf listening there? --leaf takes the URL of a request that it answers, with path and query")
		return false
	}
	k.want(isAnswer(a.status), "answers", fmt.Sprintf("status %d after %s, %d bytes", a.status, a.took.Round(time.Millisecond), len(a.body)),
		"a leaf answers 200 with its part, or 204 when its shard has nothing; 206 and 3xx are failures of the shard")
	if !isAnswer(a.status) {
		return false
	}
	k.sample, k.kind = a.body, a.header.Get("Content-Type")
	_, err = ParseCoverage(a.header.Get("Retinue-Coverage"))
	k.want(err == nil, "coverage header", "Retinue-Coverage "+fmt.Sprintf("%q", a.header.Get("Retinue-Coverage")), "send it only when the answer is a part of the shard's data, as a number between 0 and 1")
	limit := 8 << 20
	k.want(len(a.body) <= limit, "size", fmt.Sprintf("%d bytes", len(a.body)), "a root takes 8 MiB of one leaf by default: answer less, or raise --limit-leaf")
	if values, err := jsonValues(a.body); err == nil && len(values) > 0 && !isJSON(k.kind) && !strings.Contains(k.kind, "ndjson") {
		k.add("content type", CheckInfo, fmt.Sprintf("the body is JSON, Content-Type is %q", k.kind), "with Content-Type: application/json a merge container gets it as JSON, not as a string")
	}
	return true
}

func (k *leafKit) twice(ctx context.Context) {
	a, err := k.ask(ctx, http.MethodGet, "Retinue-Hedge", "1")
	if err != nil || !isAnswer(a.status) {
		k.add("asked twice", CheckFail, fmt.Sprint(a.status, " ", err), "a hedge or a retry asks a second time: a leaf must bear that")
		return
	}
	if sameBody(a.body, k.sample) {
		k.add("asked twice", CheckPass, "the same answer", "")
	} else {
		k.add("asked twice", CheckInfo, "another answer: "+brief(a.body), "with hedging, whichever copy is faster counts; should they be alike?")
	}
	if a.reused {
		k.add("keep-alive", CheckPass, "the connection was used again", "")
	} else {
		k.add("keep-alive", CheckInfo, "the leaf closes its connections", "each call costs a new connection: serve HTTP/1.1 with Content-Length or chunked bodies")
	}
}

func (k *leafKit) head(ctx context.Context) {
	a, err := k.ask(ctx, http.MethodHead)
	switch {
	case err != nil:
		k.add("HEAD", CheckFail, err.Error(), "a HEAD request is answered without a body, or refused with 405")
	case a.status == http.StatusMethodNotAllowed || a.status == http.StatusNotImplemented:
		k.add("HEAD", CheckInfo, fmt.Sprintf("refused with %d", a.status), "a client's HEAD will not work")
	default:
		k.want(a.status < 500 && len(a.body) == 0, "HEAD", fmt.Sprintf("status %d", a.status), "a HEAD request is answered without a body, or refused with 405")
	}
}

func (k *leafKit) deadline(ctx context.Context) {
	a, err := k.ask(ctx, http.MethodGet, "Retinue-Deadline-Ms", "1")
	const enough = time.Second
	detail := fmt.Sprintf("with 1 ms left: status %d after %s", a.status, a.took.Round(time.Millisecond))
	if err != nil {
		detail = err.Error()
	}
	k.want(err == nil && a.took < enough, "deadline", detail, "when the time of Retinue-Deadline-Ms is over nobody waits for the answer: give up, with 503 or what there is")
}

func (k *leafKit) parallel(ctx context.Context) {
	const n = 16
	bad := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if a, err := k.ask(ctx, http.MethodGet); err != nil {
				bad[i] = err.Error()
			} else if !isAnswer(a.status) {
				bad[i] = fmt.Sprint("status ", a.status)
			}
		})
	}
	wg.Wait()
	failed, why := 0, ""
	for _, s := range bad {
		if s != "" {
			failed++
			why = ": " + s
		}
	}
	k.want(failed == 0, "in parallel", fmt.Sprintf("%d of %d requests at once failed%s", failed, n, why), "a root sends many requests at once; answer 503 with Retry-After when it is too much")
}

// abort goes away in the middle of requests. That a leaf stops working then cannot be seen from here; that it works on can.
func (k *leafKit) abort(ctx context.Context) {
	for range 20 {
		gone, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Millisecond, cancel)
		_, _ = k.ask(gone, http.MethodGet) // whether it was faster does not matter
		cancel()
	}
	a, err := k.ask(ctx, http.MethodGet)
	detail := fmt.Sprintf("after 20 clients that went away: status %d after %s", a.status, a.took.Round(time.Millisecond))
	if err != nil {
		detail = err.Error()
	}
	k.want(err == nil && isAnswer(a.status), "cancellation", detail, "the root closes the connection of what it does not need: that must not hurt other requests")
}
