// Package partitioned keeps the order of keys over several coordinators: a
// source that is one queue of a broker for what has no key, and a fixed number
// of further queues, the partitions, for what has one. A key is always in the
// same partition, and a partition is taken by one coordinator at a time, by a
// lock that Owner holds for it.
//
// What it promises: messages of one key (and class) are received in the order
// of their publication, those that are in flight are all at one coordinator,
// and a message that comes again comes before those behind it. A coordinator
// that dies, is frozen or is cut off from Consul or from the broker breaks
// none of that. Its partitions stand still until its locks and leases are over.
//
// How: whoever takes a partition waits until the leases of the one before are
// over, unless that one said that it had ended everything; then it takes what
// was left there, sorts it by the time of publication, and goes on with what
// is new. Whenever it learns that it has lost a lease, it gives everything
// back and begins like this anew. What is given back one by one (Release
// without delay) never leaves this process while the partition is its own.
//
// A producer without this package publishes a message with the key K to the
// queue NAME-pN, N being the 32-bit FNV-1a hash of K modulo the number of
// partitions. What it puts into the queue NAME itself is moved to its
// partition by whoever receives it: in order as long as one coordinator runs.
package partitioned

import (
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/partition"
	"retinue/coordinator/source"
	"retinue/internal/clock"
	"retinue/internal/hint"
)

// Owner knows which partitions are this coordinator's. *partition.Holder is one.
type Owner interface {
	// Held returns the hold of a partition, if it is ours now.
	Held(p int) (partition.Claim, bool)
	// Changed is closed when Held says something else than before.
	Changed() <-chan struct{}
	// Give sets a partition free: all that we had of it has ended.
	Give(p int, epoch uint64)
	// Stand says whether we want partitions at all.
	Stand(yes bool)
}

// Config is a queue with partitions.
type Config struct {
	// Open opens a queue of the broker. It may take its time, and it is called at any time.
	Open func(source.Options) (source.Source, error)
	// Options are those of the queue as a whole.
	Options    source.Options
	Partitions int
	// Owner is nil where nothing is received that has a key: a producer, a scaler.
	Owner Owner
	// Back asks for messages of a partition whose work has not begun to be given back (Release without delay): the partition goes to another
	// coordinator. It may know some of them only when a Receive has returned. It must not wait for a call of the source.
	Back  func(p int, ms []*source.Message)
	Clock clock.Clock
	Log   hclog.Logger
}

// Queue is the name of a partition's queue.
func Queue(queue string, p int) string { return fmt.Sprintf("%s-p%d", queue, p) }

// Of is the partition of a key.
func Of(key string, partitions int) int {
	h := fnv.New32a()
	h.Write([]byte(key))
	return int(h.Sum32() % uint32(partitions))
}

// What a change of hands costs.
const (
	// quietFor is how long nothing more must come for that to be all that was left.
	quietFor = time.Second
	// prefetch is the same for all coordinators, whatever they have slots for: where the broker bounds what one has, the next one can have as much.
	prefetch = 64
	// leftover is what one may have left where the broker does not tell what was given out before: RabbitMQ sends twice as much ahead.
	leftover = 2*prefetch + 16
	// withdrawAfter is how long a coordinator may want nothing until others get its partitions.
	withdrawAfter = 3 * time.Second
	// closing bounds the end of one queue.
	closing = 5 * time.Second
)

// New opens the queue. It receives nothing before the first Receive.
func New(cfg Config) (*Source, error) {
	if err := cfg.Options.Complete(); err != nil {
		return nil, err
	}
	if cfg.Partitions < 1 || cfg.Partitions > partition.MaxPartitions {
		return nil, fmt.Errorf("%w: %d partitions: 1 to %d are possible", source.ErrConfig, cfg.Partitions, partition.MaxPartitions)
	}
	base, err := cfg.Open(cfg.Options)
	if err != nil {
		return nil, err
	}
	if caps := base.Caps(); !caps.Order {
		ctx, cancel := bounded(closing)
		defer cancel()
		return nil, errors.Join(hint.Wrap(fmt.Errorf("%w: partitions, and %s does not give out a queue in order", source.ErrConfig, caps.Broker),
			"leave partitions out; a FIFO queue of SQS, and Kafka with groups=classic, order a key themselves"), base.Close(ctx))
	}
	return newSource(cfg, base), nil
}
