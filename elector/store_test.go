package elector

import (
	"context"
	"fmt"
	"testing"
	"time"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
)

// world is a Consul with as many stores as a conformance test wants, and an operator's hands.
type world struct {
	store      func(cfg Config) Store
	invalidate func(session string)
	put        func(key, value string)
	remove     func(key string)
}

func modelWorld(testing.TB) world {
	c := newModelConsul()
	return world{
		store:      func(cfg Config) Store { return newModelStore(c, cfg) },
		invalidate: c.invalidate, put: c.put, remove: c.remove,
	}
}

func realWorld(t testing.TB) world {
	agent := consultest.Start(t)
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	kv := client.KV()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	return world{
		store:      func(cfg Config) Store { return NewConsulStore(client, cfg, clock.Boot()) },
		invalidate: func(id string) { _, err := client.Session().Destroy(id, nil); must(err) },
		put:        func(key, value string) { _, err := kv.Put(kvPair(key, value), nil); must(err) },
		remove:     func(key string) { _, err := kv.Delete(key, nil); must(err) },
	}
}

// TestStoreConformance holds the real Consul and the model to the same behaviour: what the machine relies on.
func TestStoreConformance(t *testing.T) {
	t.Run("model", func(t *testing.T) { conformance(t, modelWorld) })
	t.Run("consul", func(t *testing.T) { conformance(t, realWorld) })
}

// side is one elector in a conformance test.
type side struct {
	t *testing.T
	Store
	cfg     Config
	session string
}

func newSide(t *testing.T, w world, app, id string, lockDelay time.Duration) *side {
	t.Helper()
	cfg := Config{App: app, ID: id, Elections: []string{"leader"}, Lease: 5 * time.Second, Revocation: Safe}
	s := &side{t: t, Store: w.store(cfg), cfg: cfg}
	session, err := s.Open(t.Context(), SessionSpec{Name: app + " " + id, TTL: cfg.Lease, LockDelay: lockDelay})
	if err != nil {
		t.Fatal(err)
	}
	s.session = session.ID
	return s
}

// commit commits operations on the keys as they are now, unless they name an index.
func (s *side) commit(ops ...Op) Result {
	s.t.Helper()
	for i, op := range ops {
		if op.KeyIndex == 0 {
			ops[i].KeyIndex = s.entryOf(op.Election).Modify
		}
	}
	r, err := s.Commit(s.t.Context(), Batch{Session: s.session, Ops: ops})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// must commits one operation that has to succeed, and returns the key's index.
func (s *side) must(op Op) KeyIndex {
	s.t.Helper()
	r := s.commit(op)
	if !r.Applied {
		s.t.Fatalf("%s: not applied: %v %s", op.Verb, r.Failed, r.Detail)
	}
	return r.Keys[0]
}

// refused commits one operation that has to fail, for a reason.
func (s *side) refused(op Op, want Reason) {
	s.t.Helper()
	if r := s.commit(op); r.Applied || r.Failed[0] != want {
		s.t.Errorf("%s: applied %v, failed %v (%s), want %s", op.Verb, r.Applied, r.Failed, r.Detail, want)
	}
}

func (s *side) entry() Entry {
	s.t.Helper()
	return s.entryOf("leader")
}

func (s *side) entryOf(election string) Entry {
	s.t.Helper()
	e, err := s.Read(s.t.Context(), election)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func conformance(t *testing.T, build func(testing.TB) world) {
	w := build(t)
	lock := Op{Verb: VerbLock, Election: "leader", Value: []byte("a")}
	unlock := Op{Verb: VerbUnlock, Election: "leader", Value: []byte("free")}
	n := 0
	sides := func(t *testing.T, delay time.Duration) (a, b *side) {
		n++
		app := fmt.Sprintf("app%d", n)
		return newSide(t, w, app, "a", delay), newSide(t, w, app, "b", delay)
	}
	t.Run("a lock excludes others, and its index is the token", func(t *testing.T) {
		a, b := sides(t, 0)
		first := a.must(lock)
		b.refused(lock, ReasonHeld)
		if again := a.must(lock); again != first {
			t.Errorf("the same lock again: %+v, want %+v", again, first)
		}
		a.must(unlock)
		if second := b.must(lock); second.Modify <= first.Modify {
			t.Errorf("token %d after %d", second.Modify, first.Modify)
		}
	})
	t.Run("an edit leaves the lock alone, and the next token still grows", func(t *testing.T) {
		a, b := sides(t, 0)
		token := a.must(lock)
		w.put(Key(a.cfg.App, "leader"), "edited")
		e := a.entry()
		if e.Session != a.session || e.Create != token.Create || e.Modify <= token.Modify {
			t.Errorf("after an edit: %+v", e)
		}
		a.refused(Op{Verb: VerbConfirm, Election: "leader", KeyIndex: token.Modify}, ReasonChanged)
		a.must(unlock)
		if next := b.must(lock); next.Modify <= token.Modify {
			t.Errorf("token %d after %d", next.Modify, token.Modify)
		}
	})
	t.Run("a deleted key is free at once, and made anew", func(t *testing.T) {
		a, b := sides(t, 5*time.Second)
		token := a.must(lock)
		w.remove(Key(a.cfg.App, "leader"))
		next := b.must(lock)
		if next.Modify <= token.Modify || next.Create == token.Create {
			t.Errorf("%+v after %+v", next, token)
		}
		a.refused(unlock, ReasonNotHeld)
	})
	t.Run("only the holder may unlock, update, confirm or transfer", func(t *testing.T) {
		a, b := sides(t, 0)
		token := a.must(lock)
		b.refused(unlock, ReasonNotHeld)
		b.refused(Op{Verb: VerbUpdate, Election: "leader", Value: []byte("b")}, ReasonNotHeld)
		b.refused(Op{Verb: VerbConfirm, Election: "leader", KeyIndex: token.Modify}, ReasonNotHeld)
		b.refused(Op{Verb: VerbTransfer, Election: "leader", Value: []byte("b"), Successor: b.session}, ReasonNotHeld)
		if e := a.entry(); e.Session != a.session || e.Modify != token.Modify {
			t.Errorf("refused operations changed the key: %+v", e)
		}
		a.must(Op{Verb: VerbConfirm, Election: "leader", KeyIndex: token.Modify})
	})
	t.Run("what changes a held key does nothing once the key has changed", func(t *testing.T) {
		a, b := sides(t, 0)
		first := a.must(lock)
		a.must(unlock)
		second := a.must(lock) // the same session again: nothing else tells the two leaderships apart
		for _, late := range []Op{
			{Verb: VerbUnlock, Value: []byte("late")},
			{Verb: VerbTransfer, Value: []byte("late"), Successor: b.session},
			{Verb: VerbUpdate, Value: []byte("late")},
		} {
			late.Election, late.KeyIndex = "leader", first.Modify
			a.refused(late, ReasonChanged)
		}
		if e := a.entry(); e.Session != a.session || e.Modify != second.Modify {
			t.Errorf("a late request changed the key: %+v", e)
		}
	})
	t.Run("a lock is taken only of a key that is as it was seen", func(t *testing.T) {
		a, b := sides(t, 0)
		stale := func(index uint64, want Reason) {
			t.Helper()
			late := Op{Verb: VerbLock, Election: "leader", Value: []byte("late"), KeyIndex: index}
			r, err := b.Commit(t.Context(), Batch{Session: b.session, Ops: []Op{late}})
			if err != nil || r.Applied || r.Failed[0] != want {
				t.Errorf("index %d: %+v, %v, want %s", index, r, err, want)
			}
		}
		stale(7, ReasonChanged) // there is no key
		first := a.must(lock)
		stale(0, ReasonHeld) // that it is not free says more than that it has changed
		stale(7, ReasonHeld)
		free := a.must(unlock)
		stale(0, ReasonChanged)
		stale(first.Modify, ReasonChanged)
		w.put(Key(a.cfg.App, "leader"), "edited")
		stale(free.Modify, ReasonChanged)
		if e := a.entry(); e.Session != "" || string(e.Value) != "edited" {
			t.Errorf("a late attempt changed the key: %+v", e)
		}
		w.remove(Key(a.cfg.App, "leader"))
		stale(free.Modify, ReasonChanged)
		again := a.must(lock) // made anew
		if r := a.commit(Op{Verb: VerbLock, Election: "leader", Value: lock.Value, KeyIndex: first.Modify}); r.Failed[0] != ReasonChanged {
			t.Errorf("our own lock, as it was once: %+v", r)
		}
		if same := a.must(lock); same != again {
			t.Errorf("our own lock, as it is: %+v, was %+v", same, again)
		}
	})
	t.Run("a transfer leaves no vacancy", func(t *testing.T) {
		a, b := sides(t, 5*time.Second)
		token := a.must(lock)
		moved := a.must(Op{Verb: VerbTransfer, Election: "leader", Value: []byte("b"), Successor: b.session})
		e := b.entry()
		if e.Session != b.session || string(e.Value) != "b" || e.Modify != moved.Modify || moved.Modify <= token.Modify {
			t.Errorf("after the transfer: %+v, reported %+v", e, moved)
		}
		b.refused(Op{Verb: VerbTransfer, Election: "leader", Successor: "00000000-0000-0000-0000-000000000000"}, ReasonSuccessor)
		if b.entry().Session != b.session {
			t.Error("a transfer to nobody released the lock")
		}
	})
	t.Run("invalidation starts the lock-delay, a release does not", func(t *testing.T) {
		a, b := sides(t, 700*time.Millisecond)
		a.must(lock)
		start := time.Now()
		w.invalidate(a.session)
		for _, who := range []*side{b, a} {
			if r := who.commit(lock); r.Failed[0] != ReasonLockDelay && time.Since(start) < 700*time.Millisecond {
				t.Errorf("within the lock-delay: %+v", r)
			}
		}
		for b.commit(lock).Failed[0] == ReasonLockDelay {
			time.Sleep(5 * time.Millisecond)
		}
		if took := time.Since(start); took < 690*time.Millisecond || b.entry().Session != b.session {
			t.Errorf("locked after %s", took)
		}
		a.refused(lock, ReasonNoSession)
		b.must(unlock)
		b.must(lock)
	})
	t.Run("without lock-delay the next may lock at once", func(t *testing.T) {
		a, b := sides(t, 0)
		a.must(lock)
		w.invalidate(a.session)
		b.must(lock)
	})
	t.Run("a batch is applied whole or not at all", func(t *testing.T) {
		a, b := sides(t, 0)
		b.must(lock)
		other := Op{Verb: VerbLock, Election: "other", Value: []byte("a")}
		if r := a.commit(other, lock); r.Applied || r.Failed[1] != ReasonHeld || len(r.Failed) != 1 {
			t.Errorf("%+v", r)
		}
		if e, err := a.Read(t.Context(), "other"); err != nil || e.Session != "" {
			t.Errorf("%+v, %v", e, err)
		}
	})
	t.Run("a session that ended is gone", func(t *testing.T) {
		a, _ := sides(t, 0)
		if err := a.Renew(t.Context(), a.session); err != nil {
			t.Fatal(err)
		}
		w.invalidate(a.session)
		if err := a.Renew(t.Context(), a.session); !gone(err) {
			t.Errorf("renewal answered %v", err)
		}
	})
	t.Run("the watch wakes up, and shows who is in the race", func(t *testing.T) {
		a, b := sides(t, 0)
		before, err := b.Watch(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		woken := make(chan Snapshot, 1)
		go func() {
			for after := before.Index; ; {
				s, err := b.Watch(t.Context(), after)
				if err != nil {
					return
				}
				if after = s.Index; s.Elections["leader"].Session != "" {
					woken <- s
					return
				}
			}
		}()
		if _, err := a.Commit(t.Context(), Batch{Session: a.session, Ops: []Op{lock}, Candidate: []byte("me"), Leads: []string{"leader"}}); err != nil {
			t.Fatal(err)
		}
		select {
		case s := <-woken:
			if s.Elections["leader"].Session != a.session || s.Candidates[candidateKey("a", a.session)].Session != a.session || string(s.Candidates[candidateKey("a", a.session)].Value) != "me" {
				t.Errorf("%+v", s)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the watch slept through a change")
		}
	})
	t.Run("sweeping takes away the dead, not the living", func(t *testing.T) {
		a, b := sides(t, 0)
		for _, s := range []*side{a, b} {
			if _, err := s.Commit(t.Context(), Batch{Session: s.session, Candidate: []byte("me")}); err != nil {
				t.Fatal(err)
			}
		}
		before, err := a.Watch(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		w.invalidate(b.session)
		key := candidateKey("b", b.session)
		if err := a.Sweep(t.Context(), Remains{key, before.Candidates[key].Modify, "b"}); err == nil {
			t.Error("a record that has changed was swept away")
		}
		dead, err := a.Watch(t.Context(), 0)
		if err != nil || dead.Candidates[key].Session != "" {
			t.Fatal(dead.Candidates, err)
		}
		if err := a.Sweep(t.Context(), Remains{key, dead.Candidates[key].Modify, "b"}); err != nil {
			t.Error(err)
		}
		if after, err := a.Watch(t.Context(), 0); err != nil || len(after.Candidates) != 1 {
			t.Errorf("%+v, %v", after.Candidates, err)
		}
	})
	t.Run("closing takes the candidate and the session away", func(t *testing.T) {
		a, b := sides(t, 0)
		if _, err := a.Commit(t.Context(), Batch{Session: a.session, Candidate: []byte("me")}); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(t.Context(), a.session); err != nil {
			t.Fatal(err)
		}
		s, err := b.Watch(t.Context(), 0)
		if err != nil || len(s.Candidates) != 0 {
			t.Errorf("%+v, %v", s.Candidates, err)
		}
		if err := a.Renew(context.WithoutCancel(t.Context()), a.session); !gone(err) {
			t.Errorf("renewal answered %v", err)
		}
	})
}
