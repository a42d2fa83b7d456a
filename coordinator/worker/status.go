package worker

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"retinue/coordinator/item"
)

// Bounds of what a worker may say.
const (
	maxStatus = 64 << 10
	maxReason = 1000
	// MaxResult bounds a result, MaxInline a message's body; what is larger travels as a file.
	MaxResult = 256 << 10
	MaxInline = 256 << 10
)

// status is a verdict as workers write it: the file status, and a line of a batch.
type status struct {
	Verdict    string          `json:"verdict"`
	Reason     string          `json:"reason"`
	RetryAfter json.RawMessage `json:"retry_after"`
}

// ParseStatus reads the file status. It may say more than a line: what a command's end looked like from beside it (see Claims).
func ParseStatus(data []byte) (Verdict, error) {
	var s struct {
		status
		Stderr string `json:"stderr"`
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return Verdict{}, fmt.Errorf("status: %w", err)
	}
	crashed := Kind(s.Verdict) == Crashed
	if crashed {
		s.Verdict = string(Retry)
	}
	v, err := s.read()
	if crashed {
		v.Kind = Crashed
	}
	v.Stderr = item.Tail(s.Stderr, keptStderr)
	return v, err
}

func (s status) read() (Verdict, error) {
	v := Verdict{Kind: Kind(s.Verdict), Reason: item.Printable(s.Reason, maxReason)}
	switch v.Kind {
	case Ack, Retry, Drop, Dead, NotReady:
	case "":
		v.Kind = Ack
	default:
		return Verdict{}, fmt.Errorf("status: verdict %q is none of ack, retry, drop, dead, not_ready", item.Printable(s.Verdict, 40))
	}
	var err error
	v.RetryAfter, err = parseRetryAfter(s.RetryAfter)
	return v, err
}

// parseRetryAfter reads "30s" or a number of seconds.
func parseRetryAfter(raw json.RawMessage) (time.Duration, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return 0, nil
	}
	d, ok := parseDelay(strings.Trim(string(raw), `"`))
	if !ok {
		return 0, fmt.Errorf("status: retry_after %.40s is neither like \"30s\" nor a number of seconds", raw)
	}
	return min(d, maxRetryAfter), nil
}

// parseDelay reads a duration like 30s, or a number of seconds.
func parseDelay(text string) (d time.Duration, ok bool) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		return time.Duration(seconds * float64(time.Second)), seconds >= 0 && seconds <= math.MaxInt64/float64(2*time.Second)
	}
	d, err := time.ParseDuration(text)
	return d, err == nil && d >= 0
}

const maxRetryAfter = 24 * time.Hour

// next is a message for the next stage as workers write it.
type next struct {
	Body        *string           `json:"body"`
	Base64      []byte            `json:"body_base64"`
	File        string            `json:"file"`
	ContentType string            `json:"content_type"`
	Headers     map[string]string `json:"headers"`
	Key         string            `json:"key"`
	Priority    int               `json:"priority"`
	Delay       json.RawMessage   `json:"delay"`
	Queue       string            `json:"queue"`
}

// ParseNext reads a message for the next stage.
func ParseNext(data []byte) (item.Message, error) {
	var n next
	if err := json.Unmarshal(data, &n); err != nil {
		return item.Message{}, fmt.Errorf("message: %w", err)
	}
	given := 0
	for _, is := range []bool{n.Body != nil, n.Base64 != nil, n.File != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return item.Message{}, fmt.Errorf("message: it has %d of body, body_base64 and file, want 1", given)
	}
	delay := time.Duration(0)
	if len(n.Delay) > 0 && string(n.Delay) != "null" {
		var ok bool
		if delay, ok = parseDelay(strings.Trim(string(n.Delay), `"`)); !ok {
			return item.Message{}, fmt.Errorf("message: delay %.40s is neither like \"30s\" nor a number of seconds", n.Delay)
		}
	}
	switch {
	case n.Priority < 0 || n.Priority > 9:
		return item.Message{}, fmt.Errorf("message: priority %d is not between 0 and 9", n.Priority)
	}
	m := item.Message{Body: n.Base64, File: n.File, ContentType: n.ContentType, Headers: n.Headers, Key: n.Key, Priority: n.Priority, Delay: delay, Queue: n.Queue}
	if n.Body != nil {
		m.Body = []byte(*n.Body)
	}
	return m, nil
}
