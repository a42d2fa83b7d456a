package main

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Class is a kind of fault.
type Class string

// The faults of a group: one elector, its application, its keys.
const (
	appKill       Class = "app killed"
	appStop       Class = "app stopped"
	taskKill      Class = "app and elector killed"
	electorKill   Class = "elector killed"
	electorStop   Class = "elector stopped"
	electorTerm   Class = "elector restarted by SIGTERM"
	electorCut    Class = "elector cut off from its agent"
	stateFull     Class = "disk of the elector's state file full"
	operatorPut   Class = "operator edits the key"
	operatorDel   Class = "operator deletes the key"
	operatorInval Class = "operator invalidates the session"
)

// The faults of a group whose electors reach Consul through gates.
const (
	requestLate Class = "app killed, and a request to Consul late"
	answersLost Class = "answers of Consul lost"
)

// The faults of a host.
const (
	agentKill  Class = "client agent killed"
	agentStop  Class = "client agent stopped"
	agentLeave Class = "client agent leaves and comes back"
	hostCut    Class = "host cut off"
	hostCutOne Class = "host cut off from one server"
)

// The faults of the servers.
const (
	leaderKill   Class = "server leader killed"
	leaderStop   Class = "server leader stopped"
	leaderCut    Class = "server leader cut off"
	followerKill Class = "server follower killed"
	followerStop Class = "server follower stopped"
	followerCut  Class = "server follower cut off"
	majorityStop Class = "majority of servers stopped"
	majorityKill Class = "majority of servers killed"
	serverFull   Class = "disk of a server full"
)

// weight says how often a class is drawn, and how long it lasts: in leases, for what belongs to one group, in seconds otherwise.
type weight struct {
	class  Class
	weight int
	hold   span
	near   bool // now and then just two leases: that is when sessions end
}

// span is a range from which a duration is drawn.
type span struct{ from, to float64 }

var groupWeights = []weight{
	{appKill, 26, span{0.05, 0.6}, false},
	{appStop, 14, span{0.3, 2.5}, false},
	{taskKill, 4, span{0.05, 1}, false},
	{electorKill, 12, span{0.02, 3.5}, false},
	{electorStop, 10, span{0.3, 3.3}, true},
	{electorTerm, 8, span{0.02, 0.6}, false},
	{electorCut, 8, span{0.3, 3.5}, true},
	{stateFull, 2, span{0.2, 1}, false},
	{operatorPut, 8, span{}, false},
	{operatorDel, 3, span{}, false},
	{operatorInval, 8, span{}, false},
}

var gatedWeights = append([]weight{
	{requestLate, 16, span{0.1, 3}, false},
	{answersLost, 8, span{0.2, 2}, false},
}, groupWeights...)

var hostWeights = []weight{
	{agentKill, 4, span{0.1, 4}, false},
	{agentStop, 4, span{0.3, 4}, false},
	{agentLeave, 3, span{0.1, 1.5}, false},
	{hostCut, 6, span{0.3, 4}, false},
	{hostCutOne, 3, span{0.5, 4}, false},
}

var serverWeights = []weight{
	{leaderKill, 4, span{0.1, 3}, false},
	{leaderStop, 4, span{0.5, 5}, false},
	{leaderCut, 5, span{0.5, 5}, false},
	{followerKill, 3, span{0.1, 3}, false},
	{followerStop, 3, span{0.5, 5}, false},
	{followerCut, 3, span{0.5, 5}, false},
	{majorityStop, 2, span{0.5, 2.5}, false},
	{majorityKill, 1, span{0.1, 1}, false},
	{serverFull, 2, span{1, 3}, false},
}

// Way is the direction of a partition, seen from who is cut off.
type Way int

// The directions.
const (
	wayBoth Way = iota
	wayIn
	wayOut
)

func (w Way) String() string { return [...]string{"both ways", "inbound", "outbound"}[w] }

// Fault is one planned fault. What it does not need is drawn all the same, so that the plan does not depend on what happens.
type Fault struct {
	Lane   string
	N      int
	Class  Class
	Leader bool // hit the leader, if there is one; else the one that Target names
	Target int
	Way    Way
	Hold   time.Duration // from the injection to the repair
	Gap    time.Duration // from the repair to the next fault of the lane
	Settle bool          // and before it, wait until everything of the lane has a leader again
	Aux    int
}

func (f Fault) String() string {
	return fmt.Sprintf("%s/%d %s leader=%t target=%d %s hold=%s gap=%s settle=%t aux=%d", f.Lane, f.N, f.Class, f.Leader, f.Target, f.Way,
		f.Hold.Round(time.Millisecond), f.Gap.Round(time.Millisecond), f.Settle, f.Aux)
}

// lanePlan is the endless list of faults of one lane. Lanes run side by side; each is a function of the seed and its own name.
type lanePlan struct {
	name    string
	rng     *rand.Rand
	weights []weight
	unit    time.Duration
	gap     span
	n       int
}

func newLanePlan(seed uint64, name string, weights []weight, unit time.Duration, gap span) *lanePlan {
	h := fnv.New64a()
	h.Write([]byte(name))
	return &lanePlan{name: name, rng: rand.New(rand.NewPCG(seed, h.Sum64())), weights: weights, unit: unit, gap: gap}
}

func (l *lanePlan) next() Fault {
	total := 0
	for _, w := range l.weights {
		total += w.weight
	}
	pick := l.rng.IntN(total)
	var chosen weight
	for _, w := range l.weights {
		if pick -= w.weight; pick < 0 {
			chosen = w
			break
		}
	}
	f := Fault{Lane: l.name, N: l.n, Class: chosen.class, Leader: l.rng.IntN(10) < 8, Target: l.rng.IntN(60), Way: Way(l.rng.IntN(3)),
		Hold: l.draw(chosen.hold, l.unit), Gap: l.draw(l.gap, time.Second), Settle: l.rng.IntN(10) < 6, Aux: l.rng.IntN(1 << 20)}
	if near := l.draw(span{1.9, 2.15}, l.unit); l.rng.IntN(4) == 0 && chosen.near {
		f.Hold = near
	}
	l.n++
	return f
}

func (l *lanePlan) draw(s span, unit time.Duration) time.Duration {
	return time.Duration((s.from + (s.to-s.from)*l.rng.Float64()) * float64(unit))
}
