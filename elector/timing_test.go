package elector

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"retinue/internal/clock"
)

func TestElectRenewResign(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{"id":"x","value":{"n":1}}`)
		if g.LeaseMS != 2000 || g.RemainingMS <= 0 || g.Term != 1 {
			t.Errorf("%+v", g)
		}
		next := b.campaign(`{"id":"y"}`)
		for range 10 {
			f.watch(600 * time.Millisecond)
			if status, again := a.renew(g.Token); status != http.StatusOK || again.DeadlineBoot < g.DeadlineBoot || again.RemainingMS < 1200 {
				t.Fatalf("renew: %d %+v", status, again)
			}
		}
		if v := b.view(); v.Leader == nil || v.Leader.ID != "x" || v.Leader.Token != g.Token || v.Role(b.el.clock.Now()) != Follower {
			t.Errorf("b sees %+v", v.Leader)
		}
		if status, body := a.post("/resign", `{"token":`+utoa(g.Token)+`}`); status != http.StatusOK {
			t.Fatalf("resign: %d %s", status, body)
		}
		if status, body := a.post("/resign", `{"token":`+utoa(g.Token)+`}`); status != http.StatusOK {
			t.Errorf("resign again: %d %s", status, body)
		}
		if ng := <-next; ng.Token <= g.Token || ng.Term != 2 {
			t.Errorf("%+v after %+v", ng, g)
		}
		if status, _ := a.renew(g.Token); status != http.StatusConflict {
			t.Errorf("renewal after resigning: %d", status)
		}
	})
}

// A leader that Consul cannot hear stops by its own clock, before anybody else may lead, however its clock errs.
func TestPartitionedLeader(t *testing.T) {
	for _, revocation := range []Revocation{Safe, Fast} {
		for _, rate := range []float64{0.99, 1, 1.01} {
			t.Run(string(revocation), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					ca, cb := testConfig("a"), testConfig("b")
					ca.rate, ca.Revocation, cb.Revocation = rate, revocation, revocation
					f := newFleet(t, ca, cb)
					defer f.close()
					a, b := f.nodes[0], f.nodes[1]
					g := a.become(`{}`)
					closeTether := a.tether(g.Token)
					defer closeTether()
					next := b.campaign(`{}`)
					f.watch(3 * time.Second)
					a.store.partition(true)
					cut := time.Now()
					for a.role() == Leader {
						f.watch(time.Millisecond)
					}
					if took := time.Since(cut); took > 2*time.Second {
						t.Errorf("led for %s after it was cut off", took)
					}
					bound := ca.worstFailover(ca.Lease) + 100*time.Millisecond
					f.watch(bound)
					select {
					case ng := <-next:
						if ng.Token <= g.Token {
							t.Errorf("token %d after %d", ng.Token, g.Token)
						}
						next = b.campaign(`{}`) // its lease has run out meanwhile: nobody renewed it
					default:
						t.Errorf("no successor after %s", bound)
					}
					if status, _ := a.renew(g.Token); status != http.StatusServiceUnavailable {
						t.Errorf("renewal while suspended: %d", status)
					}
					a.store.partition(false)
					f.watch(time.Second)
					if ng := <-next; a.role() != Follower || b.role() != Leader || ng.Token <= g.Token {
						t.Errorf("after the partition: a %s, b %s", a.role(), b.role())
					}
				})
			})
		}
	}
}

// An outage longer than the lease and shorter than the session suspends; the same token resumes.
func TestSuspendedResumes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		defer a.tether(g.Token)()
		f.nodes[1].campaign(`{}`)
		f.watch(time.Second)
		index := a.view().Index
		a.store.partition(true)
		f.watch(2500 * time.Millisecond)
		if a.role() != Suspended {
			t.Fatalf("role %s", a.role())
		}
		a.store.partition(false)
		f.watch(time.Second)
		if v := a.view(); a.role() != Leader || v.Token != g.Token {
			t.Errorf("role %s, token %d, was %d", a.role(), v.Token, g.Token)
		}
		if got := a.types(index); !slices.Equal(got, []EventType{EventSuspended, EventResumed}) {
			t.Errorf("events %v", got)
		}
	})
}

// Rule 2: Consul answers 200 to the renewal of a session whose end is decided. A leader that believed it would lead on, unheard of,
// while its successor starts.
func TestRenewalOfADoomedSessionProvesNothing(t *testing.T) {
	for _, revocation := range []Revocation{Safe, Fast} {
		t.Run(string(revocation), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				ca, cb := testConfig("a"), testConfig("b")
				ca.Revocation, cb.Revocation = revocation, revocation
				f := newFleet(t, ca, cb)
				defer f.close()
				f.c.applyLag = 300 * time.Millisecond
				a, b := f.nodes[0], f.nodes[1]
				g := a.become(`{}`)
				defer a.tether(g.Token)()
				next := b.campaign(`{}`)
				f.watch(time.Second)
				a.store.partition(true)
				for !doomed(f.c) {
					f.watch(time.Millisecond)
				}
				a.store.partition(false) // renewals are answered again, and the session has 300 ms to live
				for f.c.lies() == 0 {
					f.watch(time.Millisecond)
				}
				f.watch(20 * time.Millisecond)
				a.store.partition(true) // it does not hear of the end
				f.watch(2*time.Second + 500*time.Millisecond)
				if ng, ok := <-next; !ok || ng.Token <= g.Token {
					t.Errorf("%+v after %+v", ng, g)
				}
			})
		})
	}
}

func doomed(c *modelConsul) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		if s.doomed {
			return true
		}
	}
	return false
}

// Safe revocation: an operator ends the session right after a renewal, and the leader does not hear of it. Its clock is slow by
// the most that the guard allows for.
func TestInvalidationUnheard(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ca := testConfig("a")
		ca.rate = 0.99
		f := newFleet(t, ca)
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		defer a.tether(g.Token)()
		f.watch(time.Second)
		until := a.view().Deadline
		for a.view().Deadline == until { // until a renewal has just succeeded
			f.watch(time.Millisecond)
		}
		a.store.partition(true)
		f.c.invalidate(f.c.holder(Key("app", "leader")))
		f.takeOver()
		if a.role() == Leader {
			t.Error("two leaders at once")
		}
	})
}

// The lease begins before the request that confirms it. The renewal takes long, and the session ends right after the server has
// dealt with it.
func TestLeaseBeginsWithTheRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		defer a.tether(g.Token)()
		f.watch(time.Second)
		a.store.slow(480 * time.Millisecond)
		until := a.view().Deadline
		for a.view().Deadline == until {
			f.watch(time.Millisecond)
		}
		a.store.partition(true)
		session := f.c.holder(Key("app", "leader"))
		f.c.invalidatedAt(session, 240*time.Millisecond) // when the renewal was dealt with
		f.takeOver()
		if a.role() == Leader {
			t.Error("two leaders at once")
		}
	})
}

// An invalidation that is heard ends leadership at once.
func TestInvalidationHeard(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		defer a.tether(g.Token)()
		f.c.invalidate(f.c.holder(Key("app", "leader")))
		synctest.Wait()
		if a.role() != Follower || a.view().LostReason != "revoked" {
			t.Errorf("role %s, reason %s", a.role(), a.view().LostReason)
		}
	})
}

// An operator deletes the key: whoever locks it next is not held up by a lock-delay, so the leader must go at once.
func TestKeyDeleted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		defer a.tether(g.Token)()
		f.watch(100 * time.Millisecond) // a write that is under way would learn first that the lock is gone, and not why
		f.c.remove(Key("app", "leader"))
		synctest.Wait()
		if a.role() != Follower || a.view().LostReason != "key_deleted" {
			t.Errorf("role %s, reason %s", a.role(), a.view().LostReason)
		}
		if again := a.become(`{}`); again.Token <= g.Token {
			t.Errorf("token %d after %d", again.Token, g.Token)
		}
	})
}

// An operator's edit neither ends leadership nor changes the token, and the record is put back.
func TestKeyEdited(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{"id":"x"}`)
		defer a.tether(g.Token)()
		f.c.put(Key("app", "leader"), "oops")
		f.watch(3 * time.Second)
		if a.role() != Leader || a.view().Token != g.Token {
			t.Errorf("role %s, token %d", a.role(), a.view().Token)
		}
		if l := b.view().Leader; l == nil || l.ID != "x" || l.Token != g.Token {
			t.Errorf("b sees %+v", l)
		}
	})
}

// The answer to the lock is lost: nothing is granted on a guess, and the lock is not lost either.
func TestLostAnswers(t *testing.T) {
	for lost := 1; lost <= 3; lost++ {
		bubble(t, func(t *testing.T) {
			f := newFleet(t, testConfig("a"), testConfig("b"))
			defer f.close()
			a := f.nodes[0]
			f.watch(100 * time.Millisecond)
			a.store.lose(lost)
			g := a.become(`{}`)
			if e := f.c.entry(Key("app", "leader")); e.Session == "" || g.Token > e.Modify {
				t.Errorf("lost %d: token %d, key %+v", lost, g.Token, e)
			}
			a.store.lose(lost)
			next := f.nodes[1].campaign(`{}`)
			a.post("/resign", `{"token":`+utoa(g.Token)+`}`)
			f.watch(2 * time.Second)
			if ng, ok := <-next; !ok || ng.Token <= g.Token {
				t.Errorf("lost %d: %+v after %+v", lost, ng, g)
			}
		})
	}
}

func TestApplicationLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{"lease_ms":500}`)
		start := time.Now()
		next := b.campaign(`{}`)
		ng := <-next
		if took := time.Since(start); took < 500*time.Millisecond || took > 700*time.Millisecond || ng.Token <= g.Token {
			t.Errorf("the successor of a silent application came after %s", took)
		}
		if a.view().LostReason != "app_lease_expired" {
			t.Errorf("reason %s", a.view().LostReason)
		}
	})
}

// What becomes due while the owner still carries out a step is due at once: here, the end of an application's lease. Nothing else
// happens for a third of the elector's.
func TestDueDuringAStep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		cfg, busy := testConfig("a"), &leapClock{Clock: clock.Bubble()}
		cfg.Lease, cfg.clock = time.Minute, busy
		f := newFleet(t, cfg)
		defer f.close()
		a := f.nodes[0]
		a.become(`{"lease_ms":2000}`)
		f.watch(500 * time.Millisecond) // the record and the catalog are written
		busy.leap.Store(int64(time.Second))
		a.el.ask(t.Context(), evTick{}) // half a second before the lease ends, and the next look at the clock is after it
		time.Sleep(time.Millisecond)
		busy.leap.Store(0)
		if v := a.view(); v.LostReason != "app_lease_expired" || a.role() != Follower {
			t.Errorf("role %s, lost for %q", a.role(), v.LostReason)
		}
	})
}

// A tether replaces renewals, unless a lease was asked for: then it only adds the application's death.
func TestTether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{}`)
		closeTether := a.tether(g.Token)
		f.watch(10 * time.Second)
		if a.role() != Leader {
			t.Fatalf("role %s", a.role())
		}
		next := b.campaign(`{"lease_ms":600}`)
		f.watch(100 * time.Millisecond)
		start := time.Now()
		closeTether()
		ng := <-next
		if took := time.Since(start); took > 20*time.Millisecond {
			t.Errorf("the successor of a dead application came after %s", took)
		}
		defer b.tether(ng.Token)()
		f.watch(time.Second)
		if b.role() != Follower || b.view().LostReason != "app_lease_expired" {
			t.Errorf("an application that hangs with an open tether: role %s (%s)", b.role(), b.view().LostReason)
		}
	})
}

func TestTransfer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"), testConfig("c"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{}`)
		next := b.campaign(`{"id":"y"}`)
		f.watch(100 * time.Millisecond)
		if status, body := a.post("/resign", `{"token":`+utoa(g.Token)+`,"to":"c"}`); status != http.StatusConflict || a.role() != Leader {
			t.Errorf("handed over to an elector without a candidate: %d %s, role %s", status, body, a.role())
		}
		index := f.c.now()
		if status, body := a.post("/resign", `{"token":`+utoa(g.Token)+`,"to":"b"}`); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		ng := <-next
		if ng.Token != index+1 || ng.ID != "y" {
			t.Errorf("token %d, the transfer was entry %d", ng.Token, index+1)
		}
	})
}

// Stopping asks the application first, and leaves nothing in Consul.
func TestStop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{}`)
		closeTether := a.tether(g.Token)
		next := b.campaign(`{}`)
		f.watch(100 * time.Millisecond)
		a.stop()
		f.watch(500 * time.Millisecond)
		if !a.view().Stepdown || a.role() != Leader {
			t.Fatalf("stepdown %v, role %s", a.view().Stepdown, a.role())
		}
		if status, _ := a.post("/become", `{"id":"other"}`); status != http.StatusServiceUnavailable {
			t.Errorf("a campaign at a stopping elector: %d", status)
		}
		start := time.Now()
		closeTether()
		<-a.ended
		<-next
		if took := time.Since(start); took > 50*time.Millisecond {
			t.Errorf("took %s", took)
		}
		f.c.mu.Lock()
		defer f.c.mu.Unlock()
		if len(f.c.sessions) != 1 || f.c.tags["a"] != nil {
			t.Errorf("left behind: %d sessions, tags %v", len(f.c.sessions), f.c.tags["a"])
		}
	})
}

// An application that ignores the request to step down keeps its lease, not more.
func TestStopWithAStubbornApplication(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		a.tether(g.Token)
		f.watch(time.Second)
		start := time.Now()
		a.stop()
		for a.role() == Leader {
			a.renew(g.Token)
			f.watch(10 * time.Millisecond)
		}
		if took := time.Since(start); took > 2*time.Second+20*time.Millisecond {
			t.Errorf("led on for %s", took)
		}
		<-a.ended
	})
}

// A campaign that is given up before it is won leaves no leader that nobody knows of.
func TestAbandonedCampaign(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{}`)
		defer a.tether(g.Token)()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan int, 1)
		go func() { status, _ := b.request(ctx, http.MethodPost, "/become", `{}`); done <- status }()
		f.watch(100 * time.Millisecond)
		cancel()
		<-done
		a.post("/resign", `{"token":`+utoa(g.Token)+`}`)
		f.watch(time.Second)
		if b.role() != Follower || f.c.holder(Key("app", "leader")) != "" {
			t.Errorf("role %s, key held by %q", b.role(), f.c.holder(Key("app", "leader")))
		}
	})
}

// The role needs nothing but the clock: the owner may be stuck.
func TestRoleByClockAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{}`)
		defer a.tether(g.Token)()
		stuck := make(chan reply) // nobody reads: the owner blocks in its answer
		a.el.inbox <- envelope{ev: evTick{}, reply: stuck}
		time.Sleep(2 * time.Second)
		status, _ := a.request(context.Background(), http.MethodGet, "/role", "")
		if status != http.StatusServiceUnavailable || a.role() != Suspended {
			t.Errorf("status %d, role %s", status, a.role())
		}
		<-stuck
	})
}

// A candidate is told when Consul has gone silent, and not that nobody has been elected, or that somebody leads as far as was heard.
func TestCampaignAtASilentConsul(t *testing.T) {
	for _, led := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			f := newFleet(t, testConfig("a"), testConfig("b"))
			defer f.close()
			a := f.nodes[0]
			if led {
				g := f.nodes[1].become(`{}`)
				defer f.nodes[1].tether(g.Token)()
			}
			f.watch(time.Second)
			a.store.partition(true)
			f.watch(2500 * time.Millisecond)
			var ref Refusal
			status, body := a.post("/become", `{"wait_ms":100}`)
			if !decode(body, &ref) || status != http.StatusServiceUnavailable || ref.Error != "unavailable" || ref.Reason != "no_session" {
				t.Errorf("led %v: %d %s", led, status, body)
			}
		})
	}
}

// A new server leader gives every session its time again: the leader is suspended while there is none, and resumes.
func TestConsulLeaderChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"), testConfig("b"))
		defer f.close()
		a, b := f.nodes[0], f.nodes[1]
		g := a.become(`{}`)
		defer a.tether(g.Token)()
		b.campaign(`{}`)
		f.watch(time.Second)
		a.store.partition(true)
		b.store.partition(true)
		f.watch(2600 * time.Millisecond)
		f.c.changeLeader()
		a.store.partition(false)
		b.store.partition(false)
		f.watch(3 * time.Second)
		if a.role() != Leader || a.view().Token != g.Token || b.role() != Follower {
			t.Errorf("a %s with token %d (was %d), b %s", a.role(), a.view().Token, g.Token, b.role())
		}
	})
}

// Two applications at one elector: one leads, the other waits its turn.
func TestTwoApplicationsAtOneElector(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := newFleet(t, testConfig("a"))
		defer f.close()
		a := f.nodes[0]
		g := a.become(`{"id":"x"}`)
		if again := a.become(`{"id":"x"}`); again.Token != g.Token {
			t.Errorf("become again: token %d, was %d", again.Token, g.Token)
		}
		if status, body := a.post("/become", `{"id":"y","wait_ms":0}`); status != http.StatusConflict {
			t.Errorf("%d %s", status, body)
		}
		next := a.campaign(`{"id":"y"}`)
		f.watch(100 * time.Millisecond)
		a.post("/resign", `{"token":`+utoa(g.Token)+`}`)
		if ng := <-next; ng.Token <= g.Token || ng.ID != "y" {
			t.Errorf("%+v after %+v", ng, g)
		}
	})
}
