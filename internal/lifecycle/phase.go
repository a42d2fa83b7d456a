package lifecycle

import "slices"

// Phase is where in its life a task is.
type Phase string

// The phases. See Edges for how one follows another.
const (
	Created   Phase = "created"
	Restoring Phase = "restoring" // the saved state is being given back
	Starting  Phase = "starting"  // the process is being started
	Warming   Phase = "warming"   // it runs; post_start and ready have not ended
	Running   Phase = "running"
	Paused    Phase = "paused"
	Draining  Phase = "draining" // pre_drain, drain
	Saving    Phase = "saving"   // save_state
	Stopping  Phase = "stopping" // pre_stop, the signal, the kill timeout
	Stopped   Phase = "stopped"  // ended because it was asked to, or never started
	Killed    Phase = "killed"   // ended by SIGKILL, after its kill timeout
	Exited    Phase = "exited"   // ended by itself
	Destroyed Phase = "destroyed"
)

// Edge is a step from one phase to another.
type Edge struct{ From, To Phase }

// Edges returns every edge there is, in order.
func Edges() []Edge {
	return []Edge{
		{Created, Restoring}, {Created, Starting},
		{Restoring, Starting}, {Restoring, Stopped},
		{Starting, Warming}, {Starting, Stopped},
		{Warming, Running}, {Warming, Draining}, {Warming, Stopping},
		{Running, Paused}, {Paused, Running},
		{Running, Draining}, {Paused, Draining},
		{Draining, Running}, // abort_stop, or a drain without a stop that is given up
		// Saving goes back to draining when the driver crashed in it: a stop is then begun again.
		{Draining, Saving}, {Saving, Draining}, {Saving, Running}, {Saving, Stopping}, {Stopping, Running},
		{Draining, Stopping},
		{Stopping, Stopped}, {Stopping, Killed},
		{Starting, Exited}, {Warming, Exited}, {Running, Exited}, {Paused, Exited}, {Draining, Exited}, {Saving, Exited}, {Stopping, Exited},
		{Draining, Killed}, {Saving, Killed}, {Running, Killed}, {Paused, Killed}, {Warming, Killed},
		{Stopped, Destroyed}, {Killed, Destroyed}, {Exited, Destroyed}, {Created, Destroyed},
	}
}

// Over says that the process has ended, or never ran.
func (p Phase) Over() bool {
	return slices.Contains([]Phase{Stopped, Killed, Exited, Destroyed}, p)
}

// Alive says that there is a process to talk to.
func (p Phase) Alive() bool {
	return slices.Contains([]Phase{Warming, Running, Paused, Draining, Saving, Stopping}, p)
}
