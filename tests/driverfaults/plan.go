package main

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"
)

// Fault is what is killed, always with SIGKILL.
type Fault string

// The faults.
const (
	killPlugin Fault = "retinue-driver"
	killInner  Fault = "retinue-inner"
	killHelper Fault = "executor or shim"
	killAgent  Fault = "Nomad agent"
)

func faults() []Fault { return []Fault{killPlugin, killInner, killHelper, killAgent} }

// point is where in its life a task is held when the fault comes.
type point struct {
	name string
	hold string // hook, or "signal", in which the application waits
	stop bool   // it is being stopped
}

// The points. What a task is really in when the fault comes is read from the driver's own file, and counted by that.
var points = []point{
	{name: "restoring"}, // the store, Consul, is frozen
	{name: "starting"},  // begun a moment before the fault
	{name: "warming", hold: "post_start"},
	{name: "running"},
	{name: "pausing", hold: "pause"},
	{name: "paused"},
	{name: "draining", hold: "pre_drain", stop: true},
	{name: "saving", hold: "save_state", stop: true},
	{name: "stopping", hold: "pre_stop", stop: true},
	{name: "signalled", hold: "signal", stop: true},
}

// salvo is one fault, for tasks of all drivers in all points at once.
type salvo struct {
	number int
	fault  Fault
	// begun is how long before the fault the tasks of the point starting are registered.
	begun time.Duration
	gap   time.Duration // between the kills of the drivers' processes
	// again is when the agent is killed a second time, after it was started anew; 0: it is not. A plugin is killed once: when it
	// dies while the agent takes its tasks over, Nomad gives them up.
	again time.Duration
	early bool // the applications go on at once, and not when the driver is back
	order []string
}

// salvoOf is salvo n of a seed.
func salvoOf(seed uint64, n int, of []Fault, drivers []string) salvo {
	h := fnv.New64a()
	fmt.Fprintf(h, "salvo %d", n)
	r := rand.New(rand.NewPCG(seed, h.Sum64()))
	between := func(from, to float64) time.Duration {
		return time.Duration((from + (to-from)*r.Float64()) * float64(time.Second))
	}
	s := salvo{number: n, fault: of[n%len(of)], begun: between(0.1, 0.9), gap: between(0, 0.05), early: r.IntN(2) == 0, order: slices.Clone(drivers)}
	if again := between(0.2, 2); r.IntN(4) == 0 && s.fault == killAgent {
		s.again = again
	}
	r.Shuffle(len(s.order), func(i, j int) { s.order[i], s.order[j] = s.order[j], s.order[i] })
	return s
}
