package coordinator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// script drives one machine by hand. Everything outside answers at once, but for the worker.
type script struct {
	t     *testing.T
	m     *machine
	now   clock.Instant
	calls []fxCall
	log   []string // what left: ack, release, publish
	queue map[string][]source.Out
	ended map[string]item.Record
	want  int // asked of the broker
	done  bool
	ends  map[uint64]item.Class
}

func newScript(t *testing.T, change func(*Config)) *script {
	cfg := testConfig()
	cfg.Record = false
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, now: clock.Instant(time.Hour), queue: map[string][]source.Out{}, ended: map[string]item.Record{}, ends: map[uint64]item.Class{}}
	wall := func() time.Time { return time.Unix(1e9, 0).Add(time.Duration(s.now)) }
	s.m = newMachine(cfg, wall, func(d time.Duration) time.Duration { return d })
	s.step(evTick{})
	return s
}

func (s *script) step(ev any) bool {
	found := s.m.step(s.now, ev)
	for fxs := s.m.take(); len(fxs) > 0; fxs = s.m.take() {
		for _, fx := range fxs {
			s.do(fx)
		}
	}
	return found
}

func (s *script) do(fx any) {
	switch fx := fx.(type) {
	case fxReceive:
		s.want = fx.max
	case fxIdle:
		s.want = 0
		s.m.step(s.now, evReceived{})
	case fxCall:
		s.calls = append(s.calls, fx)
	case fxEnd:
		s.ends[fx.call] = fx.class
	case fxCheck:
		s.m.step(s.now, evChecked{handle: fx.handle})
	case fxCommit:
		s.m.step(s.now, evCommitted{handle: fx.handle, record: fx.record})
	case fxPublish:
		for q, outs := range fx.outs {
			s.queue[q] = append(s.queue[q], outs...)
			for _, o := range outs {
				s.log = append(s.log, "publish "+q+" "+o.ID)
			}
		}
		s.m.step(s.now, evPublished{handle: fx.handle})
	case fxAck:
		for _, h := range fx.handles {
			s.log = append(s.log, "ack "+s.m.messageOf(h).ID)
		}
		s.m.step(s.now, evAcked{handles: fx.handles})
	case fxRelease:
		for _, h := range fx.handles {
			s.log = append(s.log, fmt.Sprintf("release %s %s", s.m.messageOf(h).ID, fx.delay))
		}
		s.m.step(s.now, evReleased{fx.handles})
	case fxExtend:
		s.m.step(s.now, evExtended{handles: fx.handles})
	case fxEnded:
		s.ended[fx.record.ID] = fx.record
	case fxDone:
		s.done = true
	}
}

func (s *script) receive(msgs ...*source.Message) {
	s.t.Helper()
	for _, msg := range msgs {
		if msg.Deliveries == 0 {
			msg.Deliveries = 1
		}
	}
	s.step(evReceived{msgs: msgs})
}

func msg(id, key string, class int) *source.Message {
	return &source.Message{ID: id, Key: key, Class: class, Headers: map[string]string{}}
}

// running names what the worker has, in the order in which it got it.
func (s *script) running() string {
	var ids []string
	for _, c := range s.calls {
		for _, task := range c.tasks {
			ids = append(ids, task.ID)
		}
	}
	return strings.Join(ids, " ")
}

// answer ends the call with an item.
func (s *script) answer(id string, v worker.Verdict) {
	s.t.Helper()
	for i, c := range s.calls {
		for j, task := range c.tasks {
			if task.ID != id {
				continue
			}
			verdicts := make([]worker.Verdict, len(c.tasks))
			for k := range verdicts {
				verdicts[k] = worker.Verdict{Kind: worker.Ack}
			}
			verdicts[j] = v
			s.calls = slices.Delete(s.calls, i, i+1)
			s.step(evCalled{c.call, verdicts})
			return
		}
	}
	s.t.Fatalf("%s is not at the worker: %s", id, s.running())
}

func (s *script) expect(what, got, want string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func (s *script) wait(d time.Duration) {
	end := s.now.Add(d)
	for {
		at := s.m.next(s.now)
		if at > end {
			break
		}
		s.now = at
		s.step(evTick{})
	}
	s.now = end
	s.step(evTick{})
}

func ack() worker.Verdict                  { return worker.Verdict{Kind: worker.Ack} }
func verdict(k worker.Kind) worker.Verdict { return worker.Verdict{Kind: k, Reason: "because"} }
func (s *script) left() string             { return strings.Join(s.log, ", ") }
func slots(n int) func(*Config)            { return func(c *Config) { c.Slots = n } }
func twoAttempts(lane Lane) func(*Config) {
	return func(c *Config) { c.Keys, c.Lane, c.Attempts = true, lane, 2 }
}
func message(body string, key string) (o worker.Output) {
	o.Next = []item.Message{{Body: []byte(body), Key: key}}
	return o
}

// The ack comes last: after the commit and after the messages to the next stage.
func TestAckIsLast(t *testing.T) {
	s := newScript(t, nil)
	s.receive(msg("a", "", 0))
	out := message("x", "")
	s.answer("a", worker.Verdict{Kind: worker.Ack, Output: &out})
	s.expect("left", s.left(), "publish next a/q/0, ack a")
}

// What was published belongs to the record that won, not to this attempt.
func TestLoserGoesOnWithTheWinner(t *testing.T) {
	s := newScript(t, func(c *Config) { c.Record = true })
	s.receive(msg("a", "", 0))
	out := message("mine", "")
	var commit fxCommit
	s.m.step(s.now, evCalled{s.calls[0].call, []worker.Verdict{{Kind: worker.Ack, Output: &out}}})
	for _, fx := range s.m.take() {
		if fx, ok := fx.(fxCommit); ok {
			commit = fx
		}
	}
	winner := item.Record{ID: "a", State: item.Done, Attempt: "other", Next: []item.Message{{Body: []byte("theirs")}}}
	s.step(evCommitted{handle: commit.handle, record: winner})
	s.expect("body", string(s.queue["next"][0].Body), "theirs")
	if s.m.totals.Late != 1 {
		t.Errorf("late: %d", s.m.totals.Late)
	}
}

func TestLanes(t *testing.T) {
	for _, c := range []struct {
		lane                     Lane
		afterFail, afterSecond   string
		leftInOrder, deadLetters string
	}{
		{LaneBlock, "x", "a1", "a2", "a1~dead"},
		{LaneSkip, "x a2", "x a1", "", "a1~dead"},
		{LanePark, "x", "a1", "", "a1~dead a2~dead"},
	} {
		t.Run(string(c.lane), func(t *testing.T) {
			s := newScript(t, twoAttempts(c.lane))
			s.receive(msg("a1", "A", 0), msg("a2", "A", 0), msg("x", "X", 0))
			s.expect("first of each key", s.running(), "a1 x")
			s.answer("a1", verdict(worker.Retry))
			s.expect("after a failure", s.running(), c.afterFail)
			if c.lane != LaneSkip {
				s.answer("x", ack())
			} else {
				s.answer("a2", ack())
			}
			s.wait(time.Second)
			s.expect("after the backoff", s.running(), c.afterSecond)
			s.answer("a1", verdict(worker.Retry))
			if c.leftInOrder != "" {
				s.expect("after the dead letter", s.running(), c.leftInOrder)
			}
			var dead []string
			for _, o := range s.queue["q-dead"] {
				dead = append(dead, o.ID)
			}
			s.expect("dead letters", strings.Join(dead, " "), c.deadLetters)
		})
	}
}

func TestParkedLaneOpens(t *testing.T) {
	s := newScript(t, func(c *Config) { c.Keys, c.Lane, c.Attempts = true, LanePark, 1 })
	s.receive(msg("a1", "A", 0))
	s.answer("a1", verdict(worker.Retry))
	if got := s.m.stats().Parked; len(got) != 1 || got[0] != "A" {
		t.Fatalf("parked: %v", got)
	}
	s.step(evResume{key: "A"})
	s.receive(msg("a2", "A", 0))
	s.expect("after resume", s.running(), "a2")
}

func TestPriorityAndAging(t *testing.T) {
	s := newScript(t, func(c *Config) { c.Slots, c.Classes, c.Aging = 1, 3, time.Minute })
	s.receive(msg("first", "", 0))
	s.receive(msg("low", "", 0))
	s.wait(90 * time.Second)
	s.receive(msg("mid", "", 1), msg("high", "", 2))
	s.answer("first", ack())
	s.expect("most urgent", s.running(), "high")
	s.answer("high", ack())
	s.expect("what has waited a class's worth", s.running(), "low")
	s.answer("low", ack())
	s.expect("the rest", s.running(), "mid")
}

func TestRates(t *testing.T) {
	s := newScript(t, func(c *Config) { c.Keys, c.KeyRate, c.KeyBurst, c.Lane = true, 1, 2, LaneSkip })
	start := func(id, key string) { s.receive(msg(id, key, 0)) }
	start("a1", "A")
	s.answer("a1", ack())
	start("a2", "A")
	s.answer("a2", ack())
	start("a3", "A")
	start("b1", "B")
	s.expect("the burst is used up for one key only", s.running(), "b1")
	s.wait(900 * time.Millisecond)
	s.expect("not yet", s.running(), "b1")
	s.wait(200 * time.Millisecond)
	s.expect("after a second", s.running(), "b1 a3")
}

// Two coordinators have a rate together: each starts half as many, from when it knows of the other on until when that is gone.
func TestSharedRates(t *testing.T) {
	for name, c := range map[string]struct {
		rates func(*Config)
		want  string // starts until 2.5 s, 6.5 s and 8.5 s, two coordinators from 2.5 to 6.5
	}{
		"queue":                   {func(c *Config) { c.Rate, c.Burst = 1, 1 }, "3 5 7"},
		"key":                     {func(c *Config) { c.KeyRate, c.KeyBurst = 1, 1 }, "3 5 7"},
		"a key that is only here": {func(c *Config) { c.KeyRate, c.KeyBurst, c.KeyOrder = 1, 1, true }, "3 7 9"},
	} {
		s := newScript(t, func(cfg *Config) { cfg.Keys, cfg.Lane, cfg.Slots = true, LaneSkip, 20; c.rates(cfg) })
		for i := range 20 {
			s.receive(msg(fmt.Sprint(i), "A", 0))
		}
		var counts []string
		starts := 0
		for _, part := range []struct {
			share float64
			lasts time.Duration
		}{{1, 2500 * time.Millisecond}, {0.5, 4 * time.Second}, {1, 2 * time.Second}} {
			s.step(evShare{part.share})
			for end := s.now.Add(part.lasts); s.now < end; s.wait(50 * time.Millisecond) {
				for _, id := range strings.Fields(s.running()) {
					starts++
					s.answer(id, ack())
				}
			}
			counts = append(counts, fmt.Sprint(starts))
			if got := s.m.stats().RateShare; got != part.share {
				t.Errorf("%s: the statistics say %v, it is %v", name, got, part.share)
			}
		}
		s.expect(name, strings.Join(counts, " "), c.want)
	}
}

func TestDrainOnStop(t *testing.T) {
	s := newScript(t, slots(1))
	s.receive(msg("a", "", 0), msg("b", "", 0))
	s.step(evStop{})
	s.expect("what has not begun goes back", s.left(), "release b 0s")
	s.wait(4 * time.Second)
	s.expect("what runs may finish", s.running(), "a")
	s.wait(2 * time.Second)
	if s.ends[s.calls[0].call] != item.Infra {
		t.Fatal("the call was not ended at the drain timeout")
	}
	s.answer("a", verdict(worker.Stopped))
	s.expect("and is given back, uncounted", s.left(), "release b 0s, release a 0s")
	if !s.done {
		t.Error("not done")
	}
}

// A failure that is known here and not at the broker is not forgotten by a stop.
func TestStopKeepsTheHistory(t *testing.T) {
	s := newScript(t, nil)
	s.receive(msg("a", "", 0))
	s.answer("a", verdict(worker.Crashed))
	s.step(evStop{})
	s.expect("left", s.left(), "publish q a~1, ack a")
	env, err := item.Open("a~1", s.queue["q"][0].Headers)
	if err != nil || env.ID != "a" || len(env.History) != 1 || env.History[0].Class != item.Crash {
		t.Errorf("%+v, %v", env, err)
	}
}

func TestPauseResumeDrain(t *testing.T) {
	s := newScript(t, slots(1))
	s.receive(msg("a", "", 0), msg("b", "", 0))
	s.step(evPause{"lunch"})
	s.expect("given back", s.left(), "release b 0s")
	s.answer("a", ack())
	if s.want != 0 || s.m.stats().Status != "paused" || s.m.stats().Reason != "lunch" {
		t.Errorf("want %d, %+v", s.want, s.m.stats())
	}
	s.step(evDrain{})
	if got := s.m.stats().Status; got != "drained" {
		t.Errorf("status %q", got)
	}
	s.step(evResume{})
	if s.want == 0 {
		t.Error("nothing is received after resume")
	}
}

func TestCancel(t *testing.T) {
	s := newScript(t, slots(1))
	s.receive(msg("a", "", 0), msg("b", "", 0))
	if s.step(evCancel{"nobody"}) || !s.step(evCancel{"a"}) || !s.step(evCancel{"b"}) {
		t.Error("found what is not there, or the other way round")
	}
	if _, ok := s.ends[s.calls[0].call]; !ok {
		t.Error("the attempt goes on")
	}
	s.answer("a", verdict(worker.Stopped))
	s.expect("left", s.left(), "ack b, ack a")
	s.expect("ends", string(s.ended["a"].State+" "+s.ended["b"].State), "cancelled cancelled")
}

func TestQuarantineAndRefusal(t *testing.T) {
	s := newScript(t, nil)
	s.receive(msg("a", "", 0), msg("b", "", 0))
	s.answer("b", verdict(worker.Dead))
	s.answer("a", verdict(worker.Crashed))
	s.wait(time.Second)
	s.answer("a", verdict(worker.Crashed))
	s.expect("left", s.left(), "publish q-dead b~dead, ack b, publish q-dead a~dead, ack a")
	s.expect("classes", string(s.ended["a"].Class+" "+s.ended["b"].Class), "quarantine refused")
}

// A worker that is not ready gets one item at a time; what waits for it goes back to others; nothing is counted.
func TestNotReadyProbes(t *testing.T) {
	s := newScript(t, slots(4))
	s.receive(msg("a", "", 0), msg("b", "", 0), msg("c", "", 0), msg("d", "", 0), msg("e", "", 0))
	for _, id := range []string{"a", "b", "c", "d"} {
		s.answer(id, worker.Verdict{Kind: worker.NotReady, Reason: "503", RetryAfter: 2 * time.Second})
	}
	s.expect("nothing more is tried", s.running(), "")
	for range 4 {
		s.wait(30 * time.Second)
		if len(s.calls) != 1 || len(s.calls[0].tasks) != 1 || s.calls[0].tasks[0].N != 1 {
			t.Fatalf("probes: %s", s.running())
		}
		s.answer(s.running(), worker.Verdict{Kind: worker.NotReady, Reason: "503"})
	}
	if n := len(s.m.items); n != 1 {
		t.Errorf("%d items are held back from others", n)
	}
	s.wait(30 * time.Second)
	s.answer(s.running(), ack())
	if st := s.m.stats(); st.Status != "running" || st.Totals.Failed[item.Error] != 0 {
		t.Errorf("%+v", st)
	}
}

// Long waits are the broker's, with the history in the message; short ones stay in hand.
func TestWhereItemsWait(t *testing.T) {
	s := newScript(t, func(c *Config) { c.Attempts = 10 })
	s.receive(msg("a", "", 0))
	for range 3 { // 1 s, 2 s, 4 s: below half of the lease
		s.answer("a", verdict(worker.Retry))
		s.expect("left", s.left(), "")
		s.wait(4 * time.Second)
	}
	s.answer("a", verdict(worker.Retry))
	s.expect("left", s.left(), "publish q a~4, ack a")
	if d := s.queue["q"][0].Delay; d != 8*time.Second {
		t.Errorf("delay %s", d)
	}
	again := s.queue["q"][0]
	s.receive(&source.Message{ID: again.ID, Headers: again.Headers})
	s.expect("again", s.running(), "a")
	if n := s.calls[0].tasks[0].N; n != 5 {
		t.Errorf("attempt %d", n)
	}
}

func TestDuplicates(t *testing.T) {
	s := newScript(t, nil)
	s.receive(msg("a", "", 0), msg("a", "", 0))
	s.expect("one at a time", s.running(), "a")
	s.answer("a", ack())
	s.expect("the other is not executed", s.left()+" "+s.running(), "ack a, ack a ")
}

func TestLostLease(t *testing.T) {
	s := newScript(t, nil)
	s.receive(msg("a", "", 0))
	var handle uint64
	for handle = range s.m.items {
	}
	s.step(evExtended{handles: []uint64{handle}, errs: map[uint64]error{handle: errors.New("no answer")}})
	if len(s.ends) != 0 {
		t.Error("an extension without answer ended the attempt")
	}
	s.step(evExtended{handles: []uint64{handle}, errs: map[uint64]error{handle: fmt.Errorf("extend: %w", source.ErrLost)}})
	if len(s.ends) != 1 {
		t.Error("the attempt goes on although somebody else has the item")
	}
	s.answer("a", verdict(worker.Stopped))
	s.expect("left", s.left(), "")
	if len(s.m.items) != 0 {
		t.Error("still in hand")
	}
}

func TestTimeouts(t *testing.T) {
	s := newScript(t, func(c *Config) { c.MaxRuntime, c.Heartbeat = time.Minute, 10*time.Second })
	s.receive(msg("a", "", 0), msg("b", "", 0))
	for range 7 {
		s.wait(9 * time.Second)
		s.step(evBeat{id: "a"})
	}
	for _, c := range s.calls {
		if s.ends[c.call] != item.Timeout {
			t.Errorf("%s was not ended", c.tasks[0].ID)
		}
	}
	s.answer("b", verdict(worker.TimedOut))
	if s.m.totals.Failed[item.Timeout] != 1 {
		t.Errorf("%v", s.m.totals.Failed)
	}
}

// A poison item in a batch of 100 is found in 8 calls at most, whichever it is, and the other 99 count once.
// A worker that restarts after a crash is not ready for a moment; that acquits nobody.
// Of two suspects one goes away, because its lease is lost, or to others as the worker is not ready for long: the one that is left
// is called all the same.
// The suspects that are not called lose their leases while the other is called, and the worker was not ready for it: the batch's
// failure is nobody's.
// Storage that does not answer stops the intake; what is done is kept and not executed again.
func TestStorageTrouble(t *testing.T) {
	s := newScript(t, func(c *Config) { c.Record, c.Slots = true, 1 })
	s.receive(msg("a", "", 0), msg("b", "", 0))
	first := s.calls[0]
	s.calls = nil
	s.m.step(s.now, evCalled{first.call, []worker.Verdict{ack()}})
	var offers []fxCommit
	collect := func() {
		for _, fx := range s.m.take() {
			switch fx := fx.(type) {
			case fxCommit:
				offers = append(offers, fx)
			case fxCall:
				s.calls = append(s.calls, fx)
			}
		}
	}
	collect()
	for range 3 {
		s.calls = nil
		s.m.step(s.now, evCommitted{handle: offers[0].handle, err: errors.New("no space left on device")})
		s.now = s.now.Add(time.Minute)
		s.m.step(s.now, evTick{})
		collect()
	}
	if len(offers) != 4 || offers[3].record.Attempt != offers[0].record.Attempt {
		t.Errorf("%d offers", len(offers))
	}
	s.step(evCommitted{handle: offers[0].handle, record: offers[0].record})
	s.expect("left", s.left(), "ack a")
}

// As many items wait in hand as there are slots while calls are brief. Of what takes long, half of that: somebody else may have a slot.
func TestAhead(t *testing.T) {
	for took, want := range map[time.Duration]int{10 * time.Millisecond: 8, 2 * time.Second: 4} {
		s := newScript(t, slots(8))
		for i := range 40 {
			id := fmt.Sprint("i", i)
			s.receive(msg(id, "", 0))
			s.wait(took)
			s.answer(id, ack())
		}
		if got := s.want - 7; got != want { // one slot was taken when the last was asked for
			t.Errorf("calls of %v: %d more than there are slots are asked for, not %d", took, got, want)
		}
	}
	if s := newScript(t, slots(8)); s.want != 12 {
		t.Errorf("before anything is known %d are asked for", s.want)
	}
}
