package gather

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"
)

// TestRequestsStandInLine: a request that does not fit beside those under way waits until they end, or for three quarters of its deadline.
func TestRequestsStandInLine(t *testing.T) {
	goOn := make(chan struct{})
	l := newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-goOn:
		case <-r.Context().Done():
		}
		io.WriteString(w, "x")
	})
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Limits.LeafResponse, s.Limits.Gathered = leaves([]*leafServer{l}), "10KiB", "60KiB" // one call, and no two
		s.Deadline.Default, s.Deadline.Max, s.Hedge.Budget = "60s", "120s", "0%"
	})
	got := make(chan answered, 2)
	go func() { got <- r.get(t, "/") }()
	eventually(t, "the first is under way", func() bool { return l.alive.Load() == 1 })
	if a := r.get(t, "/", "Retinue-Deadline-Ms", "100"); a.status != 503 || a.problem(t).Cause != "overloaded" || a.header.Get("Retry-After") != "1" {
		t.Errorf("no room: %d %s", a.status, a.body)
	}
	go func() { got <- r.get(t, "/") }()
	eventually(t, "another one waits", func() bool { return r.root.busy.Load() == 2 })
	if n := l.calls.Load(); n != 1 {
		t.Errorf("%d leaf calls where there is room for one", n)
	}
	close(goOn)
	for range 2 {
		if a := <-got; a.status != 200 {
			t.Errorf("in line: %d %s", a.status, a.body)
		}
	}
	eventually(t, "the memory is given back", func() bool { return r.root.memory.Used() == 0 && r.root.busy.Load() == 0 })
}

// TestWhoGoesBeyondTheBoundNeedNotWait: others wait for that request's memory. It must not stand in line behind them.
func TestWhoGoesBeyondTheBoundNeedNotWait(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	m := NewMemory(2 * callBytes)
	a := NewAdmission(m)
	var first, second claim
	leave, err := a.admit(ctx, &first, 2) // all there is
	if err != nil {
		t.Fatal(err)
	}
	defer leave()
	body := hold{memory: m, of: &second}
	if err := body.grow(ctx, callBytes); err != nil {
		t.Fatal(err)
	}
	body.keep()
	defer body.release()
	leave, err = a.admit(ctx, &second, 3)
	if err != nil {
		t.Fatalf("it waits for those that wait for it: %v", err)
	}
	leave()
}

// TestAdmissionLearns: the room that a request gets follows the size of answers, up at once and down slowly.
func TestAdmissionLearns(t *testing.T) {
	const large, calls = 100 << 10, 4
	m := NewMemory(64 << 20)
	a := NewAdmission(m)
	a.usual.Store(0)
	request := func(size int64) {
		var of claim
		leave, err := a.admit(t.Context(), &of, calls)
		if err != nil {
			t.Fatal(err)
		}
		body := hold{memory: m, of: &of}
		if err := body.grow(t.Context(), calls*size); err != nil {
			t.Fatal(err)
		}
		body.release() // the merge is done with it before the request ends
		leave()
	}
	if request(large); a.usual.Load() != large {
		t.Errorf("%d bytes for each call after one with %d", a.usual.Load(), large)
	}
	if request(0); a.usual.Load() != large/8*7 {
		t.Errorf("%d bytes for each call after a small answer", a.usual.Load())
	}
	if m.Used() != 0 || !a.room.TryAcquire(a.limit) {
		t.Error("something is still held")
	}
}
