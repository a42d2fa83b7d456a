package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue/tests/harness"
)

// A schedule is a directed sequence of faults: random ones meet it too seldom for every run of the tests. It is played to a sound group
// of electors, and to one with the mistake that it once brought to light.
type schedule struct {
	name string
	mistake
	electors   int
	invariants []int // at least one of them is broken by the mistake
	play       func(ctx context.Context, s *stage) error
}

var schedules = []schedule{
	{"lateunlock", mistake{"consul.go", // an unlock frees whatever its session holds when it is carried out
		"\t\t\tadd(i, kv(api.KVCheckIndex, key, \"\", nil, op.KeyIndex), false)\n\t\t\tadd(i, kv(api.KVUnlock, key, b.Session, op.Value, 0), true)",
		"\t\t\tadd(i, kv(api.KVUnlock, key, b.Session, op.Value, 0), true)"}, 2, []int{1}, lateUnlock},
	{"lostlock", mistake{"session.go", // an attempt at the lock that was not answered is never repeated
		"if e.lock == lockHeld {\n\t\t\treturn true", "if e.lock != lockNone {\n\t\t\treturn true"}, 3, []int{4}, lostLock},
	{"stalestate", mistake{"observe.go", // a state file that could not be written any more is believed
		"&& !e.proven && !m.sameTenure(e):", "&& !e.proven && !m.sameTenure(e) && false:"}, 2, []int{2, 3}, staleState},
	{"overtaken", mistake{"consul.go", // an attempt at the lock is good for any vacancy
		"\t\t\tadd(i, asSeen(key, op.KeyIndex), false)\n", ""}, 3, []int{1}, overtaken},
	{"unwritten", mistake{"observe.go", // a lock that the last process took is believed to be a hand-over
		"if earlier || e.lock", "if earlier && false || e.lock"}, 2, []int{2}, unwritten},
}

// stage is where a schedule is played.
type stage struct {
	*campaign
	g       *group
	e       *election
	servers *sync.Mutex // one at a time stops servers
}

// tries plays a schedule. On a busy machine electors may do something else than what it is about, and then it is played again.
func (s *stage) tries(ctx context.Context, m schedule) (err error) {
	for range 40 {
		err = m.play(ctx, s)
		s.open()
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.world.t.Logf("once more: %v", err)
		pause(ctx, s.g.lease)
	}
	return err
}

// broke notes a fault of an elector that lasted until now.
func (s *stage) broke(class Class, slot *slot, from int64) {
	to := bootNow()
	slot.troubled(class, from, to)
	s.count.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = append(s.done, injected{class, "schedule", from, to, []*group{s.g}, target{slot: slot}})
}

// open opens all gates of the group.
func (s *stage) open() {
	for _, slot := range s.g.slots {
		slot.gate.rule(nil)
	}
}

// leads waits until an elector other than not leads with a token above after, and returns its belief.
func (s *stage) leads(ctx context.Context, limit time.Duration, after uint64, not *slot) (*belief, error) {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		if b := s.e.leader(); b != nil && b.token > after && b.who.slot != not {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%s: no leader with a token above %d within %s", s.g.name, after, limit)
}

// moves makes a leader resign, to a certain elector or to anyone, and waits until another leads.
func (s *stage) moves(ctx context.Context, from *belief, to string) (*belief, error) {
	if !s.world.hub.ask(from.who.slot, s.e.name, to) {
		return nil, fmt.Errorf("%s: the application of %s does not listen", s.g.name, from.who)
	}
	return s.leads(ctx, 4*time.Second, from.token, from.who.slot)
}

// lateUnlock: a leader resigns; its unlock gets no answer and is repeated. When the same elector leads again, the first unlock arrives.
func lateUnlock(ctx context.Context, s *stage) error {
	first, err := s.leads(ctx, 10*time.Second, 0, nil)
	if err != nil {
		return err
	}
	gate, late, from := first.who.slot.gate, newHeld(), bootNow()
	defer func() { s.broke(requestLate, first.who.slot, from) }()
	var once sync.Once
	gate.rule(func(key, verb string) (p passage) {
		if key == s.e.key() && verb == "unlock" {
			once.Do(func() { p.hold = late })
		}
		return p
	})
	second, err := s.moves(ctx, first, "")
	if err != nil {
		return err
	}
	select {
	case <-late.caught:
	default:
		return fmt.Errorf("%s: no unlock was held up", s.g.name)
	}
	third, err := s.moves(ctx, second, first.who.slot.name)
	if err != nil {
		return err
	}
	if third.who.slot != first.who.slot {
		return fmt.Errorf("%s: %s leads, not the elector with the late request", s.g.name, third.who)
	}
	late.letgo <- nil
	<-late.done
	wait := 500 * time.Millisecond
	if s.g.Canary {
		wait = s.g.lease // a busy machine takes its time
	}
	if _, err := s.leads(ctx, wait, third.token, third.who.slot); err != nil && s.g.Canary && !s.overlapped() { // the mistake lets another lead
		return fmt.Errorf("%s: nobody took the lock that was set free", s.g.name)
	}
	return nil
}

// lostLock: an elector takes the lock and gets no answer, to this and to anything else, until its lease is over.
func lostLock(ctx context.Context, s *stage) error {
	first, err := s.leads(ctx, 10*time.Second, 0, nil)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var deaf *slot
	taken := make(chan struct{})
	for _, other := range s.g.slots {
		other.gate.rule(func(key, verb string) passage {
			mu.Lock()
			defer mu.Unlock()
			locks := key == s.e.key() && verb == "lock"
			switch {
			case locks && deaf == nil && other != first.who.slot:
				deaf = other
				close(taken)
				return passage{lose: true}
			case locks, deaf == other && verb == "": // nobody else is faster
				return passage{drop: true}
			}
			return passage{}
		})
	}
	if !s.world.hub.ask(first.who.slot, s.e.name, "") {
		return fmt.Errorf("%s: nobody to resign", s.g.name)
	}
	select {
	case <-taken:
	case <-time.After(5 * time.Second):
		return fmt.Errorf("%s: nobody tried for the lock", s.g.name)
	}
	from := bootNow()
	pause(ctx, s.g.lease*13/10)
	s.open()
	s.broke(answersLost, deaf, from)
	opened := time.Now()
	_, err = s.leads(ctx, 7*time.Second, first.token, nil)
	if err == nil && s.g.Canary && time.Since(opened) < 3*s.g.lease {
		return fmt.Errorf("%s: an answer came in time, and the lock is not forgotten", s.g.name)
	}
	if err != nil { // the mistake: nobody, for as long as its session is renewed
		from := bootNow()
		deaf.elector.kill()
		deaf.elector.start()
		s.broke(electorKill, deaf, from)
		_, err = s.leads(ctx, 10*time.Second, first.token, nil)
		return err
	}
	return nil
}

// staleState: the disk under the elector's state file is full while its leadership ends and another one begins. Then it is killed,
// and finds what it wrote about the one before.
func staleState(ctx context.Context, s *stage) error {
	first, err := s.leads(ctx, 10*time.Second, 0, nil)
	if err != nil {
		return err
	}
	slot := first.who.slot
	secrets := filepath.Join(slot.dir, "secrets")
	knows := fmt.Sprintf(`"token":%d,`, first.token)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if data, err := os.ReadFile(filepath.Join(secrets, "elector.json")); err == nil && strings.Contains(string(data), knows) {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: the state file does not tell of token %d", s.g.name, first.token)
		}
	}
	full, from := filepath.Join(secrets, "full"), bootNow()
	defer os.Remove(full)
	defer func() { s.broke(stateFull, slot, from) }()
	if err := fill(full); err != nil {
		return err
	}
	second, err := s.moves(ctx, first, "")
	if err != nil {
		return err
	}
	third, err := s.moves(ctx, second, slot.name)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); s.e.highest() < third.token; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: no write with token %d", s.g.name, third.token)
		}
	}
	slot.elector.kill()
	slot.elector.start()
	pause(ctx, 2*s.g.lease)
	last, err := s.leads(ctx, 10*time.Second, 0, nil)
	if err == nil && s.g.Canary && last.token > third.token {
		err = fmt.Errorf("%s: the elector asked Consul before it saw the key", s.g.name) // which comes first is chance, and then even this one notices
	}
	return err
}

// overtaken: two electors try for a vacant lock. One gets it; then an operator ends its session, and the attempt of the other, which
// Consul's leader has judged before that, is applied right after it.
func overtaken(ctx context.Context, s *stage) error {
	s.servers.Lock()
	defer s.servers.Unlock()
	first, err := s.leads(ctx, 10*time.Second, 0, nil)
	if err != nil {
		return err
	}
	leader := s.world.raftLeader()
	if leader == nil {
		return errNoTarget
	}
	address := &url.URL{Scheme: "http", Host: leader.host.IP + ":8500"}
	from := bootNow()
	var attempts []*held
	for _, slot := range s.g.slots {
		h, held := newHeld(), false
		if slot != first.who.slot {
			attempts = append(attempts, h)
		} else {
			held = true // it has led, and others are to
		}
		slot.gate.rule(func(key, verb string) passage {
			switch {
			case key != s.e.key() || verb != "lock":
				return passage{}
			case held:
				return passage{drop: true}
			}
			held = true
			return passage{hold: h}
		})
		defer s.broke(requestLate, slot, from)
	}
	if !s.world.hub.ask(first.who.slot, s.e.name, "") {
		return fmt.Errorf("%s: nobody to resign", s.g.name)
	}
	for _, h := range attempts {
		select {
		case <-h.caught:
		case <-time.After(2 * time.Second):
			return fmt.Errorf("%s: not both tried for the lock", s.g.name)
		}
	}
	attempts[0].letgo <- address
	<-attempts[0].done
	s.stall(leader, func() {
		go s.end(leader, attempts[0].session)
		time.Sleep(50 * time.Millisecond) // it is in Consul's log, and not applied
		attempts[1].letgo <- address
		time.Sleep(80 * time.Millisecond) // it has been judged, and is in the log
	})
	<-attempts[1].done
	s.open()
	_, err = s.leads(ctx, 10*time.Second, first.token, nil)
	pause(ctx, 2*s.g.lease)
	if err == nil && s.g.Canary && !s.overlapped() {
		err = fmt.Errorf("%s: the attempt did not come in between", s.g.name)
	}
	return err
}

// overlapped says whether two have led at once.
func (s *stage) overlapped() bool {
	beliefs := s.e.ordered()
	for i, b := range beliefs {
		if i > 0 && b.who != beliefs[i-1].who && b.from < beliefs[i-1].end() {
			return true
		}
	}
	return false
}

// unwritten: an elector takes the lock and grants it. Its application dies before the key tells of the token, and so does the elector
// before it can release the lock. Its next process has the same session.
func unwritten(ctx context.Context, s *stage) error {
	first, err := s.leads(ctx, 10*time.Second, 0, nil)
	if err != nil {
		return err
	}
	for _, slot := range s.g.slots {
		locked := slot == first.who.slot // it has led, and the other is to
		slot.gate.rule(func(key, verb string) passage {
			switch {
			case key != s.e.key() || verb != "lock" && verb != "unlock":
				return passage{}
			case verb == "lock" && !locked:
				locked = true
				return passage{}
			}
			return passage{drop: verb == "lock" || slot != first.who.slot}
		})
	}
	second, err := s.moves(ctx, first, "")
	if err != nil {
		return err
	}
	slot, from := second.who.slot, bootNow()
	defer func() { s.broke(taskKill, slot, from) }()
	slot.doomed()
	slot.app.kill()
	state, knows := filepath.Join(slot.dir, "secrets", "elector.json"), fmt.Sprintf(`"token":%d,`, second.token)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if data, err := os.ReadFile(state); err == nil && !strings.Contains(string(data), knows) {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: the state file tells of token %d", s.g.name, second.token)
		}
	}
	slot.elector.kill()
	s.open()
	asked := make(chan struct{}) // a lock that nobody here wants when it is first seen would be set free
	slot.gate.rule(func(string, string) passage { return passage{wait: asked} })
	slot.elector.start()
	slot.app.start()
	for deadline := time.Now().Add(time.Second); !s.world.hub.hears(slot) && time.Now().Before(deadline); {
		pause(ctx, time.Millisecond)
	}
	pause(ctx, 100*time.Millisecond) // it asks twice in that time
	close(asked)
	slot.gate.rule(nil)
	_, err = s.leads(ctx, 10*time.Second, 0, nil)
	if err == nil && s.g.Canary && !s.repeated(second) {
		err = fmt.Errorf("%s: the next process asked for a lock of its own", s.g.name)
	}
	return err
}

// repeated says whether another process than b's has led with its token.
func (s *stage) repeated(b *belief) bool {
	for _, other := range s.e.ordered() {
		if other.token == b.token && other.who != b.who {
			return true
		}
	}
	return false
}

// stall keeps the servers from applying anything while f runs: their leader takes requests, the others do not.
func (s *stage) stall(leader *node, f func()) {
	for _, n := range s.world.servers {
		if n != leader {
			n.agent.Pause()
			defer n.agent.Resume()
		}
	}
	f()
}

// end ends a session as an operator would.
func (s *stage) end(at *node, session string) {
	from := bootNow()
	_, _ = at.api.Session().Destroy(session, nil)
	to := bootNow()
	s.e.acted(operatorAct{class: operatorInval, from: from, to: to})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = append(s.done, injected{operatorInval, "schedule", from, to, []*group{s.g}, target{election: s.e}})
}

// Schedules show the mistakes that they are made for, and are nothing to sound electors.
func TestSchedules(t *testing.T) {
	harness.Need(t, harness.Root, harness.Netns, harness.Iptables, harness.Program("nsenter", true))
	s := settings{Seed: 1, Limit: 2 * time.Minute, Hosts: 3, Every: time.Hour, Logs: os.Getenv("RETINUE_CAMPAIGN_LOGS")}
	play := map[string]schedule{}
	for _, m := range schedules {
		for _, broken := range []bool{false, true} {
			g := groupSpec{Name: m.name, Lease: time.Second, Revocation: "safe", Mode: modeTether, Elections: 1, Electors: m.electors, Gated: true, Canary: broken}
			if broken {
				g.Name, g.Binary = m.name+"-broken", m.binary(t, m.name)
			}
			s.Groups = append(s.Groups, g)
			play[g.Name] = m
		}
	}
	s.Attack = func(ctx context.Context, c *campaign) error {
		var playing sync.WaitGroup
		var servers sync.Mutex
		for _, g := range c.world.groups {
			playing.Go(func() {
				if err := (&stage{c, g, g.elections[0], &servers}).tries(ctx, play[g.name]); err != nil {
					t.Error(err)
				}
			})
		}
		playing.Wait()
		return nil
	}
	c, err := run(t.Context(), s, testWriter{t})
	if err != nil {
		t.Fatal(err)
	}
	c.report()
	for _, m := range schedules {
		for _, v := range c.judge.found(m.name) {
			t.Errorf("sound electors: %s", v)
		}
		found := false
		for _, v := range c.judge.found(m.name + "-broken") {
			for _, i := range m.invariants {
				found = found || v.Invariant == i
			}
		}
		if !found {
			t.Errorf("the schedule does not show the mistake %q: %v", m.name, c.judge.found(m.name+"-broken"))
		}
	}
}
