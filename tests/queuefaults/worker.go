package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// workerRole makes this program a worker: "http SOCKET" or "exec". workerLog is the file that its executions go to; lines of less
// than a page that are appended in one write are never torn, also when the worker is killed.
const (
	workerRole = "RETINUE_QUEUEFAULTS_WORKER"
	workerLog  = "RETINUE_QUEUEFAULTS_LOG"
)

// workerMain is the program's life as a worker, when it was started as one.
func workerMain() {
	role := os.Getenv(workerRole)
	if role == "" {
		return
	}
	log, err := os.OpenFile(os.Getenv(workerLog), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(2)
	}
	w := worker{log: log}
	if socket, ok := strings.CutPrefix(role, "http "); ok {
		err = w.serve(socket)
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	os.Exit(w.command())
}

type worker struct{ log *os.File }

// Ends of an execution, in its log.
const (
	began   = "began"
	done    = "done"
	failed  = "failed"
	refused = "refused"
)

func (w worker) note(what, nonce, id string, attempt int) {
	fmt.Fprintf(w.log, "%d %s %s %s %d\n", time.Now().UnixNano(), what, nonce, id, attempt)
}

// execute does what an item asks for. The nonce names the execution: it is the output, so that it shows whose output counts.
func (w worker) execute(ctx context.Context, id string, attempt int, body []byte) (nonce, end string) {
	raw := make([]byte, 8)
	rand.Read(raw)
	nonce = hex.EncodeToString(raw)
	w.note(began, nonce, id, attempt)
	var t task
	end = done
	if err := json.Unmarshal(body, &t); err != nil || t.End == "dead" {
		end = refused
	} else if attempt <= t.Fail {
		end = failed
	}
	select {
	case <-time.After(time.Duration(t.MS) * time.Millisecond):
	case <-ctx.Done(): // the coordinator has hung up
		end = failed
	}
	w.note(end, nonce, id, attempt)
	return nonce, end
}

func (w worker) command() int {
	attempt, err := strconv.Atoi(os.Getenv("RETINUE_ATTEMPT"))
	if err != nil {
		return 2
	}
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 2
	}
	nonce, end := w.execute(context.Background(), os.Getenv("RETINUE_ITEM"), attempt, body)
	switch end {
	case failed:
		return 1
	case refused:
		return 65
	}
	fmt.Print(nonce)
	return 0
}

func (w worker) serve(socket string) error {
	_ = os.Remove(socket) // of one that was killed
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(w.handle))
}

func (w worker) handle(out http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Content-Type") == "application/x-ndjson" {
		w.batch(out, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	attempt, bad := strconv.Atoi(r.Header.Get("Retinue-Attempt"))
	if err != nil || bad != nil {
		out.WriteHeader(http.StatusInternalServerError)
		return
	}
	nonce, end := w.execute(r.Context(), r.Header.Get("Ce-Id"), attempt, body)
	switch end {
	case failed:
		out.WriteHeader(http.StatusInternalServerError)
	case refused:
		out.WriteHeader(http.StatusUnprocessableEntity)
	default:
		io.WriteString(out, nonce)
	}
}

// batch executes the items of a batch side by side.
func (w worker) batch(out http.ResponseWriter, r *http.Request) {
	lines := bufio.NewScanner(r.Body)
	var mu sync.Mutex
	var all sync.WaitGroup
	var answers []string
	for lines.Scan() {
		var in struct {
			ID      string `json:"id"`
			Attempt int    `json:"attempt"`
			Body    string `json:"body"`
		}
		if err := json.Unmarshal(lines.Bytes(), &in); err != nil {
			out.WriteHeader(http.StatusInternalServerError)
			return
		}
		all.Go(func() {
			nonce, end := w.execute(r.Context(), in.ID, in.Attempt, []byte(in.Body))
			verdict := map[string]any{"id": in.ID, "verdict": map[string]string{done: "ack", failed: "retry", refused: "dead"}[end]}
			if end == done {
				verdict["output"] = nonce
			}
			line, _ := json.Marshal(verdict) // strings always encode
			mu.Lock()
			answers = append(answers, string(line)+"\n")
			mu.Unlock()
		})
	}
	all.Wait()
	out.Header().Set("Content-Type", "application/x-ndjson")
	io.WriteString(out, strings.Join(answers, ""))
}
