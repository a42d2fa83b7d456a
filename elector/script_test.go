package elector

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/clock"
)

// script drives a machine event by event, without a clock, a store or a goroutine.
type script struct {
	t   *testing.T
	m   *machine
	now clock.Instant
}

func newScript(t *testing.T, cfg Config) *script {
	return &script{t: t, m: newMachine(cfg, func() time.Time { return time.Unix(1, 0) }), now: clock.Instant(time.Hour)}
}

// do feeds an event and returns what the machine wants done, in words.
func (s *script) do(ev any) []string {
	s.t.Helper()
	s.m.step(s.now, ev)
	var words []string
	for _, fx := range s.m.take() {
		switch fx := fx.(type) {
		case fxEvent:
			words = append(words, strings.TrimSpace(fmt.Sprintf("%s %s", fx.event.Type, fx.event.Reason)))
		case fxCommit:
			for _, op := range fx.batch.Ops {
				words = append(words, op.Verb.String())
			}
			if len(fx.batch.Ops) == 0 {
				words = append(words, "candidate")
			}
		case fxOpen:
			words = append(words, "open")
		case fxRenew:
			words = append(words, "renew")
		case fxDestroy:
			words = append(words, "destroy")
		case fxWatch:
			words = append(words, "watch")
		case fxAnswer:
			words = append(words, "answer")
		case fxClose:
			words = append(words, "close")
		case fxDone:
			words = append(words, "done")
		}
	}
	return words
}

func (s *script) want(ev any, words ...string) {
	s.t.Helper()
	if got := s.do(ev); !slices.Equal(got, words) {
		s.t.Errorf("%T: got %q, want %q", ev, got, words)
	}
}

// committed answers the batch under way: every operation's key gets modify index at (created at 20, where it is new).
func (s *script) committed(at uint64, words ...string) {
	s.t.Helper()
	if s.m.committing == nil {
		s.t.Fatal("no batch is under way")
	}
	keys := make([]KeyIndex, len(s.m.committing.Ops))
	for i := range keys {
		keys[i] = KeyIndex{Create: 20, Modify: at}
		if seen := s.m.elections[s.m.committing.Ops[i].Election].seen; seen.Create != 0 {
			keys[i].Create = seen.Create
		}
	}
	s.want(evCommitted{result: Result{Applied: true, Keys: keys}}, words...)
}

func (s *script) refused(why Reason, words ...string) {
	s.t.Helper()
	s.want(evCommitted{result: Result{Failed: map[int]Reason{0: why}}}, words...)
}

func (s *script) observed(index uint64, e Entry, words ...string) {
	s.t.Helper()
	s.want(evObserved{Snapshot{Index: index, Elections: map[string]Entry{"leader": e}, Candidates: map[string]Entry{}}}, words...)
}

// elected brings the machine to leadership under token 20.
func (s *script) elected() {
	s.t.Helper()
	s.want(evTick{}, "open")
	s.want(evOpened{session: Session{ID: "s1", TTL: s.m.cfg.Lease}, sent: s.now}, "candidate")
	s.committed(15)
	s.want(evObserved{Snapshot{Index: 15}})
	s.want(evCampaign{election: "leader", id: "x"}, "lock")
	s.committed(20, "elected", "update")
	s.m.step(s.now, evTether{election: "leader", token: 20})
	s.committed(21)
	s.own(21)
}

// own is the watch that shows our own lock.
func (s *script) own(index uint64) {
	s.t.Helper()
	s.observed(index, Entry{Session: "s1", KeyIndex: KeyIndex{20, 21}})
}

func TestScripts(t *testing.T) {
	cfg := testConfig("a").Config
	run := func(name string, f func(*script)) {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, cfg)
			s.elected()
			f(s)
		})
	}
	run("an observation from before our lock changes nothing", func(s *script) {
		s.observed(19, Entry{})
		s.observed(20, Entry{Session: "other", KeyIndex: KeyIndex{5, 19}})
		if s.m.role(s.m.elections["leader"]) != Leader {
			s.t.Error("not leader any more")
		}
	})
	run("somebody else's lock ends leadership", func(s *script) {
		s.observed(30, Entry{Session: "other", KeyIndex: KeyIndex{20, 30}}, "lost superseded", "leader_changed", "candidate")
	})
	run("a vacancy ends leadership", func(s *script) {
		s.observed(30, Entry{KeyIndex: KeyIndex{20, 30}}, "lost revoked", "vacant", "candidate")
	})
	run("a vacancy behind a write of ours, seen before its answer, ends leadership with the answer", func(s *script) {
		s.observed(30, Entry{Session: "s1", KeyIndex: KeyIndex{20, 30}}, "update")
		s.observed(32, Entry{KeyIndex: KeyIndex{20, 32}})
		s.committed(31, "lost revoked", "vacant", "candidate")
	})
	run("also where the write was refused for the lock-delay behind that vacancy", func(s *script) {
		s.observed(30, Entry{Session: "s1", KeyIndex: KeyIndex{20, 30}}, "update")
		s.observed(32, Entry{KeyIndex: KeyIndex{20, 32}})
		s.refused(ReasonLockDelay, "lost revoked", "vacant")
	})
	run("a write that was refused because the lock is gone waits for the watch to show it", func(s *script) {
		s.observed(30, Entry{Session: "s1", KeyIndex: KeyIndex{20, 30}}, "update")
		s.refused(ReasonNotHeld, "lost superseded", "candidate")
		if e := s.m.elections["leader"]; e.lock != lockNone {
			s.t.Errorf("lock %d", e.lock)
		}
	})
	run("so does somebody else's lock", func(s *script) {
		s.observed(30, Entry{Session: "s1", KeyIndex: KeyIndex{20, 30}}, "update")
		s.observed(32, Entry{Session: "other", KeyIndex: KeyIndex{20, 32}})
		s.committed(31, "lost superseded", "leader_changed", "candidate")
	})
	run("a key that was made anew is not ours, even if it names us", func(s *script) {
		s.observed(30, Entry{Session: "s1", KeyIndex: KeyIndex{28, 30}}, "lost key_deleted", "unlock")
	})
	run("an answer before the deadline prolongs it, without asking further", func(s *script) {
		s.now = s.now.Add(700 * time.Millisecond)
		s.want(evTick{}, "renew")
		s.want(evRenewed{session: "s1", sent: s.now, received: s.now})
	})
	run("a token that Consul refuses is no silence", func(s *script) {
		s.now = s.now.Add(700 * time.Millisecond)
		s.want(evTick{}, "renew")
		s.want(evRenewed{session: "s1", sent: s.now, received: s.now, err: api.StatusError{Code: 403, Body: "ACL not found"}})
		s.now = s.now.Add(1300 * time.Millisecond)
		s.want(evTick{}, "suspended token_refused", "renew")
	})
	run("an answer after the deadline has to be confirmed", func(s *script) {
		s.suspend()
		s.want(evRenewed{session: "s1", sent: s.now, received: s.now}, "watch", "confirm")
		s.committed(21, "resumed")
		if s.m.elections["leader"].token != 20 {
			s.t.Error("another token")
		}
	})
	run("a key that changed meanwhile is a new term", func(s *script) {
		s.suspend()
		s.observed(40, Entry{Session: "s1", KeyIndex: KeyIndex{20, 21}})
		s.want(evRenewed{session: "s1", sent: s.now, received: s.now}, "watch", "confirm")
		if op := s.m.committing.Ops[0]; op.KeyIndex != 21 {
			s.t.Errorf("confirms index %d", op.KeyIndex)
		}
		s.refused(ReasonChanged, "lost superseded", "unlock")
	})
	run("the key index that is confirmed is the one we know, not one we were shown", func(s *script) {
		s.want(evPublish{election: "leader", token: 20, value: 1}, "update")
		s.observed(50, Entry{Session: "s1", KeyIndex: KeyIndex{20, 45}}) // an operator's, while our own write is under way
		s.committed(51)
		s.suspend()
		s.want(evRenewed{session: "s1", sent: s.now, received: s.now}, "watch", "confirm")
		if op := s.m.committing.Ops[0]; op.KeyIndex != 51 {
			s.t.Errorf("confirms index %d", op.KeyIndex)
		}
	})
	run("a session that is gone ends everything, and another is opened", func(s *script) {
		s.now = s.now.Add(700 * time.Millisecond)
		s.want(evTick{}, "renew")
		s.want(evRenewed{session: "s1", sent: s.now, received: s.now, err: errSessionGone}, "lost session_expired", "open")
		s.want(evOpened{session: Session{ID: "s2", TTL: s.m.cfg.Lease}, sent: s.now}, "watch", "candidate")
	})
	run("an answer for an old session is nobody's", func(s *script) {
		s.want(evRenewed{session: "s0", sent: s.now, received: s.now, err: errSessionGone})
	})
	run("a candidate record that cannot be locked means that the session is gone", func(s *script) {
		s.want(evCampaign{election: "leader", id: "y"}) // waits behind x: nothing to tell
		s.m.candDirty, s.m.candBytes = true, nil
		s.want(evTick{}, "candidate")
		s.want(evCommitted{result: Result{Failed: map[int]Reason{-1: ReasonNoSession}}}, "lost session_expired", "open")
	})
	run("a lock-delay that Consul sees before our lock does not end leadership", func(s *script) {
		s.want(evPublish{election: "leader", token: 20, value: 1}, "update")
		s.refused(ReasonLockDelay)
		s.now = s.now.Add(100 * time.Millisecond)
		s.want(evTick{}, "update")
	})
	run("a stream that nobody reads is not the application's end", func(s *script) {
		s.want(evTether{election: "leader", token: 20, closed: true, stuck: true})
		e := s.m.elections["leader"]
		if e.holder == nil || e.holder.until != s.now.Add(s.m.cfg.Lease) {
			s.t.Fatalf("holder %+v", e.holder)
		}
		s.now = s.now.Add(s.m.cfg.Lease)
		s.m.step(s.now, evTick{})
		if e.holder != nil || e.past[0].reason != "app_lease_expired" {
			s.t.Errorf("holder %+v, %+v", e.holder, e.past)
		}
	})
	run("the application's silence ends leadership", func(s *script) {
		s.m.step(s.now, evTether{election: "leader", token: 20, closed: true})
		if e := s.m.elections["leader"]; e.holder != nil || e.past[0].reason != "tether_closed" {
			s.t.Errorf("%+v", e.past)
		}
	})
}

// suspend lets the session's lease run out, with a renewal under way that has not been answered.
func (s *script) suspend() {
	s.t.Helper()
	s.now = s.now.Add(700 * time.Millisecond)
	s.want(evTick{}, "renew")
	s.want(evRenewed{session: "s1", sent: s.now, received: s.now, err: errLost})
	s.now = s.now.Add(1300 * time.Millisecond)
	s.want(evTick{}, "suspended no_answer_from_consul", "renew")
}

// A leadership that ends before its candidate was told leaves the candidate waiting.
func TestLostBeforeItWasTold(t *testing.T) {
	s := newScript(t, testConfig("a").Config)
	s.candidacy()
	s.committed(20, "elected", "update")
	led := Record{Leader: "x", Session: "s1", Term: 2, HowTo: howToHeld}.encode()
	s.committed(21)
	s.observed(22, Entry{Session: "other", KeyIndex: KeyIndex{20, 22}, Value: led}, "lost superseded", "leader_changed")
	s.observed(24, released(24), "vacant", "lock")
}

// A candidate tries once when it sees a vacancy, and never while it sees a leader.
func TestNoHerd(t *testing.T) {
	s := newScript(t, testConfig("a").Config)
	s.want(evTick{}, "open")
	s.want(evOpened{session: Session{ID: "s1", TTL: s.m.cfg.Lease}, sent: s.now}, "candidate")
	s.committed(15)
	s.observed(15, Entry{Session: "other", KeyIndex: KeyIndex{10, 14}}, "leader_changed")
	s.want(evCampaign{election: "leader", id: "x"}, "candidate")
	s.committed(16)
	s.observed(17, released(17), "vacant", "lock")
	s.refused(ReasonHeld)
	s.observed(18, Entry{Session: "third", KeyIndex: KeyIndex{10, 18}}, "leader_changed")
	for range 50 {
		s.now = s.now.Add(20 * time.Millisecond)
		for _, fx := range s.do(evTick{}) {
			if fx == "lock" {
				t.Fatalf("an attempt at a held lock")
			}
		}
	}
	s.observed(19, released(19), "vacant", "lock")
}

// released is a key after a release at index.
func released(index uint64) Entry {
	return Entry{KeyIndex: KeyIndex{10, index}, Value: Record{Term: 1, HowTo: howToVacant}.encode()}
}

// candidacy brings the machine into the race, with a key that was last released at 17.
func (s *script) candidacy() {
	s.t.Helper()
	s.want(evTick{}, "open")
	s.want(evOpened{session: Session{ID: "s1", TTL: s.m.cfg.Lease}, sent: s.now}, "candidate")
	s.committed(15)
	s.observed(15, Entry{Session: "other", KeyIndex: KeyIndex{10, 14}}, "leader_changed")
	s.want(evCampaign{election: "leader", id: "x"}, "candidate")
	s.committed(16)
	s.observed(17, released(17), "vacant", "lock")
}

// An attempt that finds another key than it was meant for is not repeated before the watch shows that key; should the watch not, it
// is started anew.
func TestLockRefused(t *testing.T) {
	cfg := testConfig("a").Config
	lost := errLost
	run := func(name string, f func(*script, *election)) {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, cfg)
			s.candidacy()
			if op := s.m.committing.Ops[0]; op.KeyIndex != 17 {
				t.Fatalf("the attempt is meant for index %d", op.KeyIndex)
			}
			f(s, s.m.elections["leader"])
		})
	}
	quiet := func(s *script, d time.Duration) {
		s.t.Helper()
		for end := s.now.Add(d); s.now < end; s.now = s.now.Add(10 * time.Millisecond) {
			s.want(evTick{})
		}
	}
	run("somebody was faster", func(s *script, e *election) {
		s.refused(ReasonHeld)
		quiet(s, 200*time.Millisecond)
		s.observed(18, Entry{Session: "other", KeyIndex: KeyIndex{10, 18}}, "leader_changed")
		quiet(s, 400*time.Millisecond)
		s.observed(19, released(19), "vacant", "lock")
		if op := s.m.committing.Ops[0]; op.KeyIndex != 19 {
			s.t.Errorf("the attempt is meant for index %d", op.KeyIndex)
		}
	})
	run("the watch was faster than the answer", func(s *script, e *election) {
		s.observed(18, Entry{Session: "other", KeyIndex: KeyIndex{10, 18}}, "leader_changed")
		s.refused(ReasonHeld)
		quiet(s, 400*time.Millisecond)
	})
	run("an operator wrote to the vacant key", func(s *script, e *election) {
		s.refused(ReasonChanged)
		s.observed(18, Entry{KeyIndex: KeyIndex{10, 18}, Value: []byte("edited")}, "lock")
		if op := s.m.committing.Ops[0]; op.KeyIndex != 18 {
			s.t.Errorf("the attempt is meant for index %d", op.KeyIndex)
		}
	})
	run("a watch that shows nothing is started anew, less and less often", func(s *script, e *election) {
		s.refused(ReasonChanged)
		again := 0
		for end := s.now.Add(600 * time.Millisecond); s.now < end; s.now = s.now.Add(10 * time.Millisecond) {
			for _, fx := range s.do(evTick{}) {
				if fx != "watch" {
					s.t.Fatalf("did %s", fx)
				}
				again++
			}
		}
		if again != 1 {
			s.t.Errorf("started anew %d times in 600 ms", again)
		}
		s.want(evObserved{Snapshot{Index: 17, First: true, Elections: map[string]Entry{"leader": released(17)}}}, "lock")
	})
	run("a store that was restored to before our last release", func(s *script, e *election) {
		e.floor = 17
		s.refused(ReasonChanged)
		s.now = s.now.Add(300 * time.Millisecond)
		s.want(evTick{}, "watch")
		s.want(evObserved{Snapshot{Index: 9, First: true, Elections: map[string]Entry{"leader": released(9)}}}, "lock")
		if op := s.m.committing.Ops[0]; op.KeyIndex != 9 {
			s.t.Errorf("the attempt is meant for index %d", op.KeyIndex)
		}
	})
	run("an unanswered attempt is repeated as it was, and the watch tells that it had succeeded", func(s *script, e *election) {
		first := s.m.committing.Ops[0]
		s.want(evCommitted{err: lost})
		s.now = s.now.Add(100 * time.Millisecond)
		s.want(evTick{}, "lock")
		if op := s.m.committing.Ops[0]; op.KeyIndex != first.KeyIndex || string(op.Value) != string(first.Value) {
			s.t.Errorf("repeated as %+v", op)
		}
		s.refused(ReasonChanged)
		if e.lock != lockUnknown {
			s.t.Fatalf("lock %d", e.lock)
		}
		s.observed(18, Entry{Session: "s1", KeyIndex: KeyIndex{10, 18}, Value: first.Value}, "lock")
		if op := s.m.committing.Ops[0]; op.KeyIndex != 18 {
			s.t.Errorf("confirms index %d", op.KeyIndex)
		}
		s.committed(18, "elected", "update")
		if e.token != 18 {
			s.t.Errorf("token %d", e.token)
		}
	})
	run("an unanswered attempt that came to nothing is forgotten", func(s *script, e *election) {
		s.want(evCommitted{err: lost})
		s.observed(19, Entry{Session: "other", KeyIndex: KeyIndex{10, 19}}, "leader_changed")
		if e.lock != lockNone {
			s.t.Errorf("lock %d", e.lock)
		}
		s.observed(20, released(20), "vacant")
		s.now = s.now.Add(100 * time.Millisecond)
		s.want(evTick{}, "lock")
		if op := s.m.committing.Ops[0]; op.KeyIndex != 20 || string(op.Value) != string(e.record.encode()) {
			s.t.Errorf("%+v", op)
		}
	})
	run("a key that is gone", func(s *script, e *election) {
		s.refused(ReasonChanged)
		s.want(evObserved{Snapshot{Index: 18}}, "lock")
		if op := s.m.committing.Ops[0]; op.KeyIndex != 0 {
			s.t.Errorf("the attempt is meant for index %d", op.KeyIndex)
		}
	})
	run("a leader whose session ended keeps its lease, whatever Consul would say", func(s *script, e *election) {
		s.refused(ReasonHeld)
		led := Record{Leader: "y", Term: 2, HowTo: howToHeld}.encode()
		s.observed(18, Entry{Session: "other", KeyIndex: KeyIndex{10, 18}, Value: led}, "leader_changed")
		s.observed(19, Entry{KeyIndex: KeyIndex{10, 19}, Value: led}, "vacant")
		began := s.now
		for s.now < began.Add(3*time.Second) {
			s.now = s.now.Add(10 * time.Millisecond)
			words := s.do(evTick{})
			if slices.Contains(words, "renew") {
				s.want(evRenewed{session: "s1", sent: s.now, received: s.now}, words[1:]...)
			}
			if slices.Contains(words, "lock") {
				break
			}
		}
		if took := s.now.Sub(began); took < cfg.Lease-cfg.guard() || took > cfg.Lease+20*time.Millisecond {
			s.t.Errorf("tried after %s", took)
		}
	})
}
