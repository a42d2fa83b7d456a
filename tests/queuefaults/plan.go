package main

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Class is a kind of fault.
type Class string

// The faults. A kill is kill -9; a stop is SIGSTOP, and SIGCONT later.
const (
	workerKill Class = "worker killed"
	workerStop Class = "worker stopped"
	coordKill  Class = "coordinator killed"
	coordStop  Class = "coordinator stopped"
	coordTerm  Class = "coordinator restarted by SIGTERM"
	brokerKill Class = "broker killed"
	brokerStop Class = "broker stopped"
	consulKill Class = "Consul killed"
	consulStop Class = "Consul stopped"
	ownError   Class = "the broker's own error" // nobody's doing here
)

func (c Class) kill() bool {
	return c == workerKill || c == coordKill || c == brokerKill || c == consulKill
}
func (c Class) stop() bool {
	return c == workerStop || c == coordStop || c == brokerStop || c == consulStop
}

// fault is one step of a lane: wait, then break, and repair after the hold.
type fault struct {
	wait  time.Duration
	class Class
	hold  time.Duration
}

// span is a range from which a duration is drawn, in seconds.
type span struct{ from, to float64 }

type weight struct {
	class  Class
	weight int
	hold   span
}

// kindOf is what a lane breaks.
type kindOf struct {
	wait    span
	weights []weight
}

// The lanes. A stop of a coordinator lasts up to two and a half leases (of 3 s), so that others get its items meanwhile.
var (
	workerLane = kindOf{span{0.6, 3}, []weight{{workerKill, 8, span{0, 0.6}}, {workerStop, 2, span{0.1, 1.5}}}}
	coordLane  = kindOf{span{1, 5}, []weight{{coordKill, 6, span{0, 0.8}}, {coordStop, 2, span{0.2, 7.5}}, {coordTerm, 1, span{0, 0.5}}}}
	// With partitions a stop is now and then longer than a session in Consul is certain, so that others get the partitions meanwhile.
	ownerLane  = kindOf{span{1, 8}, []weight{{coordKill, 6, span{0, 0.8}}, {coordStop, 2, span{0.2, 7.5}}, {coordStop, 1, span{9, 25}}, {coordTerm, 2, span{0, 0.5}}}}
	consulLane = kindOf{span{8, 25}, []weight{{consulKill, 2, span{0, 3}}, {consulStop, 1, span{1, 12}}}}
	brokerLane = kindOf{span{5, 12}, []weight{{brokerKill, 5, span{0, 0.5}}, {brokerStop, 2, span{0.2, 5}}}}
)

// laneRand is the random source of one lane: a function of the seed and the lane's name alone.
func laneRand(seed uint64, name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

// lane draws faults.
type lane struct {
	kind kindOf
	rand *rand.Rand
	pace float64 // of the waits
}

func newLane(seed uint64, name string, kind kindOf, pace float64) *lane {
	return &lane{kind, laneRand(seed, name), pace}
}

func (l *lane) draw(s span) time.Duration {
	return time.Duration((s.from + (s.to-s.from)*l.rand.Float64()) * float64(time.Second))
}

func (l *lane) next() fault {
	total := 0
	for _, w := range l.kind.weights {
		total += w.weight
	}
	f := fault{wait: time.Duration(l.pace * float64(l.draw(l.kind.wait)))}
	n := l.rand.IntN(total)
	for _, w := range l.kind.weights {
		if n -= w.weight; n < 0 {
			f.class, f.hold = w.class, l.draw(w.hold)
			break
		}
	}
	return f
}

// task is what an item asks of its worker, as its body in JSON.
type task struct {
	Fail int    `json:"fail,omitempty"` // answer with an error until so many attempts have been counted
	MS   int    `json:"ms,omitempty"`   // work for so long
	End  string `json:"end,omitempty"`  // "dead": refuse it for good
	Pad  string `json:"pad,omitempty"`
}

// taskOf is item n of a seed: one in 50 fails once or twice, one in 200 is refused, a few last longer than a lease.
func taskOf(seed uint64, n, longShare int, lease time.Duration) task {
	r := laneRand(seed, fmt.Sprint("item ", n))
	t := task{Pad: fmt.Sprintf("%032x%032x", r.Uint64(), r.Uint64())}
	switch {
	case r.IntN(1000) < longShare:
		t.MS = int((lease + lease*time.Duration(r.IntN(100))/100).Milliseconds())
	case r.IntN(50) == 0:
		t.Fail = 1 + r.IntN(2)
	case r.IntN(200) == 0:
		t.End = "dead"
	default:
		t.MS = r.IntN(4)
	}
	return t
}

func idOf(n int) string { return fmt.Sprintf("i%07d", n) }
