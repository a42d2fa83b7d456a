package coordinator

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
)

// Line is one item of a bulk publication.
type Line struct {
	ID          string            `json:"id,omitempty"` // the idempotency key; a random one where it is missing
	Body        *string           `json:"body,omitempty"`
	Base64      []byte            `json:"body_base64,omitempty"`
	Input       *item.Reference   `json:"input,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Key         string            `json:"key,omitempty"`
	Priority    int               `json:"priority,omitempty"`
	Delay       string            `json:"delay,omitempty"`
}

// ParseLines reads NDJSON.
func ParseLines(data []byte) ([]Line, error) {
	var lines []Line
	scanner := bufio.NewScanner(bytes.NewReader(data))
	scanner.Buffer(make([]byte, 0, 64<<10), maxItem*2)
	for n := 1; scanner.Scan(); n++ {
		if len(bytes.TrimSpace(scanner.Bytes())) == 0 {
			continue
		}
		var l Line
		dec := json.NewDecoder(bytes.NewReader(scanner.Bytes()))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&l); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		lines = append(lines, l)
	}
	return lines, scanner.Err()
}

// out makes a message of a line.
func (l Line) out() (source.Out, error) {
	if l.ID == "" {
		l.ID = source.NewID()
	}
	given := 0
	for _, is := range []bool{l.Body != nil, l.Base64 != nil, l.Input != nil} {
		if is {
			given++
		}
	}
	if given > 1 {
		return source.Out{}, fmt.Errorf("item %s has %d of body, body_base64 and input", l.ID, given)
	}
	body := l.Base64
	if l.Body != nil {
		body = []byte(*l.Body)
	}
	var delay time.Duration
	if l.Delay != "" {
		d, err := time.ParseDuration(l.Delay)
		if err != nil || d < 0 {
			return source.Out{}, fmt.Errorf("item %s: delay %q is not a duration like 30s", l.ID, l.Delay)
		}
		delay = d
	}
	for name := range l.Headers {
		if strings.HasPrefix(strings.ToLower(name), "coordinator-") {
			return source.Out{}, fmt.Errorf("item %s: header %s is the coordinator's own", l.ID, name)
		}
	}
	env := item.Envelope{ID: l.ID, ContentType: l.ContentType, Headers: l.Headers, Input: l.Input}
	out := source.Out{ID: l.ID, Body: body, Headers: env.Seal(l.ID), Key: l.Key, Class: l.Priority, Delay: delay}
	if strings.Contains(l.ID, "~") {
		return out, fmt.Errorf("item id %q: ~ is used for replays", l.ID)
	}
	return out, (source.Options{Classes: source.MaxClasses}).Check(out)
}

// put serves POST /v1/queues/{queue}/items: one item as it is, or many as NDJSON.
func (a *handlers) put(w http.ResponseWriter, r *http.Request) {
	wait, ok := waitOf(w, r)
	if !ok {
		return
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	limit := int64(maxItem)
	if media == "application/x-ndjson" {
		limit = maxBulk
	}
	body, ok := readBody(w, r, limit)
	if !ok {
		return
	}
	var lines []Line
	var err error
	if media == "application/x-ndjson" {
		lines, err = ParseLines(body)
	} else {
		lines, err = lineOf(r, body)
	}
	outs := make([]source.Out, len(lines))
	for i := range lines {
		if err == nil {
			outs[i], err = lines[i].out()
		}
	}
	switch {
	case err != nil:
		refuse(w, http.StatusBadRequest, "bad_request", err.Error())
	case len(outs) == 0:
		refuse(w, http.StatusBadRequest, "bad_request", "no item")
	case wait > 0 && len(outs) > 1:
		refuse(w, http.StatusBadRequest, "bad_request", "wait is for one item")
	default:
		a.publish(w, r, outs, wait)
	}
}

// lineOf reads one item from a request: its body, and what the headers say.
func lineOf(r *http.Request, body []byte) ([]Line, error) {
	l := Line{ID: r.Header.Get("Idempotency-Key"), Base64: body, ContentType: r.Header.Get("Content-Type"), Key: r.Header.Get("Retinue-Key"), Delay: r.Header.Get("Retinue-Delay"),
		Headers: map[string]string{}}
	if text := r.Header.Get("Retinue-Priority"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("Retinue-Priority %q is not a number", text)
		}
		l.Priority = n
	}
	for name, values := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "ce-") || strings.HasPrefix(lower, "item-") {
			l.Headers[name] = strings.Join(values, ", ")
		}
	}
	return []Line{l}, nil
}

func (a *handlers) publish(w http.ResponseWriter, r *http.Request, outs []source.Out, wait time.Duration) {
	answer := Put{Accepted: len(outs), IDs: make([]string, len(outs))}
	for i, out := range outs {
		answer.IDs[i] = out.ID
	}
	if len(outs) == 1 && r.Header.Get("Idempotency-Key") != "" { // the broker's memory may be shorter than the commit point's
		rec, err := a.c.find(r.Context(), outs[0].ID)
		switch {
		case err != nil:
			unavailable(w, err)
			return
		case rec != nil && wait > 0:
			writeJSON(w, http.StatusOK, itemOf(*rec))
			return
		case rec != nil:
			answer.Repeated = true
			writeJSON(w, http.StatusOK, answer)
			return
		}
	}
	if err := a.c.publish(r.Context(), a.c.cfg.Queue, outs); err != nil {
		switch {
		case errors.Is(err, source.ErrTooLarge):
			refuse(w, http.StatusRequestEntityTooLarge, "too_large", err.Error())
		case errors.Is(err, source.ErrInvalid):
			refuse(w, http.StatusBadRequest, "bad_request", err.Error())
		default:
			unavailable(w, err)
		}
		return
	}
	if wait == 0 {
		writeJSON(w, http.StatusAccepted, answer)
		return
	}
	it, found, err := a.c.await(r.Context(), outs[0].ID, wait)
	switch {
	case err != nil:
		unavailable(w, err)
	case !found || !it.State.Ended():
		it.ID = outs[0].ID
		if it.State == "" {
			it.State = "queued"
		}
		writeJSON(w, http.StatusAccepted, it)
	default:
		writeJSON(w, http.StatusOK, it)
	}
}

func isText(data []byte) bool { return utf8.Valid(data) && !bytes.ContainsRune(data, 0) }
