package partition_test

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/coordinator"
	"retinue/coordinator/partition"
	"retinue/internal/clock"
	"retinue/internal/consulkit/consultest"
)

// Three share eight; one that joins gets the surplus and nothing else moves; one that leaves gives all back clean.
func TestShare(t *testing.T) {
	r := newRig(t, 8, consultest.Start(t))
	a := r.start("a@h")
	first := r.shares(5*time.Second, []int{8}, a)
	for p, c := range a.claims(8) {
		if !c.Clean || c.Leave || c.Epoch == 0 || c.Until.Sub(clock.Boot().Now()) > ttl {
			t.Errorf("partition %d, which nobody ever held: %+v", p, c)
		}
	}
	before := a.claims(8)

	// b joins: a is asked for exactly four, and nothing moves before it gives them.
	b := r.start("b@h")
	leaves := func(o *one) (n int) {
		for _, c := range o.claims(8) {
			if c.Leave {
				n++
			}
		}
		return n
	}
	asked := r.until(5*time.Second, "leave", func() bool { return leaves(a) == 4 })
	time.Sleep(300 * time.Millisecond)
	if got := r.held(a, b); got[0] != 8 || got[1] != 0 {
		t.Errorf("%v before anything was given", got)
	}
	r.obey(a, b)
	moved := r.shares(5*time.Second, []int{4, 4}, a, b)
	for p, c := range b.claims(8) {
		if !c.Clean || c.Epoch <= before[p].Epoch {
			t.Errorf("partition %d was %+v and is %+v", p, before[p], c)
		}
	}
	for p, c := range a.claims(8) {
		if c.Epoch != before[p].Epoch || c.Leave {
			t.Errorf("partition %d, which stays, was %+v and is %+v", p, before[p], c)
		}
	}

	// c joins: the surplus moves, and only it.
	was := map[int]uint64{}
	for _, o := range []*one{a, b} {
		for p, c := range o.claims(8) {
			was[p] = c.Epoch
		}
	}
	c := r.start("c@h")
	r.obey(c)
	r.shares(5*time.Second, []int{2, 3, 3}, a, b, c)
	for _, o := range []*one{a, b} {
		for p, claim := range o.claims(8) {
			if claim.Epoch != was[p] {
				t.Errorf("partition %d moved for nothing", p)
			}
		}
	}

	// b withdraws, gives, and ends: the others have everything, clean.
	b.Stand(false)
	r.until(5*time.Second, "b has given all", func() bool { return r.held(b)[0] == 0 })
	r.shares(5*time.Second, []int{4, 4}, a, c)
	b.stop()
	for _, o := range []*one{a, c} {
		for p, claim := range o.claims(8) {
			if !claim.Clean {
				t.Errorf("partition %d is not clean", p)
			}
		}
	}
	if v := a.View(); len(v.Members) != 2 || !v.Connected || v.Why != "" || len(v.Partitions) != 8 {
		t.Errorf("%+v", v)
	}
	t.Logf("the first has all after %s, is asked to leave %s after another was started, and four have moved %s after they were given", first, asked, moved)
	r.exclusive()
	r.swept(a, c)
}

// swept looks that nothing is left of who has gone, when all have.
func (r *rig) swept(os ...*one) {
	r.t.Helper()
	for _, o := range os {
		o.stop()
	}
	client := r.config("x", r.consul.Addr, "").Client
	pairs, _, err := client.KV().List("retinue/queues/thumbs/partitions/thumbs/", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, pair := range pairs {
		if strings.Contains(pair.Key, "/member/") || pair.Session != "" {
			r.t.Errorf("left: %s, locked by %q", pair.Key, pair.Session)
		}
	}
	if sessions, _, err := client.Session().List(nil); err != nil || len(sessions) != 0 {
		r.t.Errorf("sessions left: %v, %v", sessions, err)
	}
}

// One whose way to Consul is gone holds nothing when the others have what it had, and comes back when the way does. What was under way
// for seconds, answers of Consul among it, changes nothing.
func TestSilentDeath(t *testing.T) {
	r := newRig(t, 8, consultest.Start(t))
	a, b, c := r.start("a@h"), r.start("b@h"), r.start("c@h")
	r.obey(a, b, c)
	r.shares(8*time.Second, []int{2, 3, 3}, a, b, c)
	for round := range 3 {
		had := b.claims(8)
		lastUntil := clock.Instant(0)
		b.wire.Cut()
		began := time.Now()
		lost := r.until(5*time.Second, "b has lost all", func() bool {
			for _, c := range b.claims(8) {
				lastUntil = max(lastUntil, c.Until)
			}
			return len(b.claims(8)) == 0
		})
		r.until(10*time.Second, "the others have all", func() bool { h := r.held(a, c); return h[0]+h[1] == 8 })
		took := time.Since(began)
		if lost > ttl*4/5+400*time.Millisecond {
			t.Errorf("b held for %s without Consul", lost)
		}
		if took > 2*ttl+250*time.Millisecond+time.Second { // and time for a busy machine
			t.Errorf("the others had all only after %s", took)
		}
		for _, o := range []*one{a, c} {
			for p, claim := range o.claims(8) {
				if old, was := had[p]; was && (claim.Clean || claim.Epoch <= old.Epoch) {
					t.Errorf("partition %d of the dead %+v is held as %+v", p, old, claim)
				}
			}
		}
		if v := b.View(); v.Connected {
			t.Errorf("%+v", v)
		}
		b.wire.Mend()
		back := r.shares(20*time.Second, []int{2, 3, 3}, a, b, c)
		t.Logf("round %d: lost after %s, others held all after %s, back %s after the way was", round, lost, took, back)
	}
	r.exclusive()
}

// A process that is started again after kill -9 is back at once, and has what it had; what it gets is not clean.
func TestRestart(t *testing.T) {
	r := newRig(t, 8, consultest.Start(t))
	a, b := r.start("a@h"), r.start("b@h")
	r.obey(a, b)
	r.shares(8*time.Second, []int{4, 4}, a, b)
	had := b.claims(8)
	b.wire.Cut()
	r.until(5*time.Second, "the process is gone", func() bool { return len(b.claims(8)) == 0 }) // in one process its clock must run out
	began := time.Now()
	again := r.start("b@h")
	r.obey(again)
	r.shares(5*time.Second, []int{4, 4}, a, again)
	took := time.Since(began)
	if took > ttl {
		t.Errorf("back after %s", took)
	}
	for p, claim := range again.claims(8) {
		_, was := had[p]
		if claim.Clean && was || !was && took < 200*time.Millisecond { // the others wait that long for it, and a slow machine may be slower
			t.Errorf("partition %d: %+v, had before %v", p, claim, was)
		}
	}
	t.Logf("back after %s", took)
	r.exclusive()
}

// An operator ends the session: its holder hears of it, loses all, and gets back what is its share.
func TestOperator(t *testing.T) {
	r := newRig(t, 8, consultest.Start(t))
	a, b := r.start("a@h"), r.start("b@h")
	r.obey(a, b)
	r.shares(8*time.Second, []int{4, 4}, a, b)
	client := r.config("x", r.consul.Addr, "").Client
	var slowest time.Duration
	for range 5 {
		had := a.claims(8)
		pair, _, err := client.KV().Get("retinue/queues/thumbs/partitions/thumbs/member/a@h", nil)
		if err != nil || pair == nil || pair.Session == "" {
			t.Fatal(pair, err)
		}
		changed := a.Changed()
		if _, err := client.Session().Destroy(pair.Session, nil); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		<-changed
		heard := time.Since(began)
		slowest = max(slowest, heard)
		r.until(5*time.Second, "shares again, by new holds", func() bool {
			h := r.held(a, b)
			for p, claim := range a.claims(8) {
				if old, was := had[p]; was && old.Epoch == claim.Epoch {
					return false
				}
			}
			return h[0] == 4 && h[1] == 4
		})
		t.Logf("heard after %s, shares again after %s", heard, time.Since(began))
	}
	// A lock that is deleted by hand: the key is new, and yet nobody takes it for clean.
	p := -1
	for p = range a.claims(8) {
		break
	}
	old, _ := a.Held(p)
	if _, err := client.KV().Delete(fmt.Sprintf("retinue/queues/thumbs/partitions/thumbs/owner/%04d", p), nil); err != nil {
		t.Fatal(err)
	}
	r.until(5*time.Second, "a new hold", func() bool {
		for _, o := range []*one{a, b} {
			if claim, ok := o.Held(p); ok && claim.Epoch > old.Epoch {
				if claim.Clean {
					t.Errorf("%+v is clean", claim)
				}
				return true
			}
		}
		return false
	})
	// A value edited by hand, of a locked key: nothing happens, and it can still be given, clean.
	r.shares(5*time.Second, []int{4, 4}, a, b)
	for p = range a.claims(8) {
		break
	}
	old, _ = a.Held(p)
	if _, err := client.KV().Put(&api.KVPair{Key: fmt.Sprintf("retinue/queues/thumbs/partitions/thumbs/owner/%04d", p), Value: []byte("mine")}, nil); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if now, ok := a.Held(p); !ok || now.Epoch != old.Epoch {
		t.Errorf("%+v became %+v", old, now)
	}
	a.Stand(false)
	r.until(5*time.Second, "b has it, clean", func() bool { claim, ok := b.Held(p); return ok && claim.Clean })
	if slowest < 150*time.Millisecond { // on a machine so busy that it takes longer nothing is promised
		r.exclusive()
	}
}

// Consul is killed and comes back: what was held stays held if it takes less than the lease, and is lost by the clock otherwise.
func TestConsulKilled(t *testing.T) {
	r := newRig(t, 8, consultest.StartKept(t))
	a, b := r.start("a@h"), r.start("b@h")
	r.obey(a, b)
	r.shares(8*time.Second, []int{4, 4}, a, b)
	r.consul.Kill()
	lost := r.until(5*time.Second, "all is lost", func() bool { h := r.held(a, b); return h[0]+h[1] == 0 })
	if lost > ttl*4/5+400*time.Millisecond {
		t.Errorf("held for %s without Consul", lost)
	}
	if v := a.View(); v.Connected || v.Why == "" {
		t.Errorf("%+v", v)
	}
	r.consul.Restart(t)
	back := r.shares(20*time.Second, []int{4, 4}, a, b)
	t.Logf("lost after %s, back %s after Consul", lost, back)
	r.exclusive()
	r.swept(a, b)
}

// With ACLs a coordinator does all of it with its own policy, and says what is missing with another.
func TestACL(t *testing.T) {
	r := newRig(t, 4, consultest.Start(t, `acl { enabled = true  default_policy = "deny"  tokens { initial_management = "root"  agent = "root" } }`))
	root := r.config("x", r.consul.Addr, "root").Client
	token := func(rules string) string {
		t.Helper()
		name := fmt.Sprintf("p%d", time.Now().UnixNano())
		if _, _, err := root.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil); err != nil {
			t.Fatal(err)
		}
		tok, _, err := root.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{Name: name}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return tok.SecretID
	}
	right := token(coordinator.ACL("thumbs"))
	a, b := r.startAs("a@h", right), r.startAs("b@h", right)
	r.obey(a, b)
	r.shares(8*time.Second, []int{2, 2}, a, b)
	b.wire.Cut()
	r.until(5*time.Second, "lost", func() bool { return r.held(b)[0] == 0 })
	again := r.startAs("b@h", right) // ends the session of the one before
	r.obey(again)
	r.shares(2*time.Second, []int{2, 2}, a, again)
	again.stop()
	r.shares(5*time.Second, []int{4}, a)

	other := r.startAs("c@h", token(coordinator.ACL("another")))
	r.until(5*time.Second, "why not", func() bool {
		v := other.View()
		return len(other.claims(4)) == 0 && (v.Why != "" && (strings.Contains(v.Why, "403") || strings.Contains(v.Why, "Permission denied")))
	})
	none := r.startAs("d@h", token(`key_prefix "x" { policy = "read" }`))
	r.until(5*time.Second, "why not", func() bool { return strings.Contains(none.View().Why, "Permission denied") })
	r.exclusive()
}

// A second one of the same name does not take anything from the first for long, and says why it has nothing.
func TestSameName(t *testing.T) {
	r := newRig(t, 2, consultest.Start(t))
	a := r.start("a@h")
	r.shares(5*time.Second, []int{2}, a)
	twin := r.start("a@h")
	r.until(10*time.Second, "one of them has all, and the other says why", func() bool {
		for _, o := range []*one{a, twin} {
			if strings.Contains(o.View().Why, "another coordinator with the name") && len(o.claims(2)) == 0 {
				h := r.held(a, twin)
				return h[0]+h[1] == 2
			}
		}
		return false
	})
}

// Coordinators of another version that count other partitions take nothing that is held, and all is held by somebody.
func TestOtherCount(t *testing.T) {
	r := newRig(t, 6, consultest.Start(t))
	four := r.config("a@h", r.consul.Addr, "")
	four.Partitions = 4
	a := r.run(four)
	r.shares(5*time.Second, []int{4}, a)
	b := r.start("b@h")
	r.obey(a, b)
	r.until(5*time.Second, "b has the two that a does not count", func() bool { h := r.held(a, b); return h[0] == 4 && h[1] == 2 })
	if v := b.View(); !strings.Contains(v.Why, "another number") {
		t.Errorf("%+v", v)
	}
	a.stop()
	r.shares(5*time.Second, []int{6}, b)
	if data, err := json.Marshal(b.View()); err != nil || !strings.Contains(string(data), `{"partition":5,"owner":"b@h","ours":true}`) {
		t.Errorf("%s, %v", data, err)
	}
	r.exclusive()
}

// Without Consul it ends as soon as it is asked to.
func TestNoConsul(t *testing.T) {
	r := &rig{t: t, n: 3}
	h, err := partition.New(r.config("a@h", "127.0.0.1:1", ""))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	before := runtime.NumGoroutine()
	h.Run(ctx)
	r.until(2*time.Second, "no goroutine of it is left", func() bool { return runtime.NumGoroutine() <= before }) // those of connections that were refused end by themselves
	if v := h.View(); v.Connected || !strings.Contains(v.Why, "refused") {
		t.Errorf("%+v", v)
	}
	if _, ok := h.Held(0); ok {
		t.Error("holds something")
	}
	h.Give(0, 7)
	h.Give(-1, 7)
	h.Stand(false)
}
