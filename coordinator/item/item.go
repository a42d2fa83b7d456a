// Package item is the vocabulary that the coordinator, its workers and its
// commit points share: what an item is, how an attempt at it ended, and the
// record that says how the item itself ended. It has no behaviour but the
// encoding of these things in headers and files, which it keeps readable for
// later versions.
package item

import (
	"crypto/sha256"
	"encoding/hex"
	"time"
)

// State is where an item is.
type State string

// The states. The last four are ends; an item has exactly one end.
const (
	Held       State = "held"       // taken from the broker, waits for a slot, its key, a rate or its next attempt
	Running    State = "running"    // at the worker
	Committing State = "committing" // its record is being created
	Publishing State = "publishing" // messages go out: to the next stage, back to the queue, to the dead letters
	Acking     State = "acking"     // the broker is being told
	Releasing  State = "releasing"  // being given back
	Done       State = "done"
	Dropped    State = "dropped"
	Dead       State = "dead"
	Cancelled  State = "cancelled"
)

// Ended says whether s is an end.
func (s State) Ended() bool { return s == Done || s == Dropped || s == Dead || s == Cancelled }

// Class is the kind of an attempt's failure.
type Class string

// The classes. Only the first three count as attempts.
const (
	Error    Class = "error"
	Timeout  Class = "timeout"
	Crash    Class = "crash"
	NotReady Class = "not_ready"
	Infra    Class = "infra"
	// Reasons of dead letters that are no failure of an attempt.
	Refused    Class = "refused"    // the worker said that a retry is useless
	Quarantine Class = "quarantine" // crashed too often
	Parked     Class = "parked"     // an earlier item of its key is dead
	Invalid    Class = "invalid"    // the message or its input cannot be read
)

// Counted says whether an attempt that failed like this counts.
func (c Class) Counted() bool { return c == Error || c == Timeout || c == Crash || c == Refused }

// Attempt is one failed attempt.
type Attempt struct {
	N       int       `json:"n"`
	Class   Class     `json:"class"`
	Reason  string    `json:"reason,omitempty"`
	Stderr  string    `json:"stderr,omitempty"` // its end
	Node    string    `json:"node,omitempty"`
	Alloc   string    `json:"alloc,omitempty"` // Nomad's, of the worker
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
}

// Task is one attempt at one item, as a worker gets it.
type Task struct {
	Attempt     string            `json:"attempt_id"` // unique for the attempt, fit for a file's name
	ID          string            `json:"id"`
	Stage       string            `json:"stage"`
	Key         string            `json:"key,omitempty"`
	N           int               `json:"attempt"` // counted from 1
	Max         int               `json:"max"`
	Fence       uint64            `json:"fence"`
	FirstSeen   time.Time         `json:"first_seen"`
	Deadline    time.Time         `json:"deadline"`
	ContentType string            `json:"content_type,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Input       *Reference        `json:"input,omitempty"` // where the payload is, when it does not travel in the message
	Body        []byte            `json:"-"`
	Path        string            `json:"-"` // the payload of Input, fetched and checked; "" where nobody did
}

// Reference is a payload that lies somewhere else.
type Reference struct {
	URL    string `json:"url"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
}

// Message is something to publish when an item is done.
type Message struct {
	Body        []byte            `json:"body,omitempty"`
	Input       *Reference        `json:"input,omitempty"` // instead of Body
	File        string            `json:"file,omitempty"`  // of the output; becomes Body or Input before the commit
	Queue       string            `json:"queue,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Key         string            `json:"key,omitempty"`
	Priority    int               `json:"priority,omitempty"`
	Delay       time.Duration     `json:"delay_ns,omitempty"`
}

// File is one committed output.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // of one that was uploaded
}

// Record says how an item ended. The first one that is created at the commit point is the item's end.
type Record struct {
	ID         string    `json:"id"`
	Stage      string    `json:"stage"`
	State      State     `json:"state"`
	Class      Class     `json:"class,omitempty"` // of a dead letter
	Attempt    string    `json:"attempt_id"`
	N          int       `json:"attempt"`
	Fence      uint64    `json:"fence"`
	Node       string    `json:"node,omitempty"`
	Ended      time.Time `json:"ended"`
	Reason     string    `json:"reason,omitempty"`
	Result     []byte    `json:"result,omitempty"`
	ResultType string    `json:"result_type,omitempty"`
	Output     string    `json:"output,omitempty"` // the folder of the files, or their address in an object store
	Files      []File    `json:"files,omitempty"`
	Next       []Message `json:"next,omitempty"`
	Attempts   []Attempt `json:"attempts,omitempty"` // that failed, of a dead item
	Group      string    `json:"group,omitempty"`    // that it is part of, where the stage gathers
}

// What fits into the 200 bytes of a message's id, with a stage and a number behind it, and into the 255 of a file's name.
const (
	maxShort = 110
	maxName  = 160
)

// Short returns id, or a name made of it where it is too long to be followed by something or has bytes that brokers do not carry.
func Short(id string) string {
	if len(id) > 0 && len(id) <= maxShort && plain(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "h/" + hex.EncodeToString(sum[:20])
}

func plain(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-', c == '_', c == '.', c == ':', c == '/', c == '+', c == '=', c == '@', c == '~':
		default:
			return false
		}
	}
	return true
}

// FileName returns a name for id that is one path element, different for different ids.
func FileName(id string) string {
	const hexDigits = "0123456789ABCDEF"
	out := make([]byte, 0, len(id))
	for i := range len(id) {
		c := id[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '=', c == '@', c == '~', c == '+', c == ':', c == '.' && i > 0:
			out = append(out, c)
		default:
			out = append(out, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	if len(out) == 0 || len(out) > maxName {
		sum := sha256.Sum256([]byte(id))
		return "%h" + hex.EncodeToString(sum[:20])
	}
	return string(out)
}
