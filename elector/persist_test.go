package elector

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"retinue/internal/hint"
)

func openState(t *testing.T, path string) *StateFile {
	t.Helper()
	s, err := OpenStateFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// restart kills the elector without a word, and starts it anew after a pause.
func (n *node) restart(cfg fleetConfig, pause time.Duration) *node {
	n.kill()
	<-n.ended
	cfg.state.Close(true)
	n.f.watch(pause)
	cfg.state = openState(n.f.t, cfg.state.path)
	again := n.f.add(cfg)
	n.f.nodes = append(n.f.nodes[:0:0], n.f.nodes[1:]...) // n was the first, and is gone
	return again
}

// An elector that is back within its lease leads on under the same token; nobody else was elected meanwhile.
func TestRestartKeepsLeadership(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	bubble(t, func(t *testing.T) {
		cfg := testConfig("a")
		cfg.state = openState(t, path)
		f := newFleet(t, cfg, testConfig("b"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{"id":"x"}`)
		a.tether(g.Token)
		f.nodes[1].campaign(`{}`)
		f.watch(3 * time.Second)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		a = a.restart(cfg, 500*time.Millisecond)
		f.watch(100 * time.Millisecond)
		if got := a.types(0); !slices.Equal(got, []EventType{EventSuspended, EventResumed}) {
			t.Errorf("events %v", got)
		}
		if a.role() != Leader || a.view().Token != g.Token || a.view().Holder != "x" {
			t.Fatalf("role %s, token %d, holder %s", a.role(), a.view().Token, a.view().Holder)
		}
		if status, _ := a.renew(g.Token); status != http.StatusOK {
			t.Errorf("renew: %d", status)
		}
		closeTether := a.tether(g.Token)
		f.watch(5 * time.Second)
		if a.role() != Leader {
			t.Errorf("role %s", a.role())
		}
		closeTether()
		f.watch(50 * time.Millisecond)
		if f.nodes[0].role() != Leader {
			t.Errorf("after the application's end b is %s", f.nodes[0].role())
		}
		f.close()
		a.el.state.Close(false)
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the state file is still there: %v", err)
		}
	})
}

// An application that does not come back to the restarted elector loses its leadership after one lease.
func TestRestartWithoutTheApplication(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	bubble(t, func(t *testing.T) {
		cfg := testConfig("a")
		cfg.state = openState(t, path)
		f := newFleet(t, cfg, testConfig("b"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		a.tether(g.Token)
		next := f.nodes[1].campaign(`{}`)
		f.watch(3 * time.Second)
		a = a.restart(cfg, 500*time.Millisecond)
		start := time.Now()
		if ng := <-next; ng.Token <= g.Token || time.Since(start) > 2100*time.Millisecond {
			t.Errorf("%+v after %s", ng, time.Since(start))
		}
		f.close()
		a.el.state.Close(false)
	})
}

// An elector that comes back too late finds its session gone and somebody else in office.
func TestRestartTooLate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	bubble(t, func(t *testing.T) {
		cfg := testConfig("a")
		cfg.state = openState(t, path)
		f := newFleet(t, cfg, testConfig("b"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		a.tether(g.Token)
		next := f.nodes[1].campaign(`{}`)
		f.watch(3 * time.Second)
		a = a.restart(cfg, 6100*time.Millisecond)
		f.watch(100 * time.Millisecond)
		if ng := <-next; ng.Token <= g.Token || a.role() != Follower || a.view().LostReason == "" {
			t.Errorf("%+v, role %s, reason %s", ng, a.role(), a.view().LostReason)
		}
		f.close()
		a.el.state.Close(false)
	})
}

// SIGTERM with a connected leader is a restart of the elector alone: it ends at once and leaves everything in place.
func TestStopKeepsForTheNextProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	bubble(t, func(t *testing.T) {
		cfg := testConfig("a")
		cfg.state = openState(t, path)
		f := newFleet(t, cfg)
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		a.tether(g.Token)
		f.watch(time.Second)
		a.stop()
		<-a.ended
		if !a.el.Kept() || f.c.holder(Key("app", "leader")) == "" {
			t.Error("leadership was not kept")
		}
		a = a.restart(cfg, 100*time.Millisecond)
		f.watch(100 * time.Millisecond)
		if a.role() != Leader || a.view().Token != g.Token {
			t.Errorf("role %s, token %d", a.role(), a.view().Token)
		}
		// Not connected yet: now SIGTERM is the end.
		a.stop()
		<-a.ended
		if a.el.Kept() || f.c.holder(Key("app", "leader")) != "" {
			t.Error("leadership outlived its application")
		}
		a.el.state.Close(a.el.Kept())
	})
}

// SIGTERM for all tasks of an allocation at once: the application ends a moment after the elector was asked to. The lock goes at once.
func TestStopWithTheApplication(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	bubble(t, func(t *testing.T) {
		cfg := testConfig("a")
		cfg.state = openState(t, path)
		f := newFleet(t, cfg, testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{}`)
		closeTether := a.tether(g.Token)
		next := b.campaign(`{}`)
		f.watch(time.Second)
		a.stop()
		f.watch(100 * time.Millisecond)
		if a.role() != Leader {
			t.Error("out of office before the application ended")
		}
		start := time.Now()
		closeTether()
		<-next
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("the next leader after %s", took)
		}
		<-a.ended
		if a.el.Kept() {
			t.Error("kept, with nobody in office")
		}
		a.el.state.Close(false)
	})
}

// An elector that comes back without its state is in the race at once, though its last session still lives.
func TestRestartWithoutState(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := b.become(`{}`)
		defer b.tether(g.Token)()
		f.watch(time.Second)
		a.kill()
		<-a.ended
		again := f.launch(testConfig("a"))
		f.nodes[0] = again
		next := again.campaign(`{"id":"back"}`)
		f.watch(50 * time.Millisecond)
		if got := b.view().Candidates; len(got) != 2 {
			t.Errorf("candidates %v", got)
		}
		if status, body := b.post("/resign", `{"token":`+utoa(g.Token)+`,"to":"a"}`); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		start := time.Now()
		if ng := <-next; ng.ID != "back" || time.Since(start) > 20*time.Millisecond {
			t.Errorf("%+v after %s", ng, time.Since(start))
		}
	})
}

func TestStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	s := openState(t, path)
	if _, err := OpenStateFile(path); err == nil || hint.Of(err) == "" {
		t.Errorf("a second elector got the same state file: %v", err)
	}
	cfg := testConfig("a").Config
	good := Saved{App: "app", ID: "a", Lease: cfg.Lease, Revocation: cfg.Revocation, Session: Session{ID: "s"}, Elections: map[string]SavedElection{"leader": {Token: 5}}}
	reload := func() bool {
		t.Helper()
		s.Close(true)
		s = openState(t, path)
		_, ok := s.load(cfg)
		return ok
	}
	s.save(good)
	if !reload() {
		t.Error("what was saved is not loaded")
	}
	for name, change := range map[string]func(*Saved){
		"another application":         func(s *Saved) { s.App = "other" },
		"another elector":             func(s *Saved) { s.ID = "b" },
		"another lease":               func(s *Saved) { s.Lease = time.Minute },
		"an election that is no more": func(s *Saved) { s.Elections = map[string]SavedElection{"old": {}} },
	} {
		bad := good
		change(&bad)
		s.save(bad)
		if reload() {
			t.Errorf("%s: loaded", name)
		}
	}
	boot := s.bootID
	s.bootID = "before"
	s.save(good)
	if reload() {
		t.Error("the state of another boot was loaded")
	}
	if s.bootID != boot {
		t.Error("the boot id changed")
	}
	if err := os.WriteFile(path, []byte(`{"boot_id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if reload() {
		t.Error("half a file was loaded")
	}
	if _, err := OpenStateFile(filepath.Join(path, "nowhere")); err == nil || hint.Of(err) == "" {
		t.Errorf("%v", err)
	}
	s.Close(false)
}
