package elector

import (
	"context"
	"errors"
	"time"

	"retinue/internal/clock"
)

// Store is what an elector needs of Consul. Every method is one bounded request; Watch blocks.
type Store interface {
	// Open makes a session for this elector, and registers the elector where people look for it.
	Open(ctx context.Context, spec SessionSpec) (Session, error)
	// Renew prolongs a session. errSessionGone means that Consul does not know it any more. Success is not proof that the
	// session lives: see machine.renewed.
	Renew(ctx context.Context, session string) error
	// Commit applies all operations of a batch, or none. An error means that the outcome is unknown.
	Commit(ctx context.Context, b Batch) (Result, error)
	// Watch returns everything below the application's prefix once its index is above after.
	Watch(ctx context.Context, after uint64) (Snapshot, error)
	// Read returns one election's key, linearizable. A key that does not exist is an empty Entry.
	Read(ctx context.Context, election string) (Entry, error)
	// Adopt goes on with a session that an earlier process of this elector opened.
	Adopt(s Session)
	// Sweep removes what a dead elector left, if its record has not changed.
	Sweep(ctx context.Context, r Remains) error
	// Close destroys the session and removes what Open registered. Locks must have been released before.
	Close(ctx context.Context, session string) error
}

var errSessionGone = errors.New("the session does not exist any more")

// SessionSpec is the session an elector wants.
type SessionSpec struct {
	Name      string
	TTL       time.Duration // at least
	LockDelay time.Duration
}

// ServiceRecord is the elector's instance in the catalog.
type ServiceRecord struct {
	Name, ID, Host string
	Port           int
	Meta           map[string]string
}

// Session is the session an elector got.
type Session struct {
	ID      string
	TTL     time.Duration // what the servers accepted, at least what was asked for
	Node    string        // the catalog node that carries it
	Catalog bool          // the elector is in the catalog; false: KV only
	Warning string        // why it is not, for people
	Sent    clock.Instant // start of the request that made it
}

// Verb is the kind of an operation.
type Verb int

// The operations. All name the session they act for.
const (
	VerbLock     Verb = iota // take a vacant lock if unchanged since KeyIndex (0: there is no key)
	VerbUnlock               // release our lock if unchanged since KeyIndex, write Value
	VerbTransfer             // the same, and give it to Successor, in one step
	VerbConfirm              // prove that the lock is ours and unchanged since KeyIndex
	VerbUpdate               // write Value under our lock if unchanged since KeyIndex
)

func (v Verb) String() string {
	return [...]string{"lock", "unlock", "transfer", "confirm", "update"}[v]
}

// operations is how many operations of a Consul transaction the verb needs.
func (v Verb) operations() int {
	if v == VerbTransfer {
		return 3
	}
	return 2
}

// Op is one operation on one election. Each names the index at which we know the key: a request may be applied much later than it was
// made, and must then do nothing. One that changes a held key could meet the same session's next lock on it. One that takes a lock
// could meet the vacancy after a leader that it never saw: Consul judges the lock-delay when the request comes in, before that leader.
type Op struct {
	Verb      Verb
	Election  string
	Value     []byte
	KeyIndex  uint64
	Successor string // session
}

// Batch is a set of operations that are committed together.
type Batch struct {
	Session   string
	Ops       []Op
	Candidate []byte   // non-nil: also write this elector's candidate record
	Leads     []string // what the catalog shall say that the elector leads; nil: leave it alone
}

// Reason says why an operation could not be applied.
type Reason string

// Reasons of the store.
const (
	ReasonNone       Reason = ""
	ReasonHeld       Reason = "held"
	ReasonLockDelay  Reason = "lock_delay"
	ReasonNoSession  Reason = "no_session"
	ReasonNotHeld    Reason = "not_held"
	ReasonChanged    Reason = "changed"
	ReasonSuccessor  Reason = "successor_gone"
	ReasonStoreError Reason = "store_error"
)

// Result is the definite outcome of a batch. Applied: Keys has an entry for each operation. Not applied: Failed has an entry for
// each operation that stood in the way, and -1 for the candidate record (the others were rolled back with it).
type Result struct {
	Applied bool
	Keys    []KeyIndex
	Failed  map[int]Reason
	Detail  string // of the store, for the log
}

// broken says whether the store could not do what it was asked, for a reason that is not the election's.
func (r Result) broken() bool {
	for _, reason := range r.Failed {
		if reason == ReasonStoreError {
			return true
		}
	}
	return false
}

// KeyIndex is the Raft position of a key after an operation.
type KeyIndex struct {
	Create, Modify uint64
}

// Snapshot is what lies below the application's prefix.
type Snapshot struct {
	Index      uint64
	First      bool // of a watch that was started anew: what it shows may have happened long ago
	Elections  map[string]Entry
	Candidates map[string]Entry // by key, without the application's prefix
	Requests   map[string]Entry // operators' wishes, by election
}

// Remains is what a dead elector left.
type Remains struct {
	Key      string // of its candidate record, without the application's prefix
	Index    uint64 // of that key
	Instance string // the elector in the catalog; "" when a later session of the same elector has taken it over
}

// Entry is one key.
type Entry struct {
	Session string
	KeyIndex
	Value []byte
}
