package main

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// analysis is what the histories say, apart from violations.
type analysis struct {
	Vacancies map[string][]time.Duration // by class of the single fault, or "several faults at once"
	Lateness  []time.Duration            // of news of a loss, after the deadline; negative: before
	Pushed    int                        // losses that were told
	Beliefs   int
	Tokens    int
	Writes    int
	Refused   int // writes with an old token
	Unknown   int // operations whose outcome the application never knew
	Verified  int
	Resigned  map[bool]int
	Longest   []longVacancy
	Slack     []time.Duration // what vacancies took beyond their bounds, all of it slack of the machine
}

// longVacancy is a vacancy that is worth a look.
type longVacancy struct {
	e      *election
	v      vacancy
	faults int // that hit the last leader
}

const (
	severalFaults  = "several faults at once"
	noFault        = "hand-over, or none"
	faultElsewhere = "none at the leader, others in trouble"
	// noticeTolerance is how late news of a loss may be: the application is another process, and has to be woken.
	noticeTolerance = 100 * time.Millisecond
)

// analyse judges the histories of all elections.
func (c *campaign) analyse() *analysis {
	a := &analysis{Vacancies: map[string][]time.Duration{}, Resigned: map[bool]int{}}
	for _, g := range c.world.groups {
		for _, e := range g.elections {
			beliefs := e.ordered()
			a.Beliefs += len(beliefs)
			c.checkOverlaps(e, beliefs)
			a.Tokens += c.checkTokens(e, beliefs)
			c.checkRegister(a, e, beliefs)
			c.checkVacancies(a, e, beliefs)
			c.checkNotices(a, e)
			c.checkVerified(a, e, beliefs)
			c.checkModels(e, beliefs)
			for ok, n := range e.resigned {
				a.Resigned[ok] += n
			}
		}
	}
	return a
}

// excuse says what excuses that an application acted under a token, at a moment when a higher one had been given:
// a deleted key, always, because Consul gives a deleted lock away at once; an invalidated session, under fast revocation, and one that Consul
// itself ended too early (see ends.go). The tokens are
// Raft indexes of locks, and so is the index of a deleted key: the deletion must lie between the two locks, whenever the
// applications heard of them.
func excuse(e *election, old *belief, higher uint64, at int64) string {
	limit := int64(2 * e.group.lease) // from the act on: whoever can be told is told by then, and leases of the others are over
	for _, act := range e.operator {
		switch {
		case act.from > min(old.end(), at), !act.unanswered && at > act.to+limit:
		case act.class == operatorDel && act.unanswered && at < act.from+int64(unansweredFor):
			return "overlap after an operator deleted the key, unanswered"
		case act.class == operatorDel && !act.unanswered && old.token <= act.index && act.index < higher:
			return "overlap after an operator deleted the key"
		case act.class == operatorInval && e.group.Revocation == "fast" && act.victim == old.who.slot.name && (act.unanswered || act.to >= old.called):
			return "overlap after an operator invalidated the session, revocation fast"
		}
	}
	if e.group.Revocation == "fast" && old.endedEarly() {
		return "overlap after Consul ended a session that had been renewed, revocation fast"
	}
	return ""
}

// unansweredFor is how long after its sending a request that nobody answered may be carried out.
const unansweredFor = 15 * time.Second

// excused says why two beliefs may be at once.
func excused(e *election, a, b *belief) string {
	if a.token > b.token {
		a, b = b, a
	}
	return excuse(e, a, b.token, max(a.from, b.from))
}

// checkOverlaps holds every pair of neighbours against each other.
func (c *campaign) checkOverlaps(e *election, beliefs []*belief) {
	for i, b := range beliefs {
		for k := i - 1; k >= 0 && k >= i-16; k-- {
			a := beliefs[k]
			c.judge.checked(1, 1)
			if a.who == b.who || b.from >= a.end() {
				continue
			}
			if why := excused(e, a, b); why != "" {
				c.judge.exclude(why)
				continue
			}
			c.judge.violation(1, e.group.name, e.name, fmt.Sprintf("%s; %s: %.1f ms at once\n%s", a, b, float64(min(a.end(), b.end())-b.from)/1e6, c.around(e, b.from)))
		}
	}
}

// checkTokens: in the order in which leaderships began, tokens rise; none has two holders.
func (c *campaign) checkTokens(e *election, beliefs []*belief) int {
	holder := map[uint64]*belief{}
	var top *belief
	for _, b := range beliefs {
		c.judge.checked(2, 1)
		if first := holder[b.token]; first != nil {
			if first.who != b.who {
				c.judge.violation(2, e.group.name, e.name, fmt.Sprintf("one token, two holders: %s; %s\n%s", first, b, c.around(e, b.from)))
			}
			continue
		}
		holder[b.token] = b
		if top != nil && b.token < top.token {
			if why := excused(e, top, b); why != "" {
				c.judge.exclude(why)
			} else {
				c.judge.violation(2, e.group.name, e.name, fmt.Sprintf("the token falls: %s; %s\n%s", top, b, c.around(e, b.from)))
			}
		}
		if top == nil || b.token > top.token {
			top = b
		}
	}
	return len(holder)
}

// checkRegister: no leader is refused while its lease runs.
func (c *campaign) checkRegister(a *analysis, e *election, beliefs []*belief) {
	for _, op := range e.ops {
		if op.read {
			continue
		}
		a.Writes++
		if op.ret == 0 {
			a.Unknown++
		}
		c.judge.checked(3, 1)
		if op.accepted {
			continue
		}
		a.Refused++
		for _, b := range beliefs {
			if b.who != op.who || b.token != op.token || op.at < b.from || op.at >= b.end() {
				continue
			}
			if why := excuse(e, b, op.high, op.at); why != "" {
				c.judge.exclude("a leader's write refused: " + why)
			} else {
				c.judge.violation(3, e.group.name, e.name, fmt.Sprintf("at %.4f the register refused token %d, having seen %d, although %s\n%s", seconds(op.at), op.token, op.high, b, c.around(e, op.at)))
			}
		}
	}
}

// checkVerified: no token is called current by a question asked after a higher one was known to be granted.
func (c *campaign) checkVerified(a *analysis, e *election, beliefs []*belief) {
	for _, v := range e.verified {
		a.Verified++
		c.judge.checked(8, 1)
		if !v.current {
			continue
		}
		for _, b := range beliefs {
			if b.token > v.token && b.from < v.call {
				c.judge.violation(8, e.group.name, e.name, fmt.Sprintf("asked at %.4f, the elector of %s called token %d current, but %s\n%s", seconds(v.call), v.who, v.token, b, c.around(e, v.call)))
				break
			}
		}
	}
}

// suffered are the faults that may have to do with a time of a group.
func (c *campaign) suffered(g *group, from, to int64) (out []injected) {
	for _, f := range c.done {
		if f.To < from || f.From > to {
			continue
		}
		for _, hit := range f.groups {
			if hit == g {
				out = append(out, f)
				break
			}
		}
	}
	return out
}

// ofServers says whether a fault hit the servers.
func (f injected) ofServers() bool { return f.slot == nil && f.node == nil && f.election == nil }

// concerns says whether a fault can be why s lost leadership of e.
func (f injected) concerns(e *election, s *slot) bool {
	switch {
	case f.slot != nil:
		return f.slot == s
	case f.node != nil:
		return f.node == s.node
	case f.election != nil:
		return f.election == e || f.Class == operatorInval
	}
	return true
}

// checkVacancies sorts the vacancies by the fault that caused them, where that is clear, and holds those to the class's bound. It is
// clear when one fault alone hit the last leader, and another elector of the group was in no trouble at all.
func (c *campaign) checkVacancies(a *analysis, e *election, beliefs []*belief) {
	for _, v := range vacancies(beliefs) {
		// A fault may have begun, and even be repaired, before the lease it cost was over.
		before := v.from - int64(e.group.failover())/2 - int64(500*time.Millisecond)
		var faults []injected
		for _, f := range c.suffered(e.group, before, v.to) {
			if f.concerns(e, v.last.who.slot) {
				faults = append(faults, f)
			}
		}
		class, limit := severalFaults, time.Duration(0)
		ready, trouble := c.successors(e.group, v, before)
		switch {
		case len(faults) > 1 || len(ready) == 0 || v.disputed:
		case v.resigned() && trouble: // it may have been handed to one that is dead, and then waits for the end of that one's session
			class, limit = faultElsewhere, silence(e.group)
			for _, f := range faults {
				limit = max(limit, bound(e.group, f))
			}
		case len(faults) == 1:
			class, limit = string(faults[0].Class), bound(e.group, faults[0])
		case trouble:
			class, limit = faultElsewhere, silence(e.group)
		default:
			class, limit = noFault, handOverBound
		}
		a.Vacancies[class] = append(a.Vacancies[class], v.length())
		c.checkReady(e, v)
		a.Longest = append(a.Longest, longVacancy{e, v, len(faults)})
		if limit == 0 {
			continue
		}
		c.judge.checked(4, 1)
		if c.serversRecovering(before, v.to) {
			limit += watchPause
		}
		if len(faults) == 0 || faults[0].node == nil {
			ready = append(ready, v.last.who.slot.node) // where the lock is released
		}
		slack := c.slack(ready, v.from-int64(e.group.lease), v.to)
		switch {
		case v.length() > limit+slack:
			c.judge.violation(4, e.group.name, e.name, fmt.Sprintf("%s: nobody led for %s from %.4f, the bound is %s and the machine's slack %s\n%s",
				class, v.length().Round(time.Millisecond), seconds(v.from), limit, slack.Round(time.Millisecond), c.around(e, v.to)))
		case v.length() > limit:
			a.Slack = append(a.Slack, v.length()-limit)
		}
	}
}

// slack is what a bound on a duration gets for the machine and for Consul itself: what was lost to late wake-ups meanwhile; the worst
// plain write on the hosts that matter, for each of the three steps of a change (release, lock, news); and the time in which no
// plain write succeeded there. What must hold at any moment gets none.
func (c *campaign) slack(hosts []*node, from, to int64) time.Duration {
	return c.late(from, to) + 3*c.probe.worst(hosts, from, to) + c.probe.outage(hosts, from, to)
}

// late is how late the machine was for those who wanted to run: all that a thread of this process lost, and the worst that any
// application met.
func (c *campaign) late(from, to int64) time.Duration {
	return c.starve.between(from, to) + c.world.late.worst(from, to)
}

// watchPause is the longest pause of an elector between two attempts to watch Consul, after many that failed.
const watchPause = 2 * time.Second

// serversRecovering says whether a fault of the servers had not been over for long enough.
func (c *campaign) serversRecovering(from, to int64) bool {
	for _, f := range c.done {
		if f.ofServers() && f.From <= to && f.To+int64(recovery(f.Class)) >= from {
			return true
		}
	}
	return false
}

// successors are the hosts of those electors of the group, other than the last leader's, that were in no trouble; and whether any
// was in trouble.
func (c *campaign) successors(g *group, v vacancy, before int64) (ready []*node, trouble bool) {
	for _, s := range g.slots {
		if s == v.last.who.slot {
			continue
		}
		hit := false
		for _, t := range s.troubles {
			hit = hit || t.from <= v.to && t.to+int64(recovery(t.class)) >= before
		}
		trouble = trouble || hit
		if !hit {
			ready = append(ready, s.node)
		}
	}
	return ready, trouble
}

// handOverBound is for a vacancy that no fault caused.
const handOverBound = 500 * time.Millisecond

// silence is how long nobody may lead after a death that only time can tell.
func silence(g *group) time.Duration { return g.failover() + 500*time.Millisecond }

// bound is how long nobody may lead after a single fault of its class.
func bound(g *group, f injected) time.Duration {
	slack := 500 * time.Millisecond
	silent := silence(g)
	switch f.Class {
	case appKill:
		if g.Mode == modeRenew {
			return g.lease + slack
		}
		return slack
	case appStop:
		if g.Mode == modeTether {
			return time.Duration(f.To-f.From) + slack // nothing but a tether: a hang is not noticed
		}
		return g.lease/2 + slack
	case operatorPut, operatorDel:
		return slack
	case operatorInval:
		return g.lease + slack
	case leaderKill, leaderStop, leaderCut:
		return silent + 6*time.Second // the servers elect, and time every session anew
	case followerKill, followerStop, followerCut, serverFull:
		return silent + 8*time.Second // agents that talk to this one have to find out
	case majorityStop, majorityKill:
		return time.Duration(f.To-f.From) + silent + 8*time.Second
	}
	return silent
}

// checkNotices: who loses leadership by the clock is told by the deadline, if it and its elector could run.
func (c *campaign) checkNotices(a *analysis, e *election) {
	for _, n := range e.notices {
		if n.silent && wentOn(e, n) {
			// Applications with a tether alone learn of a new deadline with the next beat, a third of a lease apart; later on a busy machine.
			c.judge.exclude("no news where none was due: the elector went on leading, the application's deadline had passed between two beats")
			continue
		}
		from := n.deadline - int64(2*e.group.lease)
		if blind(n.who.slot, from, n.at) {
			c.judge.exclude("news of a loss while the elector or the application was down")
			continue
		}
		late := time.Duration(n.at - n.deadline)
		if n.silent {
			if toldLater(e, n) {
				continue // judged by that news
			}
			if blind(n.who.slot, n.at, n.deadline+int64(e.group.lease)) {
				c.judge.exclude("news of a loss that may have been under way when the elector or the application was hit")
				continue
			}
			c.judge.checked(5, 1)
			c.judge.violation(5, e.group.name, e.name, fmt.Sprintf("%s, token %d, deadline %.4f: never told\n%s", n.who, n.token, seconds(n.deadline), c.around(e, n.at)))
			continue
		}
		c.judge.checked(5, 1)
		a.Pushed++
		a.Lateness = append(a.Lateness, late)
		// The elector is a process as well, and runs as late as those that a plain write has to pass.
		around := n.deadline - int64(200*time.Millisecond)
		if slack := c.late(around, n.at) + c.probe.worst([]*node{n.who.slot.node}, around, n.at); late > noticeTolerance+slack {
			c.judge.violation(5, e.group.name, e.name, fmt.Sprintf("%s, token %d, deadline %.4f: told %s after it (%s), the machine's slack is %s\n%s",
				n.who, n.token, seconds(n.deadline), late, n.text, slack, c.around(e, n.at)))
		}
	}
}

// toldLater says whether news of the same deadline came after the silence.
func toldLater(e *election, silence notice) bool {
	for _, n := range e.notices {
		if !n.silent && n.who == silence.who && n.token == silence.token && n.deadline == silence.deadline && n.at > silence.deadline {
			return true
		}
	}
	return false
}

// wentOn says whether the application went on under the same token a moment after its deadline; or, if the elector said meanwhile that
// it led all the time, a while after it.
func wentOn(e *election, n notice) bool {
	limit := e.group.lease / 2
	if n.text == ledOn {
		limit = 3 * e.group.lease
	}
	for _, b := range e.beliefs {
		if b.who == n.who && b.token == n.token && b.from > n.deadline && b.from < n.deadline+int64(limit) {
			return true
		}
	}
	return false
}

// blind says whether the slot's elector or application was stopped, dead or being restarted.
func blind(s *slot, from, to int64) bool {
	for _, t := range s.troubles {
		switch t.class {
		case appKill, appStop, taskKill, requestLate, electorKill, electorStop, electorTerm, stateFull:
			if t.from <= to && t.to+int64(500*time.Millisecond) >= from {
				return true
			}
		}
	}
	return false
}

// around tells what happened to an election near a moment: the excerpt of its history that goes with a finding.
func (c *campaign) around(e *election, at int64) string {
	return c.excerpt(e, at-int64(6*time.Second), at+int64(2*time.Second))
}

func (c *campaign) excerpt(e *election, from, to int64) string {
	type entry struct {
		at   int64
		text string
	}
	var all []entry
	add := func(when int64, format string, args ...any) {
		if when >= from && when <= to {
			all = append(all, entry{when, fmt.Sprintf(format, args...)})
		}
	}
	for _, f := range c.suffered(e.group, from, to) {
		all = append(all, entry{f.From, fmt.Sprintf("%s (%s) until %.4f %s", f.Class, f.Lane, seconds(f.To), f.target)})
	}
	for _, b := range e.beliefs {
		add(b.from, "%s knows it leads with token %d, until %.4f (asked at %.4f)", b.who, b.token, seconds(b.end()), seconds(b.called))
	}
	for _, s := range e.group.slots {
		for _, t := range s.troubles {
			add(t.from, "hit: %s at %s until %.4f", t.class, s.name, seconds(t.to))
		}
	}
	for _, n := range e.notices {
		add(n.at, "%s: told of token %d: %q silent=%t (deadline %.4f)", n.who, n.token, n.text, n.silent, seconds(n.deadline))
	}
	for _, act := range e.operator {
		add(act.from, "operator: %s, answered at %.4f", act.class, seconds(act.to))
	}
	sort.SliceStable(all, func(i, k int) bool { return all[i].at < all[k].at })
	var b strings.Builder
	for _, entry := range all {
		fmt.Fprintf(&b, "    %.4f %s\n", seconds(entry.at), entry.text)
	}
	return b.String()
}
