// Package lifecycle is the demonstration of the lifecycle driver: a server that
// keeps a counter in its memory alone, under load, while it is paused, saved,
// drained from its node and moved. Not one acknowledged increment may be lost,
// and no request may fail.
package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"retinue/internal/lifecycle/allocfs"
	"retinue/internal/listen"
)

// App is a stateful server as somebody writes it for the lifecycle driver: two listeners, one for its users and one for the
// hooks, and no library.
type App struct {
	Listen  string // host:port for users
	Sock    string // RETINUE_SOCK: where the hooks come in; empty: none
	State   string // RETINUE_STATE: the file that it gets its state back from; empty: none
	Notify  string // NOTIFY_SOCKET: where it says that it is ready; empty: nowhere
	Version string
	Out     io.Writer
}

// memory is all that the server knows.
type memory struct {
	Counter uint64            `json:"counter"`
	Clients map[string]uint64 `json:"clients"` // the last increment of each, so that one which is sent again counts once
}

type server struct {
	App
	mu       sync.Mutex
	mem      memory
	draining bool
	inFlight int
}

// Run serves until ctx ends.
func (a App) Run(ctx context.Context) error {
	s := &server{App: a, mem: memory{Clients: map[string]uint64{}}}
	if err := s.restore(); err != nil {
		return err
	}
	users, err := net.Listen("tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("listen for users: %w", err)
	}
	servers := []*http.Server{{Handler: s.users(), ReadHeaderTimeout: 5 * time.Second}}
	listeners := []net.Listener{users}
	if a.Sock != "" {
		hooks, err := listen.Listen(listen.Addr{Network: "unix", Path: a.Sock}, 0o600)
		if err != nil {
			return fmt.Errorf("listen for hooks: %w", err)
		}
		servers, listeners = append(servers, &http.Server{Handler: s.hooks(), ReadHeaderTimeout: 5 * time.Second}), append(listeners, hooks)
	}
	ended := make(chan error, len(servers))
	for i, srv := range servers {
		go func() { ended <- srv.Serve(listeners[i]) }()
	}
	if err := s.sayReady(); err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "serving on %s, counter %d\n", a.Listen, s.mem.Counter)
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	fmt.Fprintf(a.Out, "asked to end, counter %d\n", s.value())
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for _, srv := range servers {
		if err := srv.Shutdown(stop); err != nil {
			srv.Close()
		}
	}
	return nil
}

// restore takes the state back that an earlier allocation has saved.
func (s *server) restore() error {
	if s.State == "" {
		return nil
	}
	data, err := os.ReadFile(s.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the first start of all
	}
	if err != nil {
		return fmt.Errorf("read the state: %w", err)
	}
	if err := json.Unmarshal(data, &s.mem); err != nil {
		return fmt.Errorf("read the state: %w", err)
	}
	if s.mem.Clients == nil {
		s.mem.Clients = map[string]uint64{}
	}
	return nil
}

// sayReady is sd_notify(3): a datagram.
func (s *server) sayReady() error {
	if s.Notify == "" {
		return nil
	}
	socket := allocfs.Socket{Dir: filepath.Dir(s.Notify), Name: filepath.Base(s.Notify)} // its path may be longer than an address
	conn, err := socket.Dial(context.Background(), "unixgram")
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "READY=1\nSTATUS=counter %d", s.value())
	return err
}

func (s *server) value() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mem.Counter
}

// users answers POST /increment?client=NAME&seq=N, GET /value and GET /ready.
func (s *server) users() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /increment", s.increment)
	mux.HandleFunc("GET /value", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s.value()) })
	mux.HandleFunc("GET /ready", s.ready)
	return mux
}

func (s *server) increment(w http.ResponseWriter, r *http.Request) {
	seq, err := strconv.ParseUint(r.FormValue("seq"), 10, 64)
	client := r.FormValue("client")
	if err != nil || client == "" {
		http.Error(w, "say client=NAME and seq=N", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		w.Header().Set("Connection", "close")
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	s.inFlight++
	s.mu.Unlock()
	// The work of a request. Without it there would be nothing in flight to wait for.
	time.Sleep(2 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight--
	if seq > s.mem.Clients[client] {
		s.mem.Clients[client] = seq
		s.mem.Counter++
	}
	fmt.Fprintln(w, s.mem.Counter)
}

func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

// hooks is what the driver calls on $RETINUE_SOCK, and what the management API passes on.
func (s *server) hooks() http.Handler {
	mux := http.NewServeMux()
	drain := func(on bool) http.HandlerFunc {
		return func(http.ResponseWriter, *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.draining = on
		}
	}
	mux.HandleFunc("POST /retinue/v1/pre-drain", drain(true))
	mux.HandleFunc("POST /retinue/v1/resume", drain(false))
	mux.HandleFunc("GET /retinue/v1/ready", s.ready)
	mux.HandleFunc("GET /retinue/v1/live", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "counter", s.value()) })
	mux.HandleFunc("GET /retinue/v1/inflight", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintln(w, s.inFlight)
	})
	mux.HandleFunc("GET /retinue/v1/state", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s.mem)
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# HELP demo_increments_total Increments counted.\n# TYPE demo_increments_total counter\ndemo_increments_total %d\n", s.value())
	})
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"listen": s.Listen, "version": s.Version})
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}
