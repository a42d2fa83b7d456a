package source

import (
	"context"
	"time"
)

// Source is one queue of one broker, as one consumer and producer sees it.
//
// Opening a source declares the queue where the broker allows that; it takes
// no message until the first Receive, so a source that only publishes costs
// nothing else. All methods may be called at the same time, but only one
// goroutine calls Receive and Idle.
//
// Methods with several messages work on all of them and report those that
// failed as Failures; any other error concerns them all.
type Source interface {
	// Receive waits for messages and returns 1 to max of them, each under a lease of Options.Lease. It returns what is there
	// rather than wait for more. Errors: the context's; ErrClosed; ErrUnavailable when the broker cannot be reached (call again
	// after a pause: the adapter connects again by itself); ErrAccess and ErrConfig, which waiting does not heal. A Receive that
	// was cancelled has taken nothing that it does not give back.
	Receive(ctx context.Context, max int) ([]*Message, error)

	// Extend makes the leases end Options.Lease from now. Call it every third of a lease, also on brokers that have no lease:
	// it tells whether the message is still ours. ErrLost: it is not, somebody else has it or will have it. ErrUnavailable: not
	// known; try again, the lease runs on.
	Extend(ctx context.Context, ms ...*Message) error

	// Ack removes messages for good. Nil: the broker has confirmed it. ErrLost: the lease was lost before, the message may
	// be delivered again. Any other error: not known; repeat it (a repeated Ack of one
	// that was done may answer ErrLost).
	Ack(ctx context.Context, ms ...*Message) error

	// Release gives messages back to be delivered after a delay (0: at once), to any consumer. Neither early, nor much later
	// than Caps.DelayGrain. The message itself does not change. Nil and errors as with Ack.
	Release(ctx context.Context, delay time.Duration, ms ...*Message) error

	// Publish stores messages in this queue. Nil: the broker has confirmed all, as durable as it is configured. On an error an
	// unknown part may have been stored; publishing the same IDs again is removed by the broker where Caps.Dedupe is not 0.
	// ErrInvalid: what Out forbids. ErrTooLarge: see Caps.MaxBody.
	Publish(ctx context.Context, outs ...Out) error

	// Depth counts the queue. It may be a second old.
	Depth(ctx context.Context) (Depth, error)

	// Idle gives back what the adapter fetched ahead and Receive has not returned yet. Call it when Receive will not be called
	// for a while: paused, draining.
	Idle(ctx context.Context) error

	// Caps says what this source can do beyond the contract.
	Caps() Caps

	// Close ends Receive with ErrClosed, gives all leased messages back at once, and disconnects. It goes on after the
	// context's end as far as needed to free everything local, and is safe to repeat.
	Close(ctx context.Context) error
}

// Message is one delivery of one item. Its fields are the reader's; the
// adapter keeps its own state in Token.
type Message struct {
	// ID names the item: what its producer gave as Out.ID, the same in every delivery. Where a foreign producer gave none it
	// is the broker's own id of the message.
	ID string
	// Body is never nil for an empty one.
	Body    []byte
	Headers map[string]string // as published; never nil
	Key     string            // Out.Key, "" where it has none
	Class   int               // Out.Class
	// Published is when it was published, by the producer's or the broker's clock; zero where the broker does not tell. It is the
	// same in every delivery. With Caps.Order each message of one publishing Source has a later time than the one before.
	Published time.Time
	// Deliveries counts how often this item has been handed out, this time included. Only an indication: see Caps.Deliveries.
	Deliveries int
	// Token belongs to the adapter.
	Token any
}

// Out is a message to publish.
type Out struct {
	// ID is the item's identity; 1 to 200 bytes of letters, digits and -_.:/+=@~ (brokers put it into headers and keys).
	ID   string
	Body []byte
	// Headers have names of letters, digits, - _ and . (200 at most) and values of valid UTF-8 without control characters
	// and space around it; all together at most 16 KiB. Names that begin with "retinue-" are the adapters' own. The case of names is kept.
	Headers map[string]string
	// Key orders messages where Caps.KeyOrder says so. The same bytes as in a header's value, 200 at most; "" for none.
	Key string
	// Class is the priority: 0, the ordinary and lowest, up to Options.Classes-1, the most urgent.
	Class int
	// Delay holds the first delivery back, as Release does.
	Delay time.Duration
}

// Depth is how much is in a queue. A number is -1 where the broker does not tell.
type Depth struct {
	Ready    int64         // waiting for a consumer now
	Delayed  int64         // published or released with a delay that runs; in Ready or InFlight where the broker cannot tell
	InFlight int64         // leased by any consumer
	Oldest   time.Duration // age of the oldest message in Ready, from its publication
}

// Caps is what a source can do, for decisions of the coordinator and for the table in the README.
type Caps struct {
	Broker string // "nats", "redis", ...
	// MaxBody is the largest body in bytes; 0: no limit that is known.
	MaxBody int
	// Dedupe is how long the broker itself drops a repeated Publish of the same ID; 0: it does not.
	Dedupe time.Duration
	// KeyOrder: messages of one key are received in the order of publication on their first delivery, and all that are in
	// flight are at one consumer. What happens after a Release is up to the coordinator: it keeps a message instead.
	KeyOrder bool
	// Order: what Options.Order asks for is kept. Among messages of one class without a delay:
	//   - One consumer receives first deliveries in the order of publication by one Source: that of its calls of Publish, and
	//     within one call that of outs. Calls at the same time have no order, and what is published again after an error has the
	//     place of whichever attempt the broker took.
	//   - What a consumer had and gave back (Release without a delay, Idle, Close), or lost as it died, once its lease is over and
	//     the broker has noticed (Redelivery), comes before all that was never handed out: at a consumer whose first Receive is
	//     after that, and at the same one after its Idle. Among themselves such messages come in any order.
	// A delivery that is lost on the way, with its connection or with the broker, may come behind younger messages, where the
	// broker waits for the end of its lease. So a source whose connection was lost receives nothing any more: ErrUnavailable, for
	// good. Whoever goes on opens another one, and waits for that end.
	Order bool
	// Deliveries: Message.Deliveries counts every delivery, over deaths of consumers too. Otherwise it only tells 1 (first, as
	// far as known) from more.
	Deliveries bool
	// Redelivery is the longest time from the kill of a consumer (its connections break) to the delivery elsewhere.
	Redelivery time.Duration
	// Acks is how many calls of Ack at the same time are confirmed for the price of one; 0 stands for 1: what comes meanwhile
	// had better wait and go with the next.
	Acks int
	// MaxDelay is the longest delay; 0: none.
	MaxDelay time.Duration
	// DelayGrain is how much later than asked for a delayed message may come on a machine that is not busy.
	DelayGrain time.Duration
	// Counts says which numbers of Depth are never -1.
	Counts Counts
}

// Counts are the numbers that a broker can tell.
type Counts struct {
	InFlight, Delayed, Oldest bool
}
