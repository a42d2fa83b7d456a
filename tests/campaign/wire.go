package main

import (
	"bufio"
	"encoding/json"
	"net"
	"sync"
)

// message is one line between an application process and the campaign. What an application believes is written, in one system call,
// before it acts on it: a SIGKILL in between loses nothing.
type message struct {
	Kind     string `json:"k"`
	Slot     string `json:"s,omitempty"`
	Run      int    `json:"r,omitempty"`
	Election string `json:"e,omitempty"`
	Token    uint64 `json:"t,omitempty"`
	Call     int64  `json:"c,omitempty"` // boot clock: when the request was sent
	At       int64  `json:"a,omitempty"` // boot clock: when its answer was there
	Until    int64  `json:"u,omitempty"` // boot clock: deadline
	ID       int64  `json:"i,omitempty"`
	OK       bool   `json:"o,omitempty"`
	Pos      int    `json:"n,omitempty"`
	Text     string `json:"x,omitempty"`
}

// Kinds of messages. The first part comes from applications.
const (
	kindHello   = "hello"
	kindBelief  = "belief"  // leads under Token until Until, since At; asked at Call
	kindEnd     = "end"     // does not believe it any more, since At, and is about to say so
	kindAppend  = "append"  // fenced write
	kindRead    = "read"    // of the fenced register
	kindReturn  = "return"  // operation ID had returned at At
	kindLoss    = "loss"    // Text (suspended or lost) was received at At, the deadline being Until
	kindSilent  = "silent"  // the deadline passed without a word; Text is what the elector said when asked
	kindVerify  = "verify"  // the elector called Token current (OK) or stale, asked at Call, answered at At
	kindLate    = "late"    // the application was woken up at At, later by Until than it wanted
	kindResign  = "resign"  // to the application: resign, to Text; from it: the answer, in OK and Text
	kindOutcome = "outcome" // to the application: of operation ID
)

// ledOn is the answer of an elector for whom the application leads as before.
const ledOn = "leads on"

// line is a connection that carries messages.
type line struct {
	conn net.Conn
	in   *bufio.Scanner
	mu   sync.Mutex
}

func newLine(c net.Conn) *line {
	in := bufio.NewScanner(c)
	in.Buffer(make([]byte, 4096), 64<<10)
	return &line{conn: c, in: in}
}

func (l *line) send(m message) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err = l.conn.Write(append(data, '\n'))
	return err
}

func (l *line) receive() (m message, ok bool) {
	for l.in.Scan() {
		if json.Unmarshal(l.in.Bytes(), &m) == nil {
			return m, true
		}
	}
	return m, false
}
