package electorclient

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// event is one of the server-sent events of an election.
type event struct {
	Type    string  `json:"-"`
	Role    string  `json:"role"`
	Reason  string  `json:"reason"`
	LeaseMS int64   `json:"lease_ms"` // of the first one, "state" or "grant"
	Leader  *Leader `json:"leader"`
}

var errStreamEnded = errors.New("the elector closed the stream")

// readEvents hands the events of a stream to f until f returns false (nil) or the stream ends (an error).
func readEvents(r io.Reader, f func(event) bool) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // an election's value is at most 64 KiB
	var name, data string
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			if name == "" {
				continue
			}
			ev := event{Type: name}
			if err := json.Unmarshal([]byte(data), &ev); err != nil {
				return fmt.Errorf("event %q: %w", name, err)
			}
			if !f(ev) {
				return nil
			}
			name, data = "", ""
			continue
		}
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch key {
		case "event":
			name = value
		case "data":
			data += value
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errStreamEnded
}
