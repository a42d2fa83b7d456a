package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"retinue/internal/clock"
)

// fakeHost is a task that lives in the test.
type fakeHost struct {
	mu     sync.Mutex
	e      *Engine
	log    []string
	events []Event
	saved  []byte
	http   func(ctx context.Context, call HTTPCall) (HTTPResult, error)
	exec   func(ctx context.Context, call ExecCall) (ExecResult, error)
	conns  []int
	stop   func(ctx context.Context, timeout time.Duration) error
	placed []byte
}

func (f *fakeHost) did(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *fakeHost) Place(_ context.Context, state []byte) error {
	f.did("place %s", state)
	f.placed = state
	return nil
}
func (f *fakeHost) Start(context.Context) error { f.did("start"); return nil }
func (f *fakeHost) Stop(ctx context.Context, signal string, timeout time.Duration) error {
	f.did("stop %s %s", signal, timeout)
	if f.stop != nil {
		return f.stop(ctx, timeout)
	}
	f.e.Exited(ExitStatus{})
	return nil
}
func (f *fakeHost) Kill(context.Context) error               { f.did("kill"); return nil }
func (f *fakeHost) Signal(_ context.Context, s string) error { f.did("signal %s", s); return nil }
func (f *fakeHost) Freeze(context.Context) error             { f.did("freeze"); return nil }
func (f *fakeHost) Thaw(context.Context) error               { f.did("thaw"); return nil }
func (f *fakeHost) Exec(ctx context.Context, call ExecCall) (ExecResult, error) {
	f.did("exec %s", strings.Join(call.Command, " "))
	if f.exec != nil {
		return f.exec(ctx, call)
	}
	return ExecResult{}, nil
}
func (f *fakeHost) HTTP(ctx context.Context, call HTTPCall) (HTTPResult, error) {
	f.did("http %s", call.Request)
	if f.http != nil {
		return f.http(ctx, call)
	}
	return HTTPResult{Status: 204}, nil
}
func (f *fakeHost) Connections(context.Context, int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.conns[0]
	if len(f.conns) > 1 {
		f.conns = f.conns[1:]
	}
	return n, nil
}
func (f *fakeHost) Event(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, e)
}
func (f *fakeHost) Persist(saved []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saved = saved
	return nil
}

// fakeStates is a store in memory.
type fakeStates struct {
	data     []byte
	loadErr  error
	saveErr  error
	rejected string
}

func (s *fakeStates) Load(context.Context) (State, bool, error) {
	return State{Data: s.data, AppVersion: "3"}, s.data != nil, s.loadErr
}
func (s *fakeStates) Save(_ context.Context, data []byte) error  { s.data = data; return s.saveErr }
func (s *fakeStates) Reject(_ context.Context, why string) error { s.rejected = why; return nil }

// bubble runs f with an engine in virtual time.
func bubble(t *testing.T, block map[string]any, f func(t *testing.T, h *fakeHost, s *fakeStates)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg, err := Decode(block)
		if err != nil {
			t.Fatal(err)
		}
		h, s := &fakeHost{conns: []int{0}}, &fakeStates{}
		h.e = New(Options{Config: cfg, Host: h, States: s, ID: "id", Clock: clock.Bubble()})
		defer h.e.Close()
		f(t, h, s)
	})
}

func TestEngine(t *testing.T) {
	bubble(t, full(), func(t *testing.T, h *fakeHost, s *fakeStates) {
		s.data = []byte("old")
		h.conns = []int{2, 1, 0}
		inFlight := 0
		h.http = func(_ context.Context, call HTTPCall) (HTTPResult, error) {
			if inFlight++; inFlight > 1 {
				t.Error("two hooks at once")
			}
			defer func() { inFlight-- }()
			if call.Header["Retinue-Delivery"] == "" || call.Header["Retinue-Deadline-Ms"] == "" {
				t.Errorf("%v", call.Header)
			}
			switch call.Path {
			case "/state":
				if call.Method == "PUT" && (string(call.Body) != "old" || call.Header["Retinue-App-Version"] != "3") {
					t.Errorf("%+v", call)
				}
				return HTTPResult{Status: 200, Body: []byte("new")}, nil
			case "/gone":
				if !call.FromHost || call.Header["Retinue-Exit-Code"] != "0" {
					t.Errorf("%+v", call)
				}
			}
			return HTTPResult{Status: 200}, nil
		}
		if err := h.e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := h.e.Status(); s.Phase != Running || !s.Ready {
			t.Errorf("%+v", s)
		}
		begun := time.Now()
		if err := h.e.Stop(t.Context(), StopRequest{Signal: "SIGTERM", Timeout: 5 * time.Second}); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took != 400*time.Millisecond {
			t.Errorf("a stop with two questions of 200 ms took %s", took)
		}
		synctest.Wait()
		if err := h.e.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
		<-h.e.Done()
		want := []string{"start", "http PUT /state", "exec /init -v", "http GET http://127.0.0.1:8080/ready?x=1", "http POST /pre-drain", "http GET /state",
			"exec nodetool drain", "stop SIGTERM 4.6s", "http POST http://10.0.0.1:99/gone"}
		if !slices.Equal(h.log, want) {
			t.Errorf("%q", h.log)
		}
		if string(s.data) != "new" {
			t.Errorf("saved %q", s.data)
		}
		if _, err := h.e.Pause(t.Context()); !errors.Is(err, ErrExited) {
			t.Error(err)
		}
		if err := h.e.Stop(t.Context(), StopRequest{}); err != nil {
			t.Error(err)
		}
	})
}

// A hook that hangs, and does not even end when it is cancelled, holds up a stop no longer than its timeout and half a second.
func TestHangingHook(t *testing.T) {
	bubble(t, map[string]any{"pre_stop": map[string]any{"http": "POST /x", "timeout": "3s"}}, func(t *testing.T, h *fakeHost, _ *fakeStates) {
		release := make(chan struct{})
		h.http = func(context.Context, HTTPCall) (HTTPResult, error) { <-release; return HTTPResult{Status: 200}, nil }
		if err := h.e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := h.e.Stop(t.Context(), StopRequest{Timeout: time.Second}); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took != 3500*time.Millisecond {
			t.Errorf("%s", took)
		}
		close(release)
	})
}

// The caller may give up; the stop goes on.
func TestCallerGone(t *testing.T) {
	bubble(t, map[string]any{"pre_stop": map[string]any{"sleep": "3s"}}, func(t *testing.T, h *fakeHost, _ *fakeStates) {
		if err := h.e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.e.Stop(ctx, StopRequest{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := h.e.Stop(t.Context(), StopRequest{}); err != nil {
			t.Error(err)
		}
		if s := h.e.Status(); s.Phase != Stopped {
			t.Errorf("%+v", s)
		}
	})
}

// The driver is killed in a stop; the next one continues, and Nomad's next StopTask begins again from pre_drain.
func TestRecover(t *testing.T) {
	bubble(t, map[string]any{"pre_drain": map[string]any{"exec": []any{"p"}}, "pre_stop": map[string]any{"sleep": "1h"}}, func(t *testing.T, h *fakeHost, _ *fakeStates) {
		if err := h.e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		failed := make(chan error, 1)
		go func() { failed <- h.e.Stop(t.Context(), StopRequest{Timeout: time.Second}) }()
		time.Sleep(time.Second)
		h.e.Close()
		if err := <-failed; !errors.Is(err, errClosed) {
			t.Error(err)
		}
		h2 := &fakeHost{}
		cfg := *h.e.opts.Config
		var err error
		if h2.e, err = Recover(Options{Config: &cfg, Host: h2, Clock: h.e.opts.Clock}, h.saved); err != nil {
			t.Fatal(err)
		}
		defer h2.e.Close()
		if s := h2.e.Status(); s.Phase != Stopping {
			t.Errorf("%+v", s)
		}
		h2.e.Exited(ExitStatus{Code: 4})
		if err := h2.e.Stop(t.Context(), StopRequest{Timeout: time.Second}); err != nil {
			t.Error(err)
		}
		if _, err := Recover(Options{Config: &cfg, Host: h2}, []byte("nonsense")); err == nil {
			t.Error("nonsense was recovered")
		}
		if _, err := Recover(Options{Config: &cfg, Host: h2}, []byte(`{"format":1,"phase":"dreaming"}`)); err == nil {
			t.Error("an unknown phase was recovered")
		}
	})
}

type damagedError struct{}

func (damagedError) Error() string { return "damaged" }
func (damagedError) Damaged() bool { return true }

func TestRestore(t *testing.T) {
	file := map[string]any{"restore_state": map[string]any{"on_failure": "ignore"}}
	bubble(t, file, func(t *testing.T, h *fakeHost, s *fakeStates) {
		s.data, s.loadErr = []byte("x"), damagedError{}
		if err := h.e.Start(t.Context()); err != nil || s.rejected != "damaged" || h.placed != nil {
			t.Errorf("%v, rejected %q, placed %q", err, s.rejected, h.placed)
		}
	})
	bubble(t, map[string]any{"restore_state": map[string]any{}}, func(t *testing.T, h *fakeHost, s *fakeStates) {
		s.loadErr = errors.New("store away")
		if err := h.e.Start(t.Context()); err == nil || s.rejected != "" || slices.Contains(h.log, "start") {
			t.Errorf("%v, rejected %q, %q", err, s.rejected, h.log)
		}
	})
	bubble(t, map[string]any{"restore_state": map[string]any{"http": "PUT /s"}}, func(t *testing.T, h *fakeHost, s *fakeStates) {
		s.data = []byte("of a newer version")
		h.http = func(context.Context, HTTPCall) (HTTPResult, error) {
			return HTTPResult{Status: 422, Body: []byte("unknown version")}, nil
		}
		h.stop = func(context.Context, time.Duration) error { h.e.Exited(ExitStatus{Code: 143}); return nil }
		if err := h.e.Start(t.Context()); err == nil || !strings.Contains(s.rejected, "unknown version") {
			t.Errorf("%v, rejected %q", err, s.rejected)
		}
	})
}

// Signals that are words, and the one that on_config answers.
func TestSignals(t *testing.T) {
	bubble(t, map[string]any{"on_config": map[string]any{"exec": []any{"reload"}}}, func(t *testing.T, h *fakeHost, _ *fakeStates) {
		if err := h.e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			signal  string
			handled bool
			did     string
		}{{"PAUSE", true, "freeze"}, {"resume", true, "thaw"}, {"SIGHUP", true, "exec reload"}, {"hup", true, "exec reload"}, {"SIGUSR1", false, ""}} {
			before := len(h.log)
			handled, err := h.e.Signal(t.Context(), c.signal)
			if handled != c.handled || err != nil || strings.Join(h.log[before:], ",") != c.did {
				t.Errorf("%s: %v %v %q", c.signal, handled, err, h.log[before:])
			}
		}
		if handled, err := h.e.Signal(t.Context(), "save"); !handled || !errors.Is(err, ErrNoHook) {
			t.Errorf("%v %v", handled, err)
		}
	})
}

// The answers of hooks.
func TestOutcomes(t *testing.T) {
	httpHook := Hook{Name: PreStop, Kind: KindHTTP}
	for _, c := range []struct {
		res   HTTPResult
		err   string
		again time.Duration
	}{
		{HTTPResult{Status: 204}, "", 0},
		{HTTPResult{Status: 202}, "", 0},
		{HTTPResult{Status: 202, RetryAfter: "1.5"}, "", 1500 * time.Millisecond},
		{HTTPResult{Status: 202, RetryAfter: "0"}, "", 10 * time.Millisecond},
		{HTTPResult{Status: 202, RetryAfter: "soon"}, "give seconds", 0},
		{HTTPResult{Status: 202, RetryAfter: "NaN"}, "give seconds", 0},
		{HTTPResult{Status: 202, RetryAfter: "1e300"}, "give seconds", 0},
		{HTTPResult{Status: 500, Body: []byte("no\x00 disk\n")}, "answered 500: no  disk", 0},
		{HTTPResult{Status: 302}, "answered 302", 0},
		{HTTPResult{Status: 200, Body: make([]byte, outputLimit+1)}, "more than 64KB", 0},
	} {
		h := &fakeHost{http: func(context.Context, HTTPCall) (HTTPResult, error) { return c.res, nil }}
		r := &runner{host: h, cfg: &Config{}}
		o := r.run(t.Context(), fxHook{hook: httpHook}, time.Second)
		if (o.err == nil) != (c.err == "") || o.err != nil && !strings.Contains(o.err.Error(), c.err) || o.again != (c.again > 0) || o.after != c.again {
			t.Errorf("%d %q: %+v", c.res.Status, c.res.RetryAfter, o)
		}
	}
	for said, want := range map[string]struct {
		again time.Duration
		more  bool
		bad   bool
	}{"": {}, "0": {}, "3": {more: true}, "-7": {again: 7 * time.Second, more: true}, "many": {bad: true}, `{"in_flight":0}`: {}, `{"x":0}`: {bad: true}} {
		h := &fakeHost{exec: func(context.Context, ExecCall) (ExecResult, error) {
			return ExecResult{Stdout: []byte(said + "\n")}, nil
		}}
		o := (&runner{host: h, cfg: &Config{}}).run(t.Context(), fxHook{hook: Hook{Name: Drain, Kind: KindExec}}, time.Second)
		if o.again != want.more || o.after != want.again || (o.err != nil) != want.bad {
			t.Errorf("%q: %+v", said, o)
		}
	}
	h := &fakeHost{exec: func(_ context.Context, call ExecCall) (ExecResult, error) {
		if !slices.Contains(call.Env, "RETINUE_HOOK=pre_stop") || !slices.Contains(call.Env, "RETINUE_DEADLINE_MS=1000") {
			t.Errorf("%q", call.Env)
		}
		return ExecResult{Code: 3, Stderr: []byte("why")}, nil
	}}
	if o := (&runner{host: h, cfg: &Config{}}).run(t.Context(), fxHook{hook: Hook{Name: PreStop, Kind: KindExec}}, time.Second); o.err == nil || o.err.Error() != "exit code 3: why" {
		t.Errorf("%+v", o)
	}
}
