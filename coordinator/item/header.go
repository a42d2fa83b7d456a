package item

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Headers that a coordinator writes into messages. Producers may set ContentType and the three of Input themselves.
const (
	HeaderItem        = "Coordinator-Item"    // the item's id, where the message has one of its own
	HeaderHistory     = "Coordinator-History" // failed attempts, base64 of JSON
	HeaderReplay      = "Coordinator-Replay"  // how often it came back from the dead letters
	HeaderFence       = "Coordinator-Fence"   // the highest fence handed out
	HeaderDeadClass   = "Coordinator-Dead-Class"
	HeaderDeadReason  = "Coordinator-Dead-Reason"
	HeaderQueue       = "Coordinator-Queue" // where a dead letter comes from
	HeaderContentType = "Content-Type"
	HeaderInput       = "Input-Url"
	HeaderInputSize   = "Input-Size"
	HeaderInputSum    = "Input-Sha256"
)

// Bounds of what travels in headers: brokers take 16 KiB in all.
const (
	maxHistory    = 9 << 10
	maxReason     = 300
	keptStderr    = 1 << 10 // of the last attempts; earlier ones lose theirs first
	maxHeaderText = 900
)

// Envelope is what a message's headers say about the item.
type Envelope struct {
	ID          string
	Replay      int
	Fence       uint64
	History     []Attempt
	ContentType string
	Input       *Reference
	Headers     map[string]string // of the producer; nil for none
	DeadClass   Class
	DeadReason  string
	Queue       string
}

// Open reads an envelope. What cannot be read is an error, and what could is returned beside it.
func Open(id string, headers map[string]string) (Envelope, error) {
	e := Envelope{ID: id}
	var bad error
	fail := func(name string, err error) {
		if bad == nil && err != nil {
			bad = fmt.Errorf("header %s: %w", name, err)
		}
	}
	size, sum := "", ""
	for name, value := range headers {
		switch strings.ToLower(name) {
		case "coordinator-item":
			e.ID = value
		case "coordinator-history":
			history, err := decodeHistory(value)
			fail(name, err)
			e.History = history
		case "coordinator-replay":
			n, err := strconv.ParseUint(value, 10, 16)
			fail(name, err)
			e.Replay = int(n)
		case "coordinator-fence":
			n, err := strconv.ParseUint(value, 10, 64)
			fail(name, err)
			e.Fence = n
		case "coordinator-dead-class":
			e.DeadClass = Class(value)
		case "coordinator-dead-reason":
			e.DeadReason = value
		case "coordinator-queue":
			e.Queue = value
		case "content-type":
			e.ContentType = value
		case "input-url":
			e.Input = &Reference{URL: value}
		case "input-size":
			size = value
		case "input-sha256":
			sum = value
		default:
			if e.Headers == nil {
				e.Headers = make(map[string]string, len(headers))
			}
			e.Headers[name] = value
		}
	}
	if e.ID == "" {
		fail(HeaderItem, fmt.Errorf("is empty"))
		e.ID = id
	}
	if e.Input != nil {
		e.Input.SHA256 = strings.ToLower(sum)
		if size != "" {
			n, err := strconv.ParseInt(size, 10, 64)
			if err == nil && n < 0 {
				err = fmt.Errorf("%d is negative", n)
			}
			fail(HeaderInputSize, err)
			e.Input.Size = max(n, 0)
		}
	}
	return e, bad
}

// Seal writes an envelope as headers of a message whose own id is messageID.
func (e Envelope) Seal(messageID string) map[string]string {
	h := maps.Clone(e.Headers)
	if h == nil {
		h = map[string]string{}
	}
	set := func(name, value string) {
		if value != "" {
			h[name] = Printable(value, maxHeaderText)
		}
	}
	if e.ID != messageID {
		h[HeaderItem] = e.ID
	}
	if len(e.History) > 0 {
		h[HeaderHistory] = encodeHistory(e.History)
	}
	if e.Replay > 0 {
		h[HeaderReplay] = strconv.Itoa(e.Replay)
	}
	if e.Fence > 0 {
		h[HeaderFence] = strconv.FormatUint(e.Fence, 10)
	}
	set(HeaderDeadClass, string(e.DeadClass))
	set(HeaderDeadReason, e.DeadReason)
	set(HeaderQueue, e.Queue)
	set(HeaderContentType, e.ContentType)
	if e.Input != nil {
		h[HeaderInput] = e.Input.URL
		h[HeaderInputSize] = strconv.FormatInt(e.Input.Size, 10)
		set(HeaderInputSum, e.Input.SHA256)
	}
	return h
}

// encodeHistory keeps the newest attempts whole as long as there is room, then without stderr, and always the last one.
func encodeHistory(history []Attempt) string {
	kept := make([]Attempt, len(history))
	for i, a := range history {
		a.Reason = Printable(a.Reason, maxReason)
		a.Stderr = Tail(a.Stderr, keptStderr)
		kept[i] = a
	}
	for i := 0; ; i++ {
		data, err := json.Marshal(kept)
		if err == nil && len(data) <= maxHistory*3/4 {
			return base64.RawURLEncoding.EncodeToString(data)
		}
		if i < len(kept)-1 {
			kept[i].Stderr = ""
			continue
		}
		if len(kept) == 1 {
			kept[0].Stderr = ""
		} else {
			kept = kept[1:]
		}
		i--
	}
}

func decodeHistory(s string) ([]Attempt, error) {
	data, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, err
	}
	var history []Attempt
	if err := json.Unmarshal(data, &history); err != nil {
		return nil, err
	}
	return history, nil
}

// Printable makes one line of text that every broker carries in a header.
func Printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if len(s) > limit {
		s = strings.TrimSpace(strings.ToValidUTF8(s[:limit], ""))
	}
	return s
}

// Tail returns the last limit bytes of s, whole characters.
func Tail(s string, limit int) string {
	if len(s) > limit {
		s = s[len(s)-limit:]
	}
	return strings.ToValidUTF8(s, "")
}
