package elector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"
)

// modelConsul is a Consul small enough to be understood, with the behaviour that the conformance tests find in the real one, and
// with the faults that a real one has at times nobody can choose: expiry races, lost answers, a changed leader, an operator.
type modelConsul struct {
	mu       sync.Mutex
	index    uint64
	serial   int
	sessions map[string]*modelSession
	keys     map[string]Entry // by full key
	locked   map[string]uint64
	delays   map[string]time.Time // lock-delay by key
	tags     map[string][]string  // by elector
	changed  chan struct{}
	minTTL   time.Duration

	// lagging: a new leader of the servers has not yet applied what the last one committed, and knows of no lock-delay.
	lagging bool

	// applyLag is the time between the decision to expire a session and its end. In between a renewal is answered as if nothing were.
	applyLag time.Duration
	falseOK  int // renewals answered "yes" for a session that was already doomed
}

type modelSession struct {
	id        string
	ttl       time.Duration
	lockDelay time.Duration
	timer     *time.Timer
	doomed    bool
}

func newModelConsul() *modelConsul {
	return &modelConsul{index: 10, sessions: map[string]*modelSession{}, keys: map[string]Entry{}, locked: map[string]uint64{}, delays: map[string]time.Time{},
		tags: map[string][]string{}, changed: make(chan struct{})}
}

// bump is one Raft entry.
func (c *modelConsul) bump() uint64 {
	c.index++
	close(c.changed)
	c.changed = make(chan struct{})
	return c.index
}

func (c *modelConsul) arm(s *modelSession) {
	if s.timer != nil {
		s.timer.Stop()
	}
	s.timer = time.AfterFunc(2*s.ttl, func() {
		c.mu.Lock()
		s.doomed = true
		c.mu.Unlock()
		time.AfterFunc(c.applyLag, func() { c.invalidate(s.id) })
	})
}

// invalidate ends a session as expiry, an operator's button or the end of its node do.
func (c *modelConsul) invalidate(id string) { c.invalidatedAt(id, 0) }

// invalidatedAt ends a session as if that had happened ago.
func (c *modelConsul) invalidatedAt(id string, ago time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sessions[id]
	if s == nil {
		return
	}
	s.timer.Stop()
	delete(c.sessions, id)
	index := c.bump()
	for key, e := range c.keys {
		if e.Session == id {
			e.Session, e.Modify = "", index
			c.keys[key] = e
			if s.lockDelay > 0 {
				c.delays[key] = time.Now().Add(s.lockDelay - ago)
			}
		}
	}
}

// changeLeader does what a new server leader does: every session gets its full time again.
func (c *modelConsul) changeLeader() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if !s.doomed {
			c.arm(s)
		}
	}
}

// put and remove are what an operator does in the UI.
func (c *modelConsul) put(key, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.keys[key]
	e.Modify = c.bump()
	if e.Create == 0 {
		e.Create = e.Modify
	}
	e.Value = []byte(value)
	c.locked[key] = 0
	c.keys[key] = e
}

func (c *modelConsul) remove(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.keys, key)
	delete(c.locked, key)
	c.bump()
}

func (c *modelConsul) entry(key string) Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keys[key]
}

func (c *modelConsul) holder(key string) string { return c.entry(key).Session }

// lies counts the renewals answered for sessions whose end was decided.
func (c *modelConsul) lies() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.falseOK
}

func (c *modelConsul) now() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.index
}

// modelStore is one elector's connection to a modelConsul.
type modelStore struct {
	c      *modelConsul
	prefix string
	id     string

	mu       sync.Mutex
	cut      bool // nothing arrives, nothing is answered
	loseNext int  // so many answers are lost after the request took effect
	lateNext int  // so many transactions are held back by late, and their answers are lost
	late     time.Duration
	raftNext int // so many transactions take raft from the leader's check of the lock-delay to their place in the log
	raft     time.Duration
	attempts int                       // at a lock, that took so long
	latency  time.Duration             // of each request, half before and half after
	pace     func(n int) time.Duration // latency of the n-th renewal, from 0; negative: it is never answered
	sent     []time.Time               // when the renewals were sent that pace was asked about
	answered time.Time                 // when the latest of those was sent that was answered
	restored chan struct{}
	asked    int // watches
}

func newModelStore(c *modelConsul, cfg Config) *modelStore {
	return &modelStore{c: c, prefix: kvRoot + cfg.App + "/", id: cfg.ID, restored: make(chan struct{})}
}

func (s *modelStore) partition(cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = cut
	if !cut {
		close(s.restored)
		s.restored = make(chan struct{})
	}
}

// lose loses the next n answers; slow gives every request a latency.
func (s *modelStore) lose(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loseNext = n
}

// delay holds the next n transactions back, as an agent does that waits for a new leader of its servers.
func (s *modelStore) delay(n int, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lateNext, s.late = n, d
}

// queue lets the next n transactions wait for their place in the log, as on a leader whose disk is busy.
func (s *modelStore) queue(n int, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raftNext, s.raft = n, d
}

func (s *modelStore) slow(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency = d
}

// paced gives every renewal a latency of its own.
func (s *modelStore) paced(pace func(n int) time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pace, s.sent = pace, nil
}

// watches is how often the watch asked.
func (s *modelStore) watches() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// newest is when the latest of the paced renewals was sent that was answered.
func (s *modelStore) newest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered
}

var errLost = errors.New("the answer was lost")

// call runs f as a request: it may not arrive, and its answer may not come back.
func (s *modelStore) call(ctx context.Context, f func() error) error {
	s.mu.Lock()
	latency := s.latency
	s.mu.Unlock()
	return s.callIn(ctx, latency, f)
}

// callIn is a call that takes latency.
func (s *modelStore) callIn(ctx context.Context, latency time.Duration, f func() error) error {
	s.mu.Lock()
	cut, half := s.cut, latency/2
	s.mu.Unlock()
	if cut {
		<-ctx.Done()
		return ctx.Err()
	}
	if half > 0 {
		sleep(ctx, half)
	}
	err := f()
	s.mu.Lock()
	cut = s.cut
	lost := s.loseNext > 0
	if lost {
		s.loseNext--
	}
	s.mu.Unlock()
	switch {
	case cut:
		<-ctx.Done()
		return ctx.Err()
	case lost:
		return errLost
	}
	if half > 0 {
		sleep(ctx, half)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (s *modelStore) Open(ctx context.Context, spec SessionSpec) (session Session, err error) {
	err = s.call(ctx, func() error {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		s.c.serial++
		m := &modelSession{id: fmt.Sprintf("session-%d-%s", s.c.serial, s.id), ttl: max(spec.TTL, s.c.minTTL), lockDelay: spec.LockDelay}
		s.c.sessions[m.id] = m
		s.c.arm(m)
		s.c.bump()
		s.c.tags[s.id] = []string{}
		session = Session{ID: m.id, TTL: m.ttl, Node: VirtualNode, Catalog: true}
		return nil
	})
	return session, err
}

func (s *modelStore) Adopt(Session) {}

func (s *modelStore) Renew(ctx context.Context, id string) error {
	began := time.Now()
	s.mu.Lock()
	latency := s.latency
	if s.pace != nil {
		latency = s.pace(len(s.sent))
		s.sent = append(s.sent, began)
	}
	s.mu.Unlock()
	if latency < 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	err := s.callIn(ctx, latency, func() error {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		m := s.c.sessions[id]
		if m == nil {
			return errSessionGone
		}
		if m.doomed {
			s.c.falseOK++
		} else {
			s.c.arm(m)
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && began.After(s.answered) {
		s.answered = began
	}
	return err
}

func (s *modelStore) Commit(ctx context.Context, b Batch) (Result, error) {
	done := make(chan Result, 1) // a late request has nobody to tell
	s.mu.Lock()
	held, late := s.lateNext > 0, s.late
	if held {
		s.lateNext--
	}
	raft := time.Duration(0)
	if !held && s.raftNext > 0 {
		s.raftNext--
		raft = s.raft
	}
	s.mu.Unlock()
	if held {
		time.AfterFunc(late, func() {
			s.c.mu.Lock()
			defer s.c.mu.Unlock()
			s.c.transaction(s, b)
		})
		<-ctx.Done()
		return Result{}, ctx.Err()
	}
	err := s.call(ctx, func() error {
		if raft > 0 {
			return s.inQueue(ctx, b, raft, done)
		}
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		done <- s.c.transaction(s, b)
		return nil
	})
	if err != nil {
		return Result{}, err
	}
	return <-done, nil
}

func (c *modelConsul) transaction(s *modelStore, b Batch) Result {
	if r, ok := c.admit(s, b); !ok {
		return r
	}
	return c.apply(s, b)
}

// admit is what the servers' leader does before a transaction goes into the log: it alone knows of lock-delays.
func (c *modelConsul) admit(s *modelStore, b Batch) (Result, bool) {
	r := Result{Failed: map[int]Reason{}}
	for i, op := range b.Ops {
		takes := op.Verb == VerbLock || op.Verb == VerbTransfer || op.Verb == VerbUpdate
		if takes && !c.lagging && time.Now().Before(c.delays[s.prefix+op.Election]) {
			r.Failed[i] = ReasonLockDelay
		}
	}
	return r, len(r.Failed) == 0
}

// inQueue is a transaction that waits for its place in the log, whether its sender does or not.
func (s *modelStore) inQueue(ctx context.Context, b Batch, wait time.Duration, done chan<- Result) error {
	s.c.mu.Lock()
	r, ok := s.c.admit(s, b)
	s.c.mu.Unlock()
	if !ok {
		done <- r
		return nil
	}
	if len(b.Ops) > 0 && b.Ops[0].Verb == VerbLock {
		s.mu.Lock()
		s.attempts++
		s.mu.Unlock()
	}
	applied := make(chan struct{})
	time.AfterFunc(wait, func() {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		done <- s.c.apply(s, b)
		close(applied)
	})
	select {
	case <-applied:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// apply is a transaction: all or nothing.
func (c *modelConsul) apply(s *modelStore, b Batch) Result {
	keys, locked := maps.Clone(c.keys), maps.Clone(c.locked)
	index := c.index + 1
	r := Result{Applied: true, Keys: make([]KeyIndex, len(b.Ops)), Failed: map[int]Reason{}}
	fail := func(i int, why Reason) { r.Applied, r.Failed[i] = false, why }
	for i, op := range b.Ops {
		key := s.prefix + op.Election
		e, exists := keys[key]
		switch op.Verb {
		case VerbLock:
			if why := c.lockable(e, b.Session); why != ReasonNone {
				fail(i, why)
				continue
			}
			if e.Modify != op.KeyIndex {
				fail(i, ReasonChanged)
				continue
			}
			e = lockedEntry(e, exists, b.Session, op.Value, index, locked, key)
		case VerbUnlock, VerbTransfer:
			if e.Session != b.Session || e.Session == "" {
				fail(i, ReasonNotHeld)
				continue
			}
			if e.Modify != op.KeyIndex {
				fail(i, ReasonChanged)
				continue
			}
			e.Session, e.Value, e.Modify = "", op.Value, index
			if op.Verb == VerbTransfer {
				if c.sessions[op.Successor] == nil {
					fail(i, ReasonSuccessor)
					continue
				}
				e = lockedEntry(e, true, op.Successor, op.Value, index, locked, key)
			}
		case VerbConfirm, VerbUpdate:
			if op.Verb == VerbUpdate && exists && e.Session == "" {
				fail(i, ReasonChanged) // the lock by itself would succeed
				continue
			}
			if !exists || e.Session != b.Session {
				fail(i, ReasonNotHeld)
				continue
			}
			if e.Modify != op.KeyIndex {
				fail(i, ReasonChanged)
				continue
			}
			if op.Verb == VerbUpdate {
				e = lockedEntry(e, true, b.Session, op.Value, index, locked, key)
			}
		}
		keys[key] = e
		r.Keys[i] = e.KeyIndex
	}
	if b.Candidate != nil {
		key := s.prefix + candidateKey(s.id, b.Session)
		if why := c.lockable(keys[key], b.Session); why != ReasonNone {
			fail(-1, why)
		} else {
			e, exists := keys[key]
			keys[key] = lockedEntry(e, exists, b.Session, b.Candidate, index, locked, key)
		}
	}
	if !r.Applied {
		return r
	}
	c.keys, c.locked = keys, locked
	if b.Leads != nil {
		c.tags[s.id] = b.Leads
	}
	c.bump()
	return r
}

func (c *modelConsul) lockable(e Entry, session string) Reason {
	switch {
	case c.sessions[session] == nil:
		return ReasonNoSession
	case e.Session != "" && e.Session != session:
		return ReasonHeld
	}
	return ReasonNone
}

func lockedEntry(e Entry, exists bool, session string, value []byte, index uint64, locked map[string]uint64, key string) Entry {
	if exists && e.Session == session && string(e.Value) == string(value) {
		return e // nothing changes, not even the index
	}
	if !exists {
		e.Create = index
	}
	if e.Session != session {
		locked[key]++
	}
	e.Session, e.Value, e.Modify = session, value, index
	return e
}

func (s *modelStore) Watch(ctx context.Context, after uint64) (snap Snapshot, err error) {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	for {
		var changed chan struct{}
		s.mu.Lock()
		restored := s.restored
		s.mu.Unlock()
		err := s.call(ctx, func() error {
			s.c.mu.Lock()
			defer s.c.mu.Unlock()
			changed = s.c.changed
			snap = Snapshot{Index: s.c.index, Elections: map[string]Entry{}, Candidates: map[string]Entry{}, Requests: map[string]Entry{}}
			for key, e := range s.c.keys {
				name, ours := cutPrefix(key, s.prefix)
				if _, ok := cutPrefix(name, candidateFolder); ours && ok {
					snap.Candidates[name] = e
				} else if election, ok := strings.CutPrefix(name, requestFolder); ok {
					snap.Requests[election] = e
				} else if ours {
					snap.Elections[name] = e
				}
			}
			return nil
		})
		if err != nil || snap.Index > after {
			return snap, err
		}
		select {
		case <-changed:
		case <-restored:
		case <-ctx.Done():
			return snap, ctx.Err()
		}
	}
}

func (s *modelStore) Read(ctx context.Context, election string) (e Entry, err error) {
	err = s.call(ctx, func() error {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		e = s.c.keys[s.prefix+election]
		return nil
	})
	return e, err
}

func (s *modelStore) Sweep(ctx context.Context, r Remains) error {
	return s.call(ctx, func() error {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		key := s.prefix + r.Key
		if s.c.keys[key].Modify != r.Index {
			return errors.New("the record has changed")
		}
		delete(s.c.keys, key)
		if r.Instance != "" {
			delete(s.c.tags, r.Instance)
		}
		s.c.bump()
		return nil
	})
}

func (s *modelStore) Close(ctx context.Context, session string) error {
	return s.call(ctx, func() error {
		s.c.mu.Lock()
		delete(s.c.keys, s.prefix+candidateKey(s.id, session))
		delete(s.c.tags, s.id)
		s.c.mu.Unlock()
		s.c.invalidate(session)
		return nil
	})
}

func cutPrefix(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):], true
	}
	return s, false
}
