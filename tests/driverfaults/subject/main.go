// Command subject is the task that the fault campaign of the lifecycle driver breaks things
// around. It answers hooks on $RETINUE_SOCK, and waits in those that SUBJECT_HOLD names until
// a file says go. What happens to it it writes to a file of its allocation, a line each:
// time, number of this run, what, hook, delivery, attempt.
package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	alloc = os.Getenv("NOMAD_ALLOC_DIR")
	run   = rand.Text()[:8]
	holds = strings.Split(os.Getenv("SUBJECT_HOLD"), ",")
)

func main() {
	// Two processes of one task at the same time would be a second start of what still runs.
	lock, err := os.OpenFile(filepath.Join(alloc, "lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		note("twin", "-", "-", "-")
	}
	note("start", "-", "-", "-")
	sock := os.Getenv("RETINUE_SOCK")
	if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) { // of the process before this one
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", sock)
	if err != nil {
		log.Fatal(err)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	mux := http.NewServeMux()
	mux.HandleFunc("/hook/{name}", func(w http.ResponseWriter, r *http.Request) {
		name, delivery, attempt := r.PathValue("name"), r.Header.Get("Retinue-Delivery"), r.Header.Get("Retinue-Attempt")
		note("begin", name, delivery, attempt)
		if !hold(name, r.Context().Done()) {
			note("cut", name, delivery, attempt)
			return
		}
		note("end", name, delivery, attempt)
		fmt.Fprint(w, 0) // in flight, and a state
	})
	go func() { log.Fatal(http.Serve(listener, mux)) }()
	note("signal "+(<-term).String(), "-", "-", "-")
	hold("signal", nil)
	note("exit", "-", "-", "-")
	lock.Close()
}

// hold waits until the file of a name is there, when the name is one to wait for; false when given up before.
func hold(name string, up <-chan struct{}) bool {
	if !slices.Contains(holds, name) {
		return true
	}
	for {
		if _, err := os.Stat(filepath.Join(alloc, "go-"+name)); err == nil {
			return true
		}
		select {
		case <-up:
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// note appends a line in one write, so that lines of several processes stay whole.
func note(what, hook, delivery, attempt string) {
	f, err := os.OpenFile(filepath.Join(alloc, "history"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%d\t%s\t%s\t%s\t%s\t%s\n", time.Now().UnixNano(), run, what, hook, delivery, attempt); err != nil {
		log.Fatal(err)
	}
}
