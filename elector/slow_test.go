package elector

import (
	"net/http"
	"testing"
	"time"
)

// leads counts the milliseconds of d in which n leads, and holds every deadline against the renewals that were answered by then: it
// stands where the latest of them was sent, and never goes back.
func (f *fleet) leads(n *node, d time.Duration) (share float64) {
	f.t.Helper()
	led, last := 0, n.view().Deadline
	lease := n.el.cfg.Lease - n.el.cfg.guard()
	for range d.Milliseconds() {
		f.watch(time.Millisecond)
		newest := n.store.newest().Sub(f.start) + time.Hour
		v := n.view()
		switch bound := newest + lease; {
		case !n.store.newest().IsZero() && v.Proven && time.Duration(v.Deadline) > bound+time.Microsecond:
			f.t.Fatalf("the deadline is %s after the latest renewal that was answered was sent; the lease is %s", time.Duration(v.Deadline)-newest, lease)
		case v.Proven && v.Deadline < last:
			f.t.Fatalf("the deadline went back by %s", last.Sub(v.Deadline))
		}
		last = v.Deadline
		if n.role() == Leader {
			led++
		}
	}
	return float64(led) / float64(d.Milliseconds())
}

// A Consul that is slow is not dead: while it answers before the lease is over, the leader leads on.
func TestSlowConsul(t *testing.T) {
	const lease = 2000
	steady := func(ms int) func(int) time.Duration {
		return func(int) time.Duration { return time.Duration(ms) * time.Millisecond }
	}
	for _, slow := range []struct {
		name  string
		all   time.Duration
		pace  func(n int) time.Duration
		least float64
	}{
		{"everything takes 0.35 L", 0.35 * lease * time.Millisecond, nil, 1},
		{"everything takes 0.6 L", 0.6 * lease * time.Millisecond, nil, 1},
		{"renewals take 0.7 L", 0, steady(0.7 * lease), 0.99}, // the first of them is sent when it was thought to be fast
		{"one renewal in three is never answered", 0.35 * lease * time.Millisecond, func(n int) time.Duration {
			if n%3 == 2 {
				return -1
			}
			return 0.35 * lease * time.Millisecond
		}, 1},
		{"every other renewal is never answered", 0, func(n int) time.Duration {
			if n%2 == 0 {
				return -1
			}
			return time.Millisecond
		}, 1},
		{"the second of two is answered first", 0, func(n int) time.Duration {
			return []time.Duration{0.6 * lease, 0.1 * lease}[n%2] * time.Millisecond
		}, 1},
		{"any order", 0, func(n int) time.Duration {
			return []time.Duration{0.5 * lease, 0.3 * lease, 0.01 * lease, 0.7 * lease, 0.05 * lease, 0.45 * lease, 0.2 * lease}[n%7] * time.Millisecond
		}, 1},
	} {
		t.Run(slow.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := newFleet(t, testConfig("a"), testConfig("b"))
				defer f.close()
				a := f.nodes[0]
				g := a.become(`{}`)
				defer a.tether(g.Token)()
				f.nodes[1].campaign(`{}`)
				f.watch(time.Second)
				a.store.paced(slow.pace)
				a.store.slow(slow.all)
				if share := f.leads(a, time.Minute); share < slow.least {
					t.Errorf("led for %.1f %% of the time", 100*share)
				}
				if a.view().Token != g.Token {
					t.Errorf("token %d, was %d", a.view().Token, g.Token)
				}
			})
		})
	}
}

// A Consul that takes nearly a lease for every answer cannot keep a leader in office. Nobody else leads either, and the leader goes
// on with its token when that is over.
func TestConsulSlowerThanTheLease(t *testing.T) {
	for _, d := range []time.Duration{1800 * time.Millisecond, 2500 * time.Millisecond} {
		bubble(t, func(t *testing.T) {
			f := newFleet(t, testConfig("a"), testConfig("b"))
			defer f.close()
			a, b := f.nodes[0], f.nodes[1]
			g := a.become(`{}`)
			defer a.tether(g.Token)()
			b.campaign(`{}`)
			f.watch(time.Second)
			a.store.slow(d)
			f.leads(a, 30*time.Second)
			if a.role() != Suspended || b.role() != Follower {
				t.Errorf("answers after %s: a %s, b %s", d, a.role(), b.role())
			}
			a.store.slow(0)
			f.leads(a, 3*time.Second)
			if a.role() != Leader || a.view().Token != g.Token {
				t.Errorf("after that: %s with token %d, was %d", a.role(), a.view().Token, g.Token)
			}
		})
	}
}

// What is slow still works: leadership is given up, and taken.
func TestResignWithASlowConsul(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{}`)
		next := b.campaign(`{}`)
		f.watch(time.Second)
		for _, n := range f.nodes {
			n.store.slow(1200 * time.Millisecond)
		}
		if status, body := a.post("/resign", `{"token":`+utoa(g.Token)+`}`); status != http.StatusOK {
			t.Fatalf("resign: %d %s", status, body)
		}
		f.watch(10 * time.Second)
		select {
		case ng := <-next:
			if ng.Token <= g.Token {
				t.Errorf("%+v after %+v", ng, g)
			}
		default:
			t.Errorf("nobody followed: a %s, b %s", a.role(), b.role())
		}
	})
}

// Two renewals that are answered when the lease is over, the later one first: what has to be confirmed is the later one.
func TestLateAnswersOutOfOrder(t *testing.T) {
	s := newScript(t, testConfig("a").Config)
	s.elected()
	s.now = s.now.Add(700 * time.Millisecond)
	s.want(evTick{}, "renew")
	first := s.now
	s.now = s.now.Add(500 * time.Millisecond)
	s.want(evTick{}, "renew") // beside the first, which is not given up
	second := s.now
	s.now = s.now.Add(800 * time.Millisecond)
	s.want(evTick{}, "suspended no_answer_from_consul", "renew")
	s.want(evTick{}) // three are enough
	s.want(evRenewed{session: "s1", sent: second, received: s.now}, "confirm")
	s.want(evRenewed{session: "s1", sent: first, received: s.now})
	s.committed(21, "resumed")
	if until := second.Add(s.m.cfg.Lease - s.m.cfg.guard()); s.m.session.until != until {
		s.t.Errorf("the lease ends %s after that of the later renewal", s.m.session.until.Sub(until))
	}
	before := s.m.session.until
	s.want(evRenewed{session: "s1", sent: first, received: s.now})
	if s.m.session.until != before {
		s.t.Errorf("an old answer moved the deadline by %s", s.m.session.until.Sub(before))
	}
}
