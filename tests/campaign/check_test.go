package main

import (
	"testing"
	"time"
)

// past is a campaign of one election whose history a test writes by hand. Times are in milliseconds.
type past struct {
	*campaign
	e    *election
	apps []*incarnation
}

func newPast(revocation string) *past {
	g := &group{groupSpec: groupSpec{Name: "g", Revocation: revocation, Mode: modeTether}, name: "g", lease: time.Second}
	p := &past{campaign: &campaign{judge: &judge{}, starve: &starvation{}, probe: &probe{writes: map[*node][]plainWrite{}}, world: &world{groups: []*group{g}}}, e: newElection(g, "e0")}
	g.elections = []*election{p.e}
	for i := range 3 {
		s := &slot{name: string(rune('a' + i)), group: g, node: &node{}, kills: map[int]int64{}}
		g.slots = append(g.slots, s)
		p.apps = append(p.apps, s.incarnate(i+1))
	}
	return p
}

func ms(n int) int64 { return int64(time.Hour) + int64(n)*int64(time.Millisecond) }

func (p *past) leads(app int, token uint64, from, until int) {
	p.e.believed(p.apps[app], message{Token: token, Call: ms(from - 5), At: ms(from), Until: ms(until)})
}

func (p *past) acted(act operatorAct, from, to int) {
	act.from, act.to = ms(from), ms(to)
	p.e.acted(act)
}

func (p *past) writes(app int, token uint64, call, at, ret int, accepted bool, pos int) *operation {
	op := &operation{who: p.apps[app], token: token, call: ms(call), at: ms(at), ret: ms(ret), accepted: accepted, pos: pos, high: token}
	p.e.ops = append(p.e.ops, op)
	return op
}

// fault notes a fault of the group: of the slot of an application, of the servers (-1), or of the election's key (-2).
func (p *past) fault(class Class, from, to, app int) {
	f := injected{Class: class, Lane: "test", From: ms(from), To: ms(to), groups: p.world.groups}
	switch app {
	case -1:
	case -2:
		f.election = p.e
	default:
		f.slot = p.apps[app].slot
		f.slot.troubled(class, f.From, f.To)
	}
	p.done = append(p.done, f)
}

// broken are the invariants that the history breaks.
func (p *past) broken() map[int]bool {
	p.analyse()
	out := map[int]bool{}
	for _, v := range p.judge.found("") {
		out[v.Invariant] = true
	}
	return out
}

func TestJudge(t *testing.T) {
	for name, test := range map[string]struct {
		revocation string
		write      func(p *past)
		broken     []int
	}{
		"one after the other": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.leads(0, 10, 300, 1200)
			p.leads(1, 12, 1300, 2200)
		}, nil},
		"two at once": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.leads(1, 12, 800, 1700)
		}, []int{1}},
		"a lease prolonged over the beginning of the next": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.leads(1, 12, 950, 1700)
			p.leads(0, 10, 850, 1750)
		}, []int{1}},
		"the last word ends a lease": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.e.ended(p.apps[0], message{Token: 10, At: ms(500)})
			p.leads(1, 12, 510, 1400)
		}, nil},
		"death ends a lease": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.apps[0].killed.Store(ms(500))
			p.leads(1, 12, 510, 1400)
		}, nil},
		"the key was deleted": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.acted(operatorAct{class: operatorDel, index: 11}, 700, 710)
			p.leads(1, 12, 800, 1700)
		}, nil},
		"the key was deleted before": {"safe", func(p *past) {
			p.acted(operatorAct{class: operatorDel, index: 9}, -100, -90)
			p.leads(0, 10, 0, 900)
			p.leads(1, 12, 800, 1700)
		}, []int{1}},
		"the key was deleted between the lock and the news of it": {"safe", func(p *past) {
			p.acted(operatorAct{class: operatorDel, index: 10}, -20, -10)
			p.leads(0, 10, 0, 900)
			p.leads(1, 12, 50, 950)
		}, nil},
		"the key of the second leader was deleted": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.acted(operatorAct{class: operatorDel, index: 12}, 700, 710)
			p.leads(1, 12, 800, 1700)
		}, []int{1}},
		"the key was deleted long ago": {"safe", func(p *past) {
			p.leads(0, 10, 0, 9000)
			p.acted(operatorAct{class: operatorDel, index: 10}, 700, 710)
			p.leads(1, 12, 5000, 5900)
		}, []int{1}},
		"the key was deleted, and the second heard of it first": {"safe", func(p *past) {
			p.acted(operatorAct{class: operatorDel, index: 10}, -20, -10)
			p.leads(1, 12, 0, 900)
			p.leads(0, 10, 50, 800)
		}, nil},
		"a deletion that was not answered": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.acted(operatorAct{class: operatorDel, unanswered: true}, -2100, -100)
			p.leads(1, 12, 800, 1700)
		}, nil},
		"a leader refused after the key was deleted": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.acted(operatorAct{class: operatorDel, index: 10}, 5, 8)
			p.writes(1, 12, 10, 11, 12, true, 1)
			p.writes(0, 10, 20, 21, 22, false, 1).high = 12
		}, nil},
		"another's session was invalidated, fast": {"fast", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.acted(operatorAct{class: operatorInval, victim: "c"}, 700, 710)
			p.leads(1, 12, 800, 1700)
		}, []int{1}},
		"invalidated between the lock and the news of it, fast": {"fast", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.acted(operatorAct{class: operatorInval, victim: "a"}, -4, -2)
			p.leads(1, 12, 800, 1700)
		}, nil},
		"invalidated, fast": {"fast", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.acted(operatorAct{class: operatorInval, victim: "a"}, 700, 710)
			p.leads(1, 12, 800, 1700)
		}, nil},
		"invalidated, safe": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.acted(operatorAct{class: operatorInval, victim: "a"}, 700, 710)
			p.leads(1, 12, 800, 1700)
		}, []int{1}},
		"a falling token": {"safe", func(p *past) {
			p.leads(0, 12, 0, 900)
			p.leads(1, 10, 950, 1700)
		}, []int{1, 2}}, // the mutex model wants rising tokens, too
		"a shared token": {"safe", func(p *past) {
			p.leads(0, 12, 0, 900)
			p.leads(1, 12, 950, 1700)
		}, []int{2}},
		"another process of the application was killed": {"safe", func(p *past) {
			p.apps[0].slot.dies(7, ms(-500))
			p.apps[0] = p.apps[0].slot.incarnate(8)
			p.leads(0, 10, 0, 900)
			p.leads(1, 12, 800, 1700)
		}, []int{1}},
		"nobody for long after an application's death": {"safe", func(p *past) {
			p.fault(appKill, 500, 700, 0)
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 1100, 2000)
		}, []int{4}},
		"... on a machine that wakes sleepers late": {"safe", func(p *past) {
			p.fault(appKill, 500, 700, 0)
			p.starve.late = []lateness{{ms(600), 150 * time.Millisecond}}
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 1100, 2000)
		}, nil},
		"... longer than that explains": {"safe", func(p *past) {
			p.fault(appKill, 500, 700, 0)
			p.starve.late = []lateness{{ms(600), 150 * time.Millisecond}}
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 1200, 2000)
		}, []int{4}},
		"... while Consul takes 60 ms for a write": {"safe", func(p *past) {
			p.fault(appKill, 500, 700, 0)
			p.probe.note(p.apps[1].slot.node, ms(600), ms(660), false)
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 1150, 2000)
		}, nil},
		"... and Consul answers nobody for 600 ms": {"safe", func(p *past) {
			p.fault(appKill, 500, 700, 0)
			p.probe.note(p.apps[1].slot.node, ms(600), ms(1000), true)
			p.probe.note(p.apps[1].slot.node, ms(1200), ms(1210), false)
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 1600, 2400)
		}, nil},
		"... and Consul answers nobody for 200 ms": {"safe", func(p *past) {
			p.fault(appKill, 500, 700, 0)
			p.probe.note(p.apps[1].slot.node, ms(600), ms(750), true)
			p.probe.note(p.apps[1].slot.node, ms(800), ms(810), false)
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 1600, 2400)
		}, []int{4}},
		"... and another application wakes up late": {"safe", func(p *past) {
			p.fault(appKill, 500, 700, 0)
			p.world.late.note(p.apps[2], ms(700), 150*time.Millisecond)
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 1100, 2000)
		}, nil},
		"... and another application, which was stopped, wakes up late": {"safe", func(p *past) {
			p.fault(appKill, 500, 700, 0)
			p.world.late.note(p.apps[0], ms(700), 150*time.Millisecond)
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 1100, 2000)
		}, []int{4}},
		"... after a fault of the servers": {"safe", func(p *past) {
			p.fault(followerKill, -4000, -3000, -1)
			p.fault(appKill, 500, 700, 0)
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 2900, 3800)
		}, nil},
		"... long after a fault of the servers": {"safe", func(p *past) {
			p.fault(followerKill, -9000, -8500, -1)
			p.fault(appKill, 500, 700, 0)
			p.leads(0, 10, 0, 500)
			p.leads(1, 12, 2900, 3800)
		}, []int{4}},
		"an overlap on a machine that wakes sleepers late": {"safe", func(p *past) {
			p.starve.late = []lateness{{ms(600), 450 * time.Millisecond}}
			p.leads(0, 10, 0, 900)
			p.leads(1, 12, 890, 1700)
		}, []int{1}},
		"a hand-over to one that is dead": {"safe", func(p *past) {
			p.apps[2].slot.troubled(electorKill, ms(-300), ms(2700))
			p.leads(0, 10, 0, 900)
			p.e.ended(p.apps[0], message{Token: 10, At: ms(500)})
			p.fault(operatorInval, -800, -790, -2)
			p.leads(1, 12, 2200, 3000)
		}, nil},
		"nobody for long": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.leads(1, 12, 1500, 2400)
		}, []int{4}},
		"a leader refused": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.writes(0, 10, 10, 11, 12, true, 1)
			p.writes(0, 10, 20, 21, 22, false, 1)
		}, []int{3}},
		"a stale write taken": {"safe", func(p *past) {
			p.writes(1, 12, 10, 11, 12, true, 1)
			p.writes(0, 10, 20, 21, 22, true, 2)
		}, []int{3}},
		"a late write of unknown outcome": {"safe", func(p *past) {
			p.writes(0, 10, 5, 11, 0, true, 1).ret = 0
			p.writes(1, 12, 20, 21, 22, true, 2)
		}, nil},
		"a write that happened twice": {"safe", func(p *past) {
			p.writes(0, 10, 5, 11, 12, true, 1)
			p.writes(1, 12, 20, 21, 22, true, 3)
		}, []int{3}},
		"no news of a loss": {"safe", func(p *past) {
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1001), silent: true})
		}, []int{5}},
		"news of a loss after a silence, on a machine that wakes sleepers late": {"safe", func(p *past) {
			p.world.late.note(p.apps[1], ms(1050), 100*time.Millisecond)
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1001), silent: true},
				notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1060)})
		}, nil},
		"news of a loss after a silence, while a plain write takes long": {"safe", func(p *past) {
			p.probe.note(p.apps[0].slot.node, ms(880), ms(970), false)
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1001), silent: true},
				notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1060)})
		}, nil},
		"killed after a silence": {"safe", func(p *past) {
			p.apps[0].slot.troubled(appKill, ms(1600), ms(1700))
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1001), silent: true})
		}, nil},
		"killed long after a silence": {"safe", func(p *past) {
			p.apps[0].slot.troubled(appKill, ms(2600), ms(2700))
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1001), silent: true})
		}, []int{5}},
		"news of a loss after a silence": {"safe", func(p *past) {
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1001), silent: true},
				notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1060)})
		}, []int{5}},
		"late news of a loss": {"safe", func(p *past) {
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1010)})
		}, []int{5}},
		"no news where the elector led on": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.leads(0, 10, 1600, 2400)
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1001), silent: true, text: ledOn})
			p.apps[1].slot.troubled(appKill, ms(0), ms(2000))
			p.apps[2].slot.troubled(appKill, ms(0), ms(2000))
		}, nil},
		"no news where the elector did not lead on": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.leads(0, 10, 1600, 2400)
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(1001), silent: true})
			p.apps[1].slot.troubled(appKill, ms(0), ms(2000))
			p.apps[2].slot.troubled(appKill, ms(0), ms(2000))
		}, []int{5}},
		"news of a loss": {"safe", func(p *past) {
			p.e.notices = append(p.e.notices, notice{who: p.apps[0], token: 10, deadline: ms(900), at: ms(891)})
		}, nil},
		"an old token called current": {"safe", func(p *past) {
			p.leads(0, 10, 0, 900)
			p.leads(1, 12, 950, 1700)
			p.e.verified = append(p.e.verified, verification{who: p.apps[2], token: 10, call: ms(960), at: ms(970), current: true})
		}, []int{8}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPast(test.revocation)
			test.write(p)
			broken := p.broken()
			for i := range invariants {
				want := false
				for _, b := range test.broken {
					want = want || b == i
				}
				if broken[i] != want {
					t.Errorf("invariant %d (%s): broken %t, want %t\n%v", i, invariants[i], broken[i], want, p.judge.found(""))
				}
			}
		})
	}
}
