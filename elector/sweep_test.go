package elector

import (
	"testing"
	"testing/synctest"
	"time"
)

// What a dead elector leaves is taken away after a while, by one of the living.
func TestSweep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"), testConfig("c"))
		defer f.close()
		key := func(n *node) string {
			return kvRoot + "app/" + candidateKey(n.el.cfg.ID, n.el.feed.info.Load().Session)
		}
		f.nodes[0].become(`{}`)
		f.nodes[0].kill()
		time.Sleep(30 * time.Second)
		if f.c.entry(key(f.nodes[0])).Modify == 0 {
			t.Error("the traces of a dead elector went too early to be seen")
		}
		time.Sleep(40 * time.Second)
		synctest.Wait()
		if e := f.c.entry(key(f.nodes[0])); e.Modify != 0 {
			t.Errorf("the record is still there: %+v", e)
		}
		for _, n := range f.nodes[1:] {
			if f.c.holder(key(n)) == "" {
				t.Errorf("the record of %s, which lives, is gone", n.el.cfg.ID)
			}
		}
	})
}

// Elections spread over the electors by their rank, without anybody's plan.
func TestRebalance(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var names []string
		for i := range 60 {
			names = append(names, "shard-"+utoa(uint64(i)))
		}
		cfg := func(id string) fleetConfig {
			c := testConfig(id)
			c.Elections = names
			return c
		}
		f := newFleet(t, cfg("a"), cfg("b"), cfg("c"))
		defer f.close()
		leads := func(n *node) (count int) {
			for _, name := range names {
				if n.el.feed.view(name).Role(n.el.clock.Now()) == Leader {
					count++
				}
			}
			return count
		}
		for i, n := range f.nodes {
			for _, name := range names {
				n.el.ask(t.Context(), evCampaign{election: name, id: "app", lease: time.Hour})
			}
			time.Sleep(time.Second)
			if i == 0 && leads(n) != len(names) {
				t.Fatalf("the only elector leads %d", leads(n))
			}
		}
		r, err := f.nodes[0].el.ask(t.Context(), evRebalance{})
		if err != nil || len(r.moves) < 20 {
			t.Fatalf("%d moves, %v", len(r.moves), err)
		}
		for name := range r.moves { // the application is well-behaved
			v := f.nodes[0].el.feed.view(name)
			f.nodes[0].el.await(t.Context(), envelope{ev: evResign{election: name, token: v.Token, req: f.nodes[0].el.reqs.Add(1)}, reply: make(chan reply, 1), out: make(chan Outcome, 1)})
		}
		time.Sleep(time.Second)
		for _, n := range f.nodes {
			if count := leads(n); count < 8 || count > 34 {
				t.Errorf("%s leads %d of %d", n.el.cfg.ID, count, len(names))
			}
		}
		if r, _ := f.nodes[1].el.ask(t.Context(), evRebalance{}); len(r.moves) != 0 {
			t.Errorf("balanced, and yet %d moves", len(r.moves))
		}
	})
}
