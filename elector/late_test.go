package elector

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"retinue/internal/clock"
)

// An attempt at the lock is committed but never answered, and the lease runs out before anything else is. When all is well again the
// elector has to find out that it holds the lock.
func TestUnansweredLock(t *testing.T) {
	cfg := Config{App: "orders", Elections: []string{"leader"}, ID: "a", Lease: time.Second, Revocation: Safe}
	m := newMachine(cfg, time.Now)
	now := clock.Instant(time.Hour)
	at := func(d time.Duration) clock.Instant { return now.Add(d) }
	lose := errors.New("no answer")
	m.step(at(0), evTick{})
	m.take()
	m.step(at(5*time.Millisecond), evOpened{session: Session{ID: "s1", TTL: time.Second}, sent: at(0)})
	m.take()
	m.step(at(7*time.Millisecond), evObserved{Snapshot{Index: 10}})
	m.step(at(8*time.Millisecond), evCampaign{election: "leader", id: "app"})
	var lock []byte
	for i := 0; i < 100 && lock == nil; i++ { // answer everything until the lock is tried
		now := at(time.Duration(9+i) * time.Millisecond)
		m.step(now, evTick{})
		if m.committing == nil {
			continue
		}
		for _, op := range m.committing.Ops {
			if op.Verb == VerbLock {
				lock = op.Value
			}
		}
		if lock == nil {
			m.step(now, evCommitted{result: Result{Applied: true}})
		}
	}
	m.take()
	if lock == nil {
		t.Fatal("no attempt at the lock")
	}
	// Cut off now: the lock was committed, its answer is lost, and so are renewals, until the lease is over. Consul keeps the session (2 TTL).
	m.step(at(510*time.Millisecond), evCommitted{err: lose})
	for ms := 520; ms < 1400; ms += 10 {
		m.step(at(time.Duration(ms)*time.Millisecond), evTick{})
		for _, fx := range m.take() {
			switch fx.(type) {
			case fxRenew:
				m.step(at(time.Duration(ms)*time.Millisecond), evRenewed{session: "s1", sent: at(time.Duration(ms) * time.Millisecond), received: at(time.Duration(ms) * time.Millisecond), err: lose})
			case fxCommit:
				m.step(at(time.Duration(ms)*time.Millisecond), evCommitted{err: lose})
			}
		}
	}
	m.take()
	// Healed: everything is answered. The key is ours.
	seen := Snapshot{Index: 21, Elections: map[string]Entry{"leader": {Session: "s1", KeyIndex: KeyIndex{20, 20}, Value: lock}}}
	elected := false
	for ms := 1400; ms < 6400; ms += 10 {
		now := at(time.Duration(ms) * time.Millisecond)
		m.step(now, evTick{})
		if ms == 1410 {
			m.step(now, evObserved{seen})
		}
		for _, fx := range m.take() {
			switch fx := fx.(type) {
			case fxEvent:
				elected = elected || fx.event.Type == EventElected
			case fxRenew:
				m.step(now, evRenewed{session: "s1", sent: now, received: now})
			case fxCommit:
				keys := make([]KeyIndex, len(fx.batch.Ops))
				for i := range keys {
					keys[i] = KeyIndex{20, 20}
				}
				m.step(now, evCommitted{result: Result{Applied: true, Keys: keys}})
			}
		}
	}
	if !elected {
		t.Error("nobody leads, although the lock is ours and everything is answered")
	}
}

// An unlock is held back, as by an agent that waits for a new leader of its servers; its repetition is answered; the same session
// takes the lock again. The one held back must not free that.
func TestLateUnlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		first := a.become(`{"id":"x"}`)
		f.watch(100 * time.Millisecond)
		a.store.delay(1, 3*time.Second)
		if status, body := a.post("/resign", `{"token":`+utoa(first.Token)+`}`); status != 200 {
			t.Fatalf("resign: %d %s", status, body)
		}
		second := a.become(`{"id":"x"}`)
		defer a.tether(second.Token)()
		waiting := b.campaign(`{"id":"y"}`)
		f.watch(6 * time.Second)
		if v := a.view(); v.Token != second.Token || v.Role(a.el.clock.Now()) != Leader {
			t.Errorf("a late unlock of token %d ended the leadership under %d: %+v", first.Token, second.Token, v)
		}
		select {
		case g := <-waiting:
			t.Errorf("b leads under %d while a's lease runs", g.Token)
		default:
		}
		a.post("/resign", `{"token":`+utoa(second.Token)+`}`)
		<-waiting
	})
}

// An attempt at a vacancy waits for its place in Consul's log, behind the lock of somebody else and the end of that session. Consul
// judged the lock-delay before both: nothing but the index of the vacancy keeps the attempt from taking the lock at once.
func TestLateLock(t *testing.T) {
	for name, removed := range map[string]bool{"first election of a key": true, "a key that was released": false} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFleet(t, testConfig("a"), testConfig("b"))
				defer f.close()
				a, b := f.nodes[0], f.nodes[1]
				f.watch(100 * time.Millisecond)
				if !removed {
					g := a.become(`{"id":"x"}`)
					a.post("/resign", `{"token":`+utoa(g.Token)+`}`)
					f.watch(100 * time.Millisecond)
				}
				b.store.queue(2, 300*time.Millisecond) // its candidacy, and then the attempt
				waiting := b.campaign(`{"id":"y"}`)
				for b.attempts() == 0 {
					f.watch(time.Millisecond)
				}
				g := a.become(`{"id":"x"}`)
				a.tether(g.Token)
				a.store.partition(true) // it does not hear that its session ends
				f.c.invalidate(f.c.holder(Key("app", "leader")))
				f.watch(5 * time.Second)
				if ng, ok := <-waiting; !ok || ng.Token <= g.Token {
					t.Errorf("%+v after %+v", ng, g)
				}
			})
		})
	}
}

// attempts counts the transactions of the elector that wait for their place in the log with an attempt at the lock.
func (n *node) attempts() int {
	n.store.mu.Lock()
	defer n.store.mu.Unlock()
	return n.store.attempts
}

// The leader of Consul's servers changes right after a session has ended, and the new one knows of no lock-delay yet.
func TestLockDelayUnknownToConsul(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{"id":"x"}`)
		a.tether(g.Token)
		waiting := b.campaign(`{"id":"y"}`)
		f.watch(time.Second)
		f.c.mu.Lock()
		f.c.lagging = true
		f.c.mu.Unlock()
		a.store.partition(true)
		f.c.invalidate(f.c.holder(Key("app", "leader")))
		f.watch(100 * time.Millisecond)
		if blocked := b.view().Blocked; blocked != ReasonLockDelay {
			t.Errorf("blocked: %q", blocked)
		}
		f.watch(3 * time.Second)
		if ng, ok := <-waiting; !ok || ng.Token <= g.Token {
			t.Errorf("%+v after %+v", ng, g)
		}
	})
}

// Many elections at once are read less often than they change, a few as often, and the last change is seen in any case.
func TestWatchRests(t *testing.T) {
	for many, most := range map[int]int{1: 1000, maxBatchOps: 1000, 1000: 10} {
		bubble(t, func(t *testing.T) {
			cfg := testConfig("a")
			cfg.Elections = nil
			for i := range many {
				cfg.Elections = append(cfg.Elections, "shard-"+utoa(uint64(i)))
			}
			f := newFleet(t, cfg)
			defer f.close()
			for _, name := range cfg.Elections {
				f.c.put(Key("app", name), "edited")
			}
			time.Sleep(time.Second)
			before := f.nodes[0].store.watches()
			for i := range 100 {
				f.c.put(Key("app", "shard-0"), utoa(uint64(i)))
				time.Sleep(2 * time.Millisecond)
			}
			reads := f.nodes[0].store.watches() - before
			if least := 100; reads > most || many <= maxBatchOps && reads < least {
				t.Errorf("%d elections were read %d times in 100 changes", many, reads)
			}
			last := f.c.entry(Key("app", "shard-0"))
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if v := f.nodes[0].el.m.elections["shard-0"].seen; v.Modify != last.Modify {
				t.Errorf("the last change, %d, was not seen: %d", last.Modify, v.Modify)
			}
		})
	}
}

// An elector restarts with a state file from before its last leadership, because the disk was full: its session is the same, the key
// is its own, but the token is not. It must not go on under the old one.
func TestStaleState(t *testing.T) {
	cfg := testConfig("a").Config
	m := newMachine(cfg, time.Now)
	now := clock.Instant(time.Hour)
	m.restore(now, Saved{Session: Session{ID: "s1", TTL: cfg.Lease}, Confirmed: now, Elections: map[string]SavedElection{
		"leader": {Candidate: "x", Lease: cfg.Lease, Token: 20, Key: KeyIndex{20, 20}, Record: Record{Leader: "x", Session: "s1", Term: 1}}}})
	later := Record{Leader: "x", Session: "s1", Term: 2, Token: 30}
	m.step(now, evObserved{Snapshot{Index: 31, Elections: map[string]Entry{"leader": {Session: "s1", KeyIndex: KeyIndex{20, 30}, Value: later.encode()}}}})
	lost, elected := false, uint64(0)
	for at := now; at < now.Add(3*time.Second); at = at.Add(10 * time.Millisecond) {
		m.step(at, evTick{})
		for _, fx := range m.take() {
			switch fx := fx.(type) {
			case fxRenew:
				m.step(at, evRenewed{session: "s1", sent: at, received: at})
			case fxCommit:
				r := Result{Applied: true, Keys: make([]KeyIndex, len(fx.batch.Ops)), Failed: map[int]Reason{}}
				for i, op := range fx.batch.Ops {
					if op.Verb == VerbUnlock && at < now.Add(cfg.Lease) {
						t.Error("released while an application may act by a grant of the earlier process")
					}
					r.Keys[i] = KeyIndex{20, 40}
					if op.Verb == VerbConfirm && op.KeyIndex != 30 {
						r.Applied, r.Failed[i] = false, ReasonChanged
					}
				}
				m.step(at, evCommitted{result: r})
			case fxEvent:
				if fx.event.Type == EventResumed {
					t.Errorf("resumed under token %d, the key was locked at 30", fx.event.Token)
				}
				if fx.event.Type == EventLost && !lost {
					lost = true
					m.step(at, evCampaign{election: "leader", id: "x"})
				}
				if fx.event.Type == EventElected && elected == 0 {
					elected = fx.event.Token
					if at < now.Add(cfg.Lease) {
						t.Error("elected anew while an application may act by a grant of the earlier process")
					}
				}
			}
		}
	}
	if !lost || elected != 40 {
		t.Errorf("lost %v, elected under %d; want a leadership of its own", lost, elected)
	}
}

// An elector is killed right after it has granted leadership: neither the key nor its state file tells of that yet. The next process has
// the same session, and sees a fresh lock of its own. It must not take it for a hand-over, and grant the same token again.
func TestLockOfAnEarlierProcess(t *testing.T) {
	cfg := testConfig("a").Config
	for name, after := range map[string]time.Duration{"at once": 0, "after a look at a server that lags": 100 * time.Millisecond, "when Consul answers late": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(cfg, time.Now)
			start := clock.Instant(time.Hour)
			m.restore(start, Saved{Session: Session{ID: "s1", TTL: cfg.Lease}, Confirmed: start})
			m.step(start, evCampaign{election: "leader", id: "y"})
			rec := Record{Leader: "x", Session: "s1", Term: 2}
			elected := uint64(0)
			for at := start; at < start.Add(after+3*time.Second); at = at.Add(10 * time.Millisecond) {
				if at == start && after == 100*time.Millisecond {
					m.step(at, evObserved{Snapshot{Index: 20, Elections: map[string]Entry{"leader": {Session: "s0", KeyIndex: KeyIndex{20, 20}}}}})
				}
				if at == start.Add(after) {
					m.step(at, evObserved{Snapshot{Index: 31, Elections: map[string]Entry{"leader": {Session: "s1", KeyIndex: KeyIndex{20, 30}, Value: rec.encode()}}}})
				}
				m.step(at, evTick{})
				for _, fx := range m.take() {
					switch fx := fx.(type) {
					case fxRenew:
						m.step(at, evRenewed{session: "s1", sent: at, received: at})
					case fxCommit:
						r := Result{Applied: true, Keys: make([]KeyIndex, len(fx.batch.Ops))}
						for i := range fx.batch.Ops {
							r.Keys[i] = KeyIndex{20, 40}
						}
						m.step(at, evCommitted{result: r})
					case fxEvent:
						if fx.event.Type == EventElected && elected == 0 {
							elected = fx.event.Token
							if at < start.Add(cfg.Lease) {
								t.Error("elected while an application may act by a grant of the earlier process")
							}
						}
					}
				}
			}
			if elected != 40 {
				t.Errorf("elected under %d, want a token of its own", elected)
			}
		})
	}
}
