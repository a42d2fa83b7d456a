// Command leaf is all leaves of one node in the scatter/gather benchmark: an
// HTTP server on an address of its own for each shard. It answers with a line of
// a kibibyte at once, unless the request's script asks for something else. It
// counts its calls by label, and notes when it learned that a call which hangs
// is not wanted any more.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"retinue/tests/bench/script"
	"retinue/tests/bench/wire"
)

func main() {
	shards := flag.Int("shards", 1, "leaves")
	replica := flag.Int("replica", 0, "which replica of every shard this is")
	out := flag.String("out", "", "file that says where they are")
	flag.Parse()
	if err := serve(*shards, *replica, *out); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func serve(shards, replica int, out string) error {
	n := &node{replica: replica}
	failed := make(chan error, shards+1)
	open := func(h http.Handler) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		go func() { failed <- http.Serve(l, h) }()
		return "http://" + l.Addr().String(), nil
	}
	var f script.Fleet
	var err error
	if f.Control, err = open(n.control()); err != nil {
		return err
	}
	for shard := range shards {
		url, err := open(&leaf{node: n, shard: shard})
		if err != nil {
			return err
		}
		f.Leaves = append(f.Leaves, url)
	}
	if err := script.Tell(out, f); err != nil {
		return err
	}
	return <-failed
}

// node is what the leaves of a process share.
type node struct {
	replica int
	calls   [script.Labels]atomic.Int64
	hanging atomic.Int64

	mu   sync.Mutex
	over []script.Call
}

// control tells the runner what the leaves have seen.
func (n *node) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /calls", func(w http.ResponseWriter, _ *http.Request) {
		var counts [script.Labels]int64
		for i := range counts {
			counts[i] = n.calls[i].Load()
		}
		json.NewEncoder(w).Encode(counts)
	})
	mux.HandleFunc("GET /hanging", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(n.hanging.Load()) })
	mux.HandleFunc("GET /over", func(w http.ResponseWriter, _ *http.Request) {
		n.mu.Lock()
		over := n.over
		n.over = nil
		n.mu.Unlock()
		json.NewEncoder(w).Encode(over)
	})
	return mux
}

type leaf struct {
	node  *node
	shard int
}

// line answers most requests.
var line = strings.Repeat("x", script.Body-1) + "\n"

func (l *leaf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s, err := script.Parse(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	l.node.calls[s.Label].Add(1)
	if s.Hang > 0 {
		l.hang(r, s)
	}
	if d := s.SlowBy(l.shard, l.node.replica); d > 0 {
		wait(r, d)
	}
	w.Header()["Content-Type"] = []string{"text/plain"}
	if s.Size > 0 {
		w.Header()["Content-Length"] = []string{strconv.Itoa(s.Size)}
		for left := s.Size; left > 0; {
			n := min(left, len(line))
			if _, err := io.WriteString(w, line[len(line)-n:]); err != nil {
				return
			}
			left -= n
		}
		return
	}
	io.WriteString(w, line)
}

// hang waits, and notes whether it was ended before.
func (l *leaf) hang(r *http.Request, s script.Script) {
	call := script.Call{N: s.N, Shard: l.shard, Began: wire.Now()}
	l.node.hanging.Add(1)
	call.Cancelled = !wait(r, s.Hang)
	call.Ended = wire.Now()
	l.node.hanging.Add(-1)
	l.node.mu.Lock()
	l.node.over = append(l.node.over, call)
	l.node.mu.Unlock()
}

// wait returns false when the call was cancelled meanwhile.
func wait(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}
