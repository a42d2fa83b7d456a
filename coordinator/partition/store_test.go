package partition

import (
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
)

// What the store asks holds only of what was seen: a take of what has changed is refused, and so is a late give.
func TestStore(t *testing.T) {
	agent := consultest.Start(t)
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	open := func(id string) (*store, string) {
		t.Helper()
		s := &store{client: client, clock: clock.Boot(), prefix: "retinue/queues/x/partitions/q/", id: id, n: 4, ttl: 10 * time.Second}
		session, _, err := s.open(ctx, true)
		if err != nil {
			t.Fatal(err)
		}
		return s, session
	}
	a, sa := open("a")
	b, sb := open("b")
	must := func(want bool, ans answer, err error) answer {
		t.Helper()
		if err != nil || ans.done != want || ans.done != (ans.index > 0) {
			t.Fatalf("%+v, %v, want %v", ans, err, want)
		}
		return ans
	}
	see := func(p int) entry {
		t.Helper()
		snap, err := a.watch(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		return snap.owners[p]
	}
	take := func(s *store, session string, index uint64, want bool) answer {
		t.Helper()
		ans, err := s.take(ctx, session, 2, index)
		return must(want, ans, err)
	}
	first := take(a, sa, 0, true)
	if e := see(2); e.index != first.index || e.session != sa || e.record.Owner != "a" || e.record.Clean {
		t.Errorf("%+v, %+v", first, e)
	}
	take(b, sb, 0, false)           // is there
	take(b, sb, first.index, false) // is locked
	ans, err := b.give(ctx, sb, 2, first.index)
	must(false, ans, err)
	ans, err = a.give(ctx, sa, 2, first.index)
	given := must(true, ans, err)
	if e := see(2); !e.record.Clean || e.session != "" || e.index != given.index {
		t.Errorf("%+v", e)
	}
	take(b, sb, 0, false)
	second := take(b, sb, given.index, true)
	if err := b.destroy(ctx, sb); err != nil {
		t.Fatal(err)
	}
	// Vacant again, and not as it was seen: who took it for clean must not get it.
	take(a, sa, given.index, false)
	take(a, sa, 0, false)
	e := see(2)
	if e.session != "" || e.record.Clean || e.index <= second.index {
		t.Errorf("%+v", e)
	}
	third := take(a, sa, e.index, true)
	ans, err = a.give(ctx, sa, 2, first.index) // of the hold before
	must(false, ans, err)
	if e := see(2); e.session != sa || e.index != third.index {
		t.Errorf("%+v", e)
	}
	// The session is over.
	ans, err = b.take(ctx, sb, 3, 0)
	if must(false, ans, err); !ans.gone() {
		t.Errorf("%+v", ans)
	}
	if err := b.renew(ctx, sb); err != errGone {
		t.Errorf("%v", err)
	}
	// An earlier process of the same name is ended by the next, and only if there is one.
	ans, err = a.join(ctx, sa)
	must(true, ans, err)
	_, sa2 := open("a")
	if err := a.renew(ctx, sa); err != errGone {
		t.Errorf("the earlier session: %v", err)
	}
	if err := a.renew(ctx, sa2); err != nil {
		t.Error(err)
	}
	if e := see(2); e.session != "" || e.record.Clean {
		t.Errorf("%+v", e)
	}
	entry, _, err := client.Session().Info(sa2, nil)
	if err != nil || entry.LockDelay != 0 || entry.Node != VirtualNode || entry.TTL != "10s" || entry.Behavior != "release" || len(entry.NodeChecks) != 0 {
		t.Errorf("%+v, %v", entry, err)
	}
}

type handClock struct{ now clock.Instant }

func (c *handClock) Now() clock.Instant { return c.now }

// Held says no from Until on although nobody has done anything, and from Give on.
func TestHeldByTheClock(t *testing.T) {
	clk := &handClock{now: 100}
	cfg := validConfig(t)
	cfg.Clock, cfg.Log = clk, hclog.NewNullLogger()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.table.Store(&table{claims: map[int]Claim{3: {Epoch: 7, Until: 200}, 4: {Epoch: 8, Until: 200}}, until: 200, view: View{Connected: true}})
	if c, ok := h.Held(3); !ok || c.Epoch != 7 || !h.View().Connected {
		t.Errorf("%+v %v", c, ok)
	}
	h.Give(3, 6)
	h.Give(4, 7)
	clk.now = 199
	for _, p := range []int{3, 4} {
		if _, ok := h.Held(p); !ok {
			t.Errorf("%d is not held", p)
		}
	}
	h.Give(3, 7)
	if _, ok := h.Held(3); ok {
		t.Error("held after it was given")
	}
	clk.now = 200
	if _, ok := h.Held(4); ok || h.View().Connected {
		t.Error("held when its time was over")
	}
}
