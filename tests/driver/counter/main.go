// Command counter is the application of the driver's end-to-end tests: a server
// whose whole state is a number. It answers the hooks on $RETINUE_SOCK, takes its
// number from $RETINUE_STATE, and writes what happens to it to a file of the
// allocation, which a test reads.
//
// `counter note WORD` is a command for exec hooks: it writes WORD to that file. `counter cat FILE` prints a file, where there is no
// other program, and `counter exit CODE` ends with that code.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == "note" {
		note("exec %s as %s", strings.Join(os.Args[2:], " "), os.Getenv("RETINUE_HOOK"))
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "cat" {
		raw, err := os.ReadFile(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		os.Stdout.Write(raw)
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "exit" {
		code, err := strconv.Atoi(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		os.Exit(code)
	}
	var count, inFlight atomic.Int64
	if raw, err := os.ReadFile(os.Getenv("RETINUE_STATE")); err == nil {
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil {
			log.Fatalf("the state is %q", raw)
		}
		count.Store(n)
		note("restored %d", n)
	}
	if err := os.WriteFile(filepath.Join(os.Getenv("NOMAD_ALLOC_DIR"), "pid"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		log.Fatal(err)
	}
	note("started")

	mux := http.NewServeMux()
	mux.HandleFunc("POST /inc", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, count.Add(1)) })
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, count.Load()) })
	mux.HandleFunc("POST /inflight/{n}", func(_ http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil {
			log.Fatal(err)
		}
		inFlight.Store(n)
	})
	mux.HandleFunc("GET /retinue/v1/inflight", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Retinue-Attempt") == "1" {
			note("drain begins with %d in flight", inFlight.Load())
		}
		fmt.Fprint(w, inFlight.Load())
	})
	mux.HandleFunc("GET /retinue/v1/state", func(w http.ResponseWriter, r *http.Request) {
		note("save_state %d", count.Load())
		fmt.Fprint(w, count.Load())
	})
	mux.HandleFunc("GET /retinue/v1/ready", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /retinue/v1/{hook}", func(_ http.ResponseWriter, r *http.Request) {
		note("http %s as %s", r.PathValue("hook"), r.Header.Get("Retinue-Hook"))
	})
	sock := os.Getenv("RETINUE_SOCK")
	os.Remove(sock) // of the process before this one
	l, err := net.Listen("unix", sock)
	if err != nil {
		log.Fatal(err)
	}
	if addr := os.Getenv("LISTEN"); addr != "" {
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			log.Fatal(err)
		}
		go func() { log.Fatal(http.Serve(tcp, mux)) }()
	}
	go func() {
		for range time.Tick(100 * time.Millisecond) {
			os.WriteFile(filepath.Join(os.Getenv("NOMAD_ALLOC_DIR"), "beat"), []byte(time.Now().Format(time.RFC3339Nano)), 0o644)
		}
	}()
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	go func() { log.Fatal(http.Serve(l, mux)) }()
	note("signal %v", <-term)
}

// note appends a line in one write, so that lines of several processes stay whole.
func note(format string, args ...any) {
	f, err := os.OpenFile(filepath.Join(os.Getenv("NOMAD_ALLOC_DIR"), "history"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, format+"\n", args...); err != nil {
		log.Fatal(err)
	}
}
