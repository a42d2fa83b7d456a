package main

import (
	"bufio"
	"encoding/json"
	"errors"
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
)

// serve is the HTTP worker: it reads the item and answers with two bytes. It knows when an item was published, and tells at /latencies. Between /pause
// and /resume it answers no item.
func serve(o options) error {
	_ = os.Remove(o.listen)
	l, err := net.Listen("unix", o.listen)
	if err != nil {
		return err
	}
	var count, held atomic.Int64
	var mu sync.Mutex
	var took []int64
	var gate sync.RWMutex // locked while items wait
	mux := http.NewServeMux()
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strconv.FormatInt(count.Load(), 10)) })
	mux.HandleFunc("GET /held", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strconv.FormatInt(held.Load(), 10)) })
	mux.HandleFunc("GET /pause", func(w http.ResponseWriter, _ *http.Request) { gate.Lock(); io.WriteString(w, "true") })
	mux.HandleFunc("GET /resume", func(w http.ResponseWriter, _ *http.Request) { gate.Unlock(); io.WriteString(w, "true") })
	mux.HandleFunc("GET /latencies", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_ = json.NewEncoder(w).Encode(took)
		took = nil
	})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
		arrived := time.Now().UnixNano()
		gate.RLock()
		defer gate.RUnlock()
		seen := func(body []byte) {
			if at := stamp(body); at > 0 {
				mu.Lock()
				took = append(took, arrived-at)
				mu.Unlock()
			}
		}
		if r.Header.Get("Content-Type") == "application/x-ndjson" {
			count.Add(answerBatch(w, r.Body, seen))
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if o.hold > 0 {
			held.Add(1)
			time.Sleep(o.hold)
		}
		seen(body)
		count.Add(1)
		io.WriteString(w, "ok")
	})
	return http.Serve(l, mux)
}

func answerBatch(w http.ResponseWriter, body io.Reader, seen func([]byte)) int64 {
	var out strings.Builder
	n, err := verdicts(body, &out, seen)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return 0
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	io.WriteString(w, out.String())
	return n
}

// verdicts says of every item of a batch that it is done, and tells seen its payload.
func verdicts(body io.Reader, out io.Writer, seen func([]byte)) (n int64, err error) {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 64<<10), 16<<20)
	for ; lines.Scan(); n++ {
		var in struct {
			ID   string `json:"id"`
			Body string `json:"body"`
		}
		if err := json.Unmarshal(lines.Bytes(), &in); err != nil {
			return n, err
		}
		seen([]byte(in.Body))
		if _, err := fmt.Fprintf(out, "{\"id\":%q,\"verdict\":\"ack\",\"output\":\"ok\"}\n", in.ID); err != nil {
			return n, err
		}
	}
	return n, lines.Err()
}

// lines is the worker of mode lines, started for a batch.
func lines(in io.Reader, out io.Writer) error {
	buffered := bufio.NewWriter(out)
	n, err := verdicts(in, buffered, func([]byte) {})
	if err := errors.Join(err, buffered.Flush()); err != nil {
		return err
	}
	counter, err := os.OpenFile(os.Getenv("BENCH_COUNT"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = counter.Write(make([]byte, n))
	return errors.Join(err, counter.Close())
}
