package elector

import (
	"time"

	"retinue/internal/clock"
)

// Role is what an election is to this elector's application.
type Role string

// The roles. Suspended: the lease ran out without an answer from Consul. The application must not act; it may resume under the
// same token.
const (
	Leader    Role = "leader"
	Suspended Role = "suspended"
	Follower  Role = "follower"
)

// LeaderInfo is who leads, as far as this elector knows.
type LeaderInfo struct {
	ID      string    `json:"id"`
	Elector string    `json:"elector,omitempty"`
	Alloc   string    `json:"alloc,omitempty"`
	Host    string    `json:"host,omitempty"`
	Address string    `json:"address,omitempty"`
	Token   uint64    `json:"token,omitempty"`
	Term    uint64    `json:"term,omitempty"`
	Since   time.Time `json:"since"`
	Lease   string    `json:"lease,omitempty"`
	Value   any       `json:"value,omitempty"`
	Self    bool      `json:"self"`
}

// View is an election at one moment, published by the owner and read by everybody. It is immutable.
type View struct {
	Election   string
	Index      uint64 // of the last event
	Holder     string // candidate id the lock was granted to; "" when this elector's application does not lead
	Token      uint64
	Term       uint64
	Lease      time.Duration
	Deadline   clock.Instant // leader until here, if Proven
	Proven     bool          // false: suspended, or not held
	Stepdown   bool          // asked to resign; the lease is not prolonged any more
	Leader     *LeaderInfo   // nil: vacant
	Floor      uint64        // no token below it is good
	Blocked    Reason        // why the last attempt to take the lock failed
	Candidates []string      // electors in the race, in rank order
	Local      []string      // candidate ids of this elector's applications
	Connected  bool          // the session is good
	Synced     bool          // the store has been read at least once
	LostReason string        // why the last leadership of this elector ended
	LostToken  uint64
}

// Role is the role at now. It needs nothing but the clock: whatever hangs, it never says leader after the deadline.
func (v *View) Role(now clock.Instant) Role {
	switch {
	case v.Holder == "":
		return Follower
	case v.Proven && now < v.Deadline:
		return Leader
	}
	return Suspended
}

// Grant is leadership, with all an application needs to act safely.
type Grant struct {
	Election     string        `json:"election"`
	Role         Role          `json:"role"`
	ID           string        `json:"id"`
	Term         uint64        `json:"term"`
	Token        uint64        `json:"token"`
	LeaseMS      int64         `json:"lease_ms"`
	RemainingMS  int64         `json:"remaining_ms"`
	DeadlineBoot clock.Instant `json:"deadline_boottime_ns"`
	Stepdown     bool          `json:"stepdown,omitempty"`
	Leader       *LeaderInfo   `json:"leader,omitempty"`
	Index        uint64        `json:"index"`
}

func (v *View) grant(now clock.Instant) *Grant {
	return &Grant{Election: v.Election, Role: v.Role(now), ID: v.Holder, Term: v.Term, Token: v.Token, LeaseMS: v.Lease.Milliseconds(),
		RemainingMS: max(0, v.Deadline.Sub(now).Milliseconds()), DeadlineBoot: v.Deadline, Stepdown: v.Stepdown, Leader: v.Leader, Index: v.Index}
}
