package partition

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
)

const testTTL = 10 * time.Second

// desk is a machine with a clock that is set by hand. What it asks stays open until it is answered.
type desk struct {
	t     *testing.T
	m     *machine
	now   clock.Instant
	index uint64
	want  wants
	given map[int]uint64
	open  []effect
	snap  snapshot
}

func newDesk(t *testing.T, n int) *desk {
	d := &desk{t: t, m: newMachine("a", n, testTTL), now: clock.Instant(time.Hour), index: 100, given: map[int]uint64{},
		snap: snapshot{members: map[string]entry{}, owners: map[int]entry{}}}
	d.want = wants{stand: true, given: func(p int, epoch uint64) bool { return d.given[p] == epoch }}
	return d
}

func (d *desk) feed(ev event) {
	d.m.step(d.now, d.want, ev)
	d.open = append(d.open, d.m.out...)
}

func (d *desk) pass(by time.Duration) { d.now = d.now.Add(by) }

// at lets time pass and wakes the machine whenever it wants to be.
func (d *desk) later(by time.Duration) {
	end := d.now.Add(by)
	for d.m.due <= end {
		if d.m.due > d.now {
			d.now = d.m.due
		}
		d.feed(event{kind: evPoke})
	}
	d.now = end
	d.feed(event{kind: evPoke})
}

// take removes the first open request of a kind.
func (d *desk) take(k kind) effect {
	d.t.Helper()
	for i, e := range d.open {
		if e.kind == k {
			d.open = slices.Delete(d.open, i, i+1)
			return e
		}
	}
	d.t.Fatalf("no request of kind %d in %+v", k, d.open)
	return effect{}
}

func (d *desk) asked(k kind) (n int) {
	for _, e := range d.open {
		if e.kind == k {
			n++
		}
	}
	return n
}

func (d *desk) done() answer { d.index++; return answer{done: true, index: d.index} }

func (d *desk) list() {
	s := snapshot{index: d.index, members: map[string]entry{}, owners: map[int]entry{}}
	for k, v := range d.snap.members {
		s.members[k] = v
	}
	for k, v := range d.snap.owners {
		s.owners[k] = v
	}
	d.feed(event{kind: evSnap, snap: s})
}

func (d *desk) member(id, session string) {
	d.index++
	d.snap.members[id] = entry{session: session, index: d.index, record: record{ID: id, Partitions: d.m.n}}
}

func (d *desk) owner(p int, who, session string, clean bool) {
	d.index++
	d.snap.owners[p] = entry{session: session, index: d.index, record: record{Owner: who, Clean: clean}}
}

// ready opens a session and joins.
func (d *desk) ready() {
	d.t.Helper()
	d.feed(event{kind: evPoke})
	d.opened("S1")
	d.list()
	d.feed(event{kind: evAnswer, of: d.take(doJoin), answer: d.done()})
	d.member("a", "S1")
	d.list()
}

func (d *desk) opened(session string) {
	d.t.Helper()
	d.feed(event{kind: evAnswer, of: d.take(doOpen), opened: session, sent: d.now})
}

// takeAll answers all open takes.
func (d *desk) takeAll() {
	for d.asked(doTake) > 0 {
		e := d.take(doTake)
		d.owner(e.p, "a", e.session, false)
		d.feed(event{kind: evAnswer, of: e, answer: answer{done: true, index: d.index}})
	}
}

func (d *desk) renew(sent clock.Instant) {
	d.t.Helper()
	d.feed(event{kind: evAnswer, of: d.take(doRenew), sent: sent})
}

func (d *desk) held() string {
	claims := d.m.claims()
	var out []string
	for p := range d.m.n {
		c, ok := claims[p]
		switch {
		case !ok || d.now >= c.Until:
			continue
		case c.Leave:
			out = append(out, fmt.Sprintf("%d!", p))
		default:
			out = append(out, fmt.Sprint(p))
		}
	}
	return strings.Join(out, " ")
}

func (d *desk) expect(want string) {
	d.t.Helper()
	if got := d.held(); got != want {
		d.t.Fatalf("holds %q, want %q; open: %+v", got, want, d.open)
	}
}

// holding is a desk that holds all of n.
func holding(t *testing.T, n int) *desk {
	d := newDesk(t, n)
	d.ready()
	d.later(testTTL / 20)
	d.takeAll()
	d.list()
	return d
}

func TestLossByTheClock(t *testing.T) {
	d := holding(t, 3)
	d.expect("0 1 2")
	until := d.m.session.until
	if want := clock.Instant(time.Hour).Add(8 * time.Second); until != want {
		t.Fatalf("until %d, want %d", until, want)
	}
	d.now = until - 1
	d.expect("0 1 2")
	d.now = until
	if c := d.m.claims()[0]; c.Until != until {
		t.Errorf("%+v", c)
	}
	d.expect("") // by the clock alone
	d.feed(event{kind: evPoke})
	if n := len(d.m.claims()); n != 0 {
		t.Errorf("%d claims", n)
	}
	if d.take(doDestroy).session != "S1" {
		t.Error("the session is not ended")
	}
	if d.take(doOpen).first {
		t.Error("it takes itself for an earlier process")
	}
}

// A renewal counts from when it was sent, if it is answered before what was proven runs out; afterwards it is worth nothing.
func TestRenewal(t *testing.T) {
	d := holding(t, 1)
	d.later(testTTL / 3)
	sent := d.now
	d.pass(2 * time.Second)
	d.renew(sent)
	if want := sent.Add(8 * time.Second); d.m.session.until != want || d.m.claims()[0].Until != want {
		t.Fatalf("until %d, want %d", d.m.session.until, want)
	}
	d.later(testTTL / 3)
	later := d.now
	e := d.take(doRenew)
	d.later(time.Second) // another was sent meanwhile, and is answered first
	first := d.now
	_ = d.asked(doRenew)
	d.feed(event{kind: evAnswer, of: e, sent: first})
	d.feed(event{kind: evAnswer, of: e, sent: later}) // an older answer does not set it back
	if want := first.Add(8 * time.Second); d.m.session.until != want {
		t.Fatalf("until %d, want %d", d.m.session.until, want)
	}
	d.now = d.m.session.until // nothing is woken: the machine was not running
	d.feed(event{kind: evAnswer, of: effect{kind: doRenew, session: "S1"}, sent: d.now - 1})
	d.expect("")
	if d.m.session.id != "" {
		t.Error("an answer that came late kept the session")
	}
}

// While answers do not come renewals are repeated, a few at a time.
func TestRenewalsThatHang(t *testing.T) {
	d := holding(t, 1)
	d.later(6300 * time.Millisecond)
	if n := d.asked(doRenew); n != maxRenewals {
		t.Errorf("%d renewals under way", n)
	}
	d.feed(event{kind: evAnswer, of: d.take(doRenew), err: errors.New("EOF")})
	d.later(testTTL / 20)
	if n := d.asked(doRenew); n != maxRenewals {
		t.Errorf("%d renewals under way after one has failed", n)
	}
	d.renew(d.now)
	d.expect("0")
}

func TestSessionGone(t *testing.T) {
	for name, end := range map[string]func(*desk){
		"renewal": func(d *desk) {
			d.later(testTTL / 3)
			d.feed(event{kind: evAnswer, of: d.take(doRenew), err: errGone})
		},
		"lock": func(d *desk) { d.owner(1, "a", "", false); d.list() },
		"key deleted": func(d *desk) {
			d.index++
			delete(d.snap.owners, 1)
			d.list()
		},
		"taken by another": func(d *desk) { d.owner(1, "b", "SB", false); d.list() },
		"give": func(d *desk) {
			d.given[0] = d.m.claims()[0].Epoch
			d.feed(event{kind: evPoke})
			d.feed(event{kind: evAnswer, of: d.take(doGive), answer: answer{refused: `failed to lock key: invalid session "S1"`}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := holding(t, 3)
			end(d)
			d.expect("")
			if d.take(doDestroy).session != "S1" || d.m.session.id != "" {
				t.Error("the session is kept")
			}
			d.opened("S2")
			d.feed(event{kind: evAnswer, of: effect{kind: doRenew, session: "S1"}, err: errGone}) // late
			if d.m.session.id != "S2" {
				t.Error("an answer about the last session ended this one")
			}
		})
	}
	// A listing from before we took it says nothing.
	d := holding(t, 3)
	old := snapshot{index: d.m.parts[0].claim.Epoch - 1, members: d.snap.members, owners: map[int]entry{}}
	d.feed(event{kind: evSnap, snap: old})
	if d.m.parts[2].hold != holdHeld {
		t.Error("lost by an old listing")
	}
}

func TestLeave(t *testing.T) {
	d := holding(t, 4)
	d.member("b", "SB")
	d.list()
	d.expect("0 1 2! 3!")
	delete(d.snap.members, "b")
	d.index++
	d.list()
	d.expect("0 1 2 3") // it is withdrawn
	d.member("b", "SB")
	d.list()
	c := d.m.claims()
	if d.asked(doGive) != 0 {
		t.Fatal("gave what nobody gave")
	}
	d.given[3] = c[3].Epoch - 1 // of another hold
	d.given[0] = c[1].Epoch
	d.feed(event{kind: evPoke})
	d.expect("0 1 2! 3!")
	if d.asked(doGive) != 0 {
		t.Error("gave a hold for another epoch's end")
	}
	d.given[3] = c[3].Epoch
	d.feed(event{kind: evPoke})
	d.expect("0 1 2!")
	give := d.take(doGive)
	if give.p != 3 || give.index != c[3].Epoch {
		t.Errorf("%+v", give)
	}
	d.feed(event{kind: evAnswer, of: give, err: errors.New("timeout")})
	d.later(testTTL / 20)
	again := d.take(doGive)
	d.list() // still shows our lock: nothing is held by that
	d.expect("0 1 2!")
	d.feed(event{kind: evAnswer, of: again, answer: answer{refused: "current modify index"}}) // the first had arrived
	d.owner(3, "a", "", true)
	d.list()
	d.later(time.Second)
	if n := d.asked(doGive); n != 0 {
		t.Errorf("%d requests more", n)
	}
	d.expect("0 1 2!")
	if d.asked(doTake) != 0 {
		t.Error("takes what is another's by the plan")
	}
	delete(d.snap.members, "b")
	d.index++
	d.list()
	take := d.take(doTake)
	if take.p != 3 || take.index != d.snap.owners[3].index {
		t.Errorf("%+v", take)
	}
	d.owner(3, "a", "S1", false)
	d.feed(event{kind: evAnswer, of: take, answer: answer{done: true, index: d.index}})
	if c := d.m.claims()[3]; !c.Clean || c.Epoch != d.index || c.Leave {
		t.Errorf("%+v", c)
	}

	d.want.stand = false
	d.feed(event{kind: evPoke})
	d.expect("0! 1! 2! 3!")
	d.feed(event{kind: evAnswer, of: d.take(doWithdraw), answer: d.done()})
	d.want.stand = true
	delete(d.snap.members, "a")
	d.list()
	d.feed(event{kind: evAnswer, of: d.take(doJoin), answer: d.done()})
	d.expect("0 1 2 3")
}

// A take that was not answered is ours when a listing shows it, as clean as what it was sent for; and a late answer changes nothing.
func TestUnansweredTake(t *testing.T) {
	for _, clean := range []bool{false, true} {
		d := newDesk(t, 1)
		d.owner(0, "b", "", clean)
		d.ready()
		d.later(testTTL / 20)
		e := d.take(doTake)
		d.feed(event{kind: evAnswer, of: e, err: errors.New("timeout")})
		d.expect("")
		d.owner(0, "a", "S1", false)
		d.list()
		d.expect("0")
		c := d.m.claims()[0]
		if c.Clean != clean || c.Epoch != d.index {
			t.Errorf("clean %v: %+v", clean, c)
		}
		d.feed(event{kind: evAnswer, of: e, answer: d.done()})
		if d.m.claims()[0] != c {
			t.Errorf("%+v became %+v", c, d.m.claims()[0])
		}
	}
	// Refused, since it has changed: it is asked for as the next listing shows it.
	d := newDesk(t, 1)
	d.ready()
	d.later(testTTL / 20)
	first := d.take(doTake)
	d.owner(0, "b", "", false)
	d.feed(event{kind: evAnswer, of: first, answer: answer{refused: "key exists"}})
	d.list()
	d.later(testTTL / 20)
	e := d.take(doTake)
	d.feed(event{kind: evAnswer, of: e, answer: d.done()})
	if c := d.m.claims()[0]; first.index != 0 || e.index == 0 || c.Clean {
		t.Errorf("%+v, %+v, %+v", first, e, c)
	}
	// The answer for a session that is over meanwhile.
	d = newDesk(t, 1)
	d.ready()
	d.later(testTTL / 20)
	e = d.take(doTake)
	d.now = d.m.session.until
	d.feed(event{kind: evAnswer, of: e, answer: d.done()})
	d.expect("")
	if n := len(d.m.claims()); n != 0 {
		t.Error("holds by a session that is over")
	}
}

// What nobody gave back is left alone for a moment, except by who had it; a partition whose key was deleted is not clean.
func TestVacant(t *testing.T) {
	d := newDesk(t, 4)
	d.member("b", "SB")
	for p, who := range []string{"b", "b", "a", "b"} {
		d.owner(p, who, "SB", false)
	}
	d.ready()
	d.later(time.Minute / 60)
	if d.asked(doTake) != 0 {
		t.Fatal("takes what is held")
	}
	delete(d.snap.members, "b") // b dies; 2 was ours
	for p := range 3 {
		d.owner(p, d.snap.owners[p].record.Owner, "", false)
	}
	delete(d.snap.owners, 3)
	d.list()
	if e := d.take(doTake); e.p != 2 || d.asked(doTake) != 0 {
		t.Errorf("%+v and %d more at once", e, d.asked(doTake))
	}
	d.later(testTTL/20 - 1)
	if d.asked(doTake) != 0 {
		t.Error("did not wait")
	}
	d.later(1)
	if n := d.asked(doTake); n != 3 {
		t.Errorf("%d of 3 asked for", n)
	}
	d.takeAll()
	if c := d.m.claims()[3]; c.Epoch == 0 || c.Clean {
		t.Errorf("a deleted key: %+v", c)
	}
}

// At the end what was given is given first, and nothing is held any more.
func TestStop(t *testing.T) {
	d := holding(t, 2)
	d.given[1] = d.m.claims()[1].Epoch
	d.feed(event{kind: evStop})
	d.expect("")
	if d.asked(doClose) != 0 {
		t.Error("ends the session before what was given is given")
	}
	d.feed(event{kind: evAnswer, of: d.take(doGive), answer: d.done()})
	if d.take(doClose).session != "S1" || d.m.done {
		t.Error("not closed")
	}
	d.feed(event{kind: evAnswer, of: effect{kind: doClose, session: "S1"}})
	if !d.m.done {
		t.Error("not done")
	}
	// A session that is being made is ended too.
	d = newDesk(t, 2)
	d.feed(event{kind: evPoke})
	d.feed(event{kind: evStop})
	if d.m.done {
		t.Error("left a session behind")
	}
	d.opened("S1")
	if d.take(doClose).session != "S1" {
		t.Error("left a session behind")
	}
}

// The keys of dead members are removed by one of the living.
func TestSweep(t *testing.T) {
	d := holding(t, 2)
	d.member("dead", "")
	d.list()
	if e := d.take(doSweep); e.id != "dead" || e.index != d.index {
		t.Errorf("%+v", e)
	}
	d.list()
	if d.asked(doSweep) != 0 {
		t.Error("twice")
	}
	d.member("A", "SA") // comes first
	d.member("dead", "")
	d.list()
	if d.asked(doSweep) != 0 {
		t.Error("by another")
	}
}

func TestValidate(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"queue": func(c *Config) { c.Queue = "a/b" }, "id": func(c *Config) { c.ID = "" }, "prefix": func(c *Config) { c.Prefix = "x" },
		"none": func(c *Config) { c.Partitions = 0 }, "many": func(c *Config) { c.Partitions = 65 }, "ttl": func(c *Config) { c.TTL = time.Millisecond },
		"client": func(c *Config) { c.Client = nil },
	} {
		cfg := validConfig(t)
		if _, err := New(cfg); err != nil {
			t.Fatal(err)
		}
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func validConfig(t *testing.T) Config {
	t.Helper()
	client, err := consulkit.New(consulkit.Config{Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	return Config{Client: client, Prefix: "retinue/queues/x/", Queue: "q", ID: "a@h", Partitions: 64, Clock: clock.Boot(), Log: hclog.NewNullLogger()}
}
