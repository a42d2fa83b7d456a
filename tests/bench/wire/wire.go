// Package wire connects the processes of a benchmark with the program that
// runs it: lines of JSON on a Unix socket, events one way and commands the
// other. It promises that a process whose runner is gone learns of it (Commands
// is closed), so that nothing is left behind, and that all times are of one
// clock of the machine, so that those of different processes can be compared.
package wire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The environment of a process that reports to a runner.
const (
	EnvSocket = "RETINUE_BENCH_SOCKET"
	EnvName   = "RETINUE_BENCH_NAME"
)

// Names of events.
const (
	Hello       = "hello"       // the process runs
	Campaigning = "campaigning" // it is about to ask for leadership
	Elected     = "elected"     // the application knows that it leads
	Resigning   = "resigning"   // it stopped acting, and gives leadership back from At on
	Released    = "released"    // it was told that leadership is given back
	Failed      = "failed"      // Text says why
)

// Names of commands.
const (
	Campaign = "campaign"
	Resign   = "resign"
)

// Event is what a process reports.
type Event struct {
	From     string `json:"from"`
	PID      int    `json:"pid"`
	Name     string `json:"name"`
	At       int64  `json:"at"` // nanoseconds of the machine's monotonic clock
	Election string `json:"election,omitempty"`
	Token    uint64 `json:"token,omitempty"`
	Index    uint64 `json:"index,omitempty"`
	Text     string `json:"text,omitempty"`
}

// Command is what a process is told.
type Command struct {
	Name string `json:"name"`
	To   string `json:"to,omitempty"`
}

// Now reads the clock that all processes of the machine share.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // every Linux has it
	}
	return ts.Nano()
}

// Link is a process's end of the connection.
type Link struct {
	name     string
	commands chan Command

	mu   sync.Mutex
	conn net.Conn
	out  *json.Encoder
}

// Dial connects to the runner that the environment names.
func Dial() (*Link, error) {
	conn, err := net.Dial("unix", os.Getenv(EnvSocket))
	if err != nil {
		return nil, fmt.Errorf("reach the benchmark: %w", err)
	}
	l := &Link{name: os.Getenv(EnvName), conn: conn, out: json.NewEncoder(conn), commands: make(chan Command)}
	go func() {
		defer close(l.commands)
		for in := json.NewDecoder(bufio.NewReader(conn)); ; {
			var c Command
			if in.Decode(&c) != nil {
				return
			}
			l.commands <- c
		}
	}()
	return l, nil
}

// Commands yields what to do. It is closed when the runner is gone.
func (l *Link) Commands() <-chan Command { return l.commands }

// Send reports an event. The runner's end shows in Commands, so there is no error here.
func (l *Link) Send(e Event) {
	e.From, e.PID = l.name, os.Getpid()
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.out.Encode(e)
}

// Fail reports an error.
func (l *Link) Fail(err error) { l.Send(Event{Name: Failed, At: Now(), Text: err.Error()}) }
