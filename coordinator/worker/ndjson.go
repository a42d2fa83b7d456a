package worker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf8"

	"retinue/coordinator/item"
)

// inputLine is one item of a batch.
type inputLine struct {
	ID          string            `json:"id"`
	Attempt     int               `json:"attempt"`
	Max         int               `json:"max"`
	Fence       uint64            `json:"fence"`
	Key         string            `json:"key,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Body        *string           `json:"body,omitempty"`
	Base64      []byte            `json:"body_base64,omitempty"`
	Input       *item.Reference   `json:"input,omitempty"` // instead of a body
}

// encodeBatch writes the items of a batch, one a line.
func encodeBatch(tasks []*item.Task) []byte {
	size := 0
	for _, t := range tasks {
		size += 128 + len(t.ID) + len(t.Body) + len(t.Body)/8
	}
	buf := bytes.NewBuffer(make([]byte, 0, size)) // most have room in it: one that grows is cleared and copied several times
	enc := json.NewEncoder(buf)
	for _, t := range tasks {
		line := inputLine{ID: t.ID, Attempt: t.N, Max: t.Max, Fence: t.Fence, Key: t.Key, ContentType: t.ContentType, Headers: t.Headers}
		switch {
		case t.Path != "":
			line.Input = &item.Reference{URL: "file://" + t.Path, Size: t.Input.Size, SHA256: t.Input.SHA256}
		case t.Input != nil:
			line.Input = t.Input
		case utf8.Valid(t.Body):
			body := string(t.Body)
			line.Body = &body
		default:
			line.Base64 = t.Body
		}
		_ = enc.Encode(line) // strings, numbers and bytes always encode
	}
	return buf.Bytes()
}

// verdictLine is what a worker says of one item.
type verdictLine struct {
	ID string `json:"id"`
	status
	Output json.RawMessage   `json:"output"`
	Next   []json.RawMessage `json:"next"`
}

const maxLine = 4 << 20

// ParseVerdicts reads the verdicts that a batch's worker wrote, by item. What is not a verdict is an error, and the verdicts
// before it count. An item that is named twice keeps its first verdict.
func ParseVerdicts(r io.Reader) (map[string]Verdict, error) {
	verdicts := map[string]Verdict{}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for n := 1; lines.Scan(); n++ {
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		id, v, err := parseVerdict(text)
		if err != nil {
			return verdicts, fmt.Errorf("line %d: %w", n, err)
		}
		if _, ok := verdicts[id]; !ok {
			verdicts[id] = v
		}
	}
	return verdicts, lines.Err()
}

func parseVerdict(text []byte) (string, Verdict, error) {
	var line verdictLine
	if err := json.Unmarshal(text, &line); err != nil {
		return "", Verdict{}, err
	}
	if line.ID == "" {
		return "", Verdict{}, fmt.Errorf("no id")
	}
	v, err := line.read()
	if err != nil {
		return line.ID, v, err
	}
	o := &Output{}
	if len(line.Output) > 0 && string(line.Output) != "null" {
		if len(line.Output) > MaxResult {
			return line.ID, v, fmt.Errorf("output of %d bytes, at most %d", len(line.Output), MaxResult)
		}
		o.Result, o.ResultType = bytes.Clone(line.Output), "application/json"
	}
	for _, raw := range line.Next {
		msg, err := ParseNext(raw)
		if err == nil && msg.File != "" {
			err = fmt.Errorf("message: a batch has no files")
		}
		if err != nil {
			return line.ID, v, err
		}
		o.Next = append(o.Next, msg)
	}
	if v.Kind == Ack {
		v.Output = o
	}
	return line.ID, v, nil
}

// spread gives every task its verdict; rest is for those that have none.
func spread(tasks []*item.Task, said map[string]Verdict, rest Verdict, to bool) []Verdict {
	out := make([]Verdict, len(tasks))
	missing := 0
	for i, t := range tasks {
		v, ok := said[t.ID]
		if !ok {
			v = rest
			missing++
		} else if v.Kind == Ack && to && len(v.Output.Next) == 0 && v.Output.Result != nil {
			v.Output.Next = []item.Message{{Body: v.Output.Result, ContentType: v.Output.ResultType}}
		}
		out[i] = v
	}
	for i, t := range tasks {
		if _, ok := said[t.ID]; !ok {
			out[i].Whole = missing > 1
		}
	}
	return out
}
