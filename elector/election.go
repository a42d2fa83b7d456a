package elector

import (
	"time"

	"retinue/internal/clock"
)

// lock is what we know of our hold on an election's key.
type lock int

const (
	lockNone    lock = iota
	lockHeld         // a committed operation gave it to us, and nothing took it away
	lockUnknown      // an operation that may have given it to us was never answered
)

// candidate is an application on this side of the elector that wants to lead, or does.
type candidate struct {
	id       string
	waiters  int // requests that wait for it
	priority int
	value    any

	// While it leads:
	claimed  bool          // it was told
	lease    time.Duration // of the application
	explicit bool          // it asked for a lease: a tether alone does not prolong it
	until    clock.Instant // end of the application's lease
	tethers  int           // open hold streams
	frozen   bool          // asked to step down: until does not move any more
	stepTo   string        // and to whom
}

// release is a leadership that ended here and has to end in Consul.
type release struct {
	to     string // elector that shall have it; "" anyone
	reqs   []uint64
	holder string
	token  uint64
}

// election is one election. Its fields belong to the machine.
type election struct {
	name string

	// What Consul says.
	seen    Entry  // the key at seenAt
	exists  bool   // it exists
	seenAt  uint64 // index of the observation
	floor   uint64 // index of our last committed operation: older observations are ignored
	leading string // session that was last reported to applications as leader

	// Our hold.
	lock    lock
	token   uint64 // Raft index at which the lock was taken
	key     KeyIndex
	term    uint64 // counts leaderships, for people
	proven  bool   // a lease that is current covers it; false: must be confirmed before it counts again
	record  Record
	written []byte        // what we wrote last; a repeated lock with the same bytes is idempotent
	tried   uint64        // index of the key that the last attempt to lock was meant for
	dirty   bool          // record and key differ
	busy    bool          // an operation is under way
	heldFor clock.Instant // an application may act until then by a grant of an earlier process: neither release nor grant before

	// This side.
	candidates []*candidate
	holder     *candidate // nil: nobody here leads
	suspended  bool       // the holder was told that it is suspended
	release    *release   // to be carried out
	past       []ended    // the last leaderships of this elector

	tryAt   clock.Instant // when to try for the lock; Never: not
	vacant  clock.Instant // when the vacancy was first seen; 0: not vacant
	failed  int           // failed attempts at this vacancy
	barred  clock.Instant // not before: the lease of a leader whose end we saw, if that was no release
	behind  bool          // the watch still shows what an attempt was refused for
	blocked Reason
	yield   bool // we gave it away: let the others go first
	index   uint64
	viewed  bool // view is current
}

// ended is a leadership that is over.
type ended struct {
	token  uint64
	reason string
	out    Outcome
}

const rememberEnded = 16

func (e *election) remember(token uint64, reason string) {
	e.past = append(e.past, ended{token: token, reason: reason})
	if len(e.past) > rememberEnded {
		e.past = e.past[1:]
	}
}

func (e *election) ended(token uint64) *ended {
	for i := range e.past {
		if e.past[i].token == token {
			return &e.past[i]
		}
	}
	return nil
}

func (e *election) candidate(id string) *candidate {
	if e.holder != nil && e.holder.id == id {
		return e.holder
	}
	for _, c := range e.candidates {
		if c.id == id {
			return c
		}
	}
	return nil
}

func (e *election) drop(c *candidate) {
	for i, have := range e.candidates {
		if have == c {
			e.candidates = append(e.candidates[:i:i], e.candidates[i+1:]...)
			return
		}
	}
}

// current says whether the last observation is at least as new as our own last operation.
func (e *election) current() bool { return e.seenAt >= e.floor && e.seenAt > 0 }
