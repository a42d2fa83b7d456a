package coordinator

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"retinue/coordinator/partition"
	"retinue/internal/hint"
)

// Lane is what happens to the items of a key while the first of them fails.
type Lane string

// The lane policies.
const (
	LaneBlock Lane = "block" // they wait until it has ended
	LaneSkip  Lane = "skip"  // they overtake it
	LanePark  Lane = "park"  // they wait, and when it is dead they follow it to the dead letters, in order
)

// Backoff is a range of delays: full jitter over Min, 2 Min, 4 Min … Max.
type Backoff struct{ Min, Max time.Duration }

// ceiling is the longest delay after n failures.
func (b Backoff) ceiling(n int) time.Duration {
	d := b.Min
	for i := 1; i < n && d < b.Max; i++ {
		d *= 2
	}
	return min(d, b.Max)
}

// Config is what a coordinator does. Settings.Config makes one.
type Config struct {
	// Queue names the queue, and the stage where Stage does not.
	Queue string
	// Stage names the records and the messages to the next stage; "" stands for Queue. Coordinators of several queues that work for one stage
	// end each of its items once.
	Stage string
	// ID names this coordinator, Node the machine, for people.
	ID, Node string
	// Alloc is the Nomad allocation that this runs in, "" outside of Nomad.
	Alloc string

	// Lease is how long a message stays ours without an extension; one is sent every third of it.
	Lease time.Duration
	// Slots is how many calls the worker gets at once, Batch how many items a call may have.
	Slots, Batch int
	// Keyed bounds how many items are held that wait for others of their key.
	Keyed int

	// MaxRuntime ends an attempt. Heartbeat ends one that shows no progress for so long; 0: none is expected.
	MaxRuntime, Heartbeat time.Duration
	// Attempts is how many may fail, CrashAttempts how many may crash before the item is quarantined.
	Attempts, CrashAttempts int
	// Retry, CrashRetry, NotReady and Infra are the delays by class.
	Retry, CrashRetry, NotReady, Infra Backoff

	// Key is the header that names an item's key; "" takes the message's own key. Keys says whether keys matter at all.
	Keys bool
	Key  string
	Lane Lane

	// Rate and KeyRate are calls a second of all coordinators together (see Share), 0 for no limit; bursts are how many may come at once here.
	Rate, KeyRate   float64
	Burst, KeyBurst int

	// Classes of priority: the highest is the most urgent. An item of a lower class that has waited Aging longer than one of
	// the next class goes first.
	Classes int
	Aging   time.Duration

	// Record says that there is a commit point; Check asks it before every attempt, not only before repeated ones.
	Record, Check bool
	// Acks is how many acknowledgements may be on their way; 0 stands for 1.
	Acks int
	// KeyOrder says that the items of a key are all at one coordinator.
	KeyOrder bool
	// Partitions is how many partitions the queue has, each of which one coordinator takes at a time; 0: none. ToPartitions are those of the next stage.
	Partitions, ToPartitions int
	// To is the queue of the next stage; "" for none. Dead is the queue of dead letters.
	To, Dead string
	// Gather is the queue that gets one item when all parts of a group have been committed; "" for none. Split makes the messages of an item
	// to the next stage a group.
	Gather string
	Split  bool
	// Divert is the queue of coordinators of the same stage that have a worker of another kind. It gets the items whose payload has more than
	// DivertOver bytes (0: none for its size), those whose attempt here took too long, and those that would be quarantined. "" for none.
	Divert     string
	DivertOver int64
	// ToClasses is how many classes of priority the next stage has.
	ToClasses int

	// Schedules publish items at their times.
	Schedules []Schedule

	// Keep is how long records and outputs are kept, DeadKeep how long dead letters are; 0: until somebody deletes them.
	Keep, DeadKeep time.Duration

	// Worth is how long attempts should take at least, as each costs something to begin; 0 says nothing. A warning tells when they do not.
	Worth time.Duration

	// Drain is how long a stop waits for what runs.
	Drain time.Duration
}

var queueName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,69}$`)

// Validate says what is wrong with c.
func (c Config) Validate() error {
	switch {
	case !queueName.MatchString(c.Queue):
		return hint.Wrap(fmt.Errorf("queue name %q", c.Queue), "use 1 to 70 letters, digits, - or _")
	case c.Lease < 100*time.Millisecond || c.Lease > time.Hour:
		return hint.Wrap(fmt.Errorf("lease %s is not between 100ms and 1h", c.Lease), "10s suits most brokers; it is extended while the worker lives, however long that takes")
	case c.Slots < 1 || c.Slots > 10000:
		return hint.Wrap(fmt.Errorf("%d slots", c.Slots), "1 to 10000: how many items the worker handles at once")
	case c.Batch < 1 || c.Batch > 10000:
		return hint.Wrap(fmt.Errorf("batch of %d", c.Batch), "1 to 10000 items")
	case c.MaxRuntime <= 0:
		return hint.Wrap(fmt.Errorf("max-runtime %s", c.MaxRuntime), "how long one attempt may take, for example 2h")
	case c.Heartbeat < 0:
		return fmt.Errorf("heartbeat %s is negative", c.Heartbeat)
	case c.Attempts < 1 || c.Attempts > 1000:
		return hint.Wrap(fmt.Errorf("%d attempts", c.Attempts), "1 to 1000; 1 means no retry")
	case c.CrashAttempts < 1:
		return hint.Wrap(fmt.Errorf("%d crash attempts", c.CrashAttempts), "1 or more; 2 lets an item crash a worker twice")
	case c.Lane != LaneBlock && c.Lane != LaneSkip && c.Lane != LanePark:
		return hint.Wrap(fmt.Errorf("on_fail %q", c.Lane), "use block, skip or park")
	case c.Partitions < 0 || c.Partitions > partition.MaxPartitions || c.ToPartitions < 0 || c.ToPartitions > partition.MaxPartitions:
		return hint.Wrap(fmt.Errorf("%d partitions, and %d of the next stage", c.Partitions, c.ToPartitions), "0 for none, or 1 to %d: each is a queue of the broker", partition.MaxPartitions)
	case c.Partitions > 0 && (!c.Keys || c.Key != ""):
		return hint.Wrap(errors.New("partitions without order by the message's key"), "write order = message: a producer puts an item into its partition, and knows only the message's own key")
	case c.ToPartitions > 0 && c.To == "":
		return hint.Wrap(errors.New("partitions of a next stage, and there is none"), "name it with to")
	case c.KeyRate > 0 && !c.Keys:
		return hint.Wrap(errors.New("a rate for each key, and items have no keys"), "order names the key: message or header:NAME; on_fail = \"skip\" where only the rate matters")
	case c.Rate < 0 || c.KeyRate < 0:
		return errors.New("a rate is negative")
	case c.Classes < 1 || c.Classes > 10:
		return hint.Wrap(fmt.Errorf("%d priority classes", c.Classes), "1 to 10")
	case c.Aging <= 0:
		return fmt.Errorf("aging %s is not above 0", c.Aging)
	case c.Gather != "" && (!queueName.MatchString(c.Gather) || c.Gather == c.Queue || c.Gather == c.Dead):
		return hint.Wrap(fmt.Errorf("gather %q", c.Gather), "the queue of the stage that gets one item for a whole group; 1 to 70 letters, digits, - or _")
	case c.Split && c.To == "":
		return hint.Wrap(errors.New("split without a next stage"), "name the stage that gets the parts with to")
	case c.Keep != 0 && (c.Keep < time.Hour || c.Keep < c.MaxRuntime || c.Keep < 10*c.Lease):
		return hint.Wrap(fmt.Errorf("keep %s", c.Keep), "an hour or more, no less than max_runtime (%s) and 10 leases: what a record protects from must not come after it", c.MaxRuntime)
	case c.DeadKeep != 0 && c.DeadKeep < time.Hour:
		return hint.Wrap(fmt.Errorf("dead letters for %s", c.DeadKeep), "keep them for an hour or more: somebody has to see them")
	case !queueName.MatchString(c.stage()):
		return hint.Wrap(fmt.Errorf("stage %q", c.Stage), "use 1 to 70 letters, digits, - or _: the queue whose coordinators divert items to here")
	case c.Divert != "" && (!queueName.MatchString(c.Divert) || c.Divert == c.Queue || c.Divert == c.stage() || c.Divert == c.To || c.Divert == c.Gather || c.Divert == c.Dead):
		return hint.Wrap(fmt.Errorf("divert to %q", c.Divert), "the queue of coordinators with --stage %s; 1 to 70 letters, digits, - or _", c.stage())
	case c.Divert != "" && c.Keys && c.Lane != LaneSkip:
		return hint.Wrap(fmt.Errorf("divert with on_fail %s", c.Lane), "those of its key would overtake an item that goes to another queue: write on_fail = skip, or leave one of the two out")
	case c.DivertOver < 0 || c.DivertOver > 0 && c.Divert == "":
		return hint.Wrap(errors.New("a size above which items are diverted, and nowhere to"), "name the queue with divert")
	case c.Drain < 0:
		return fmt.Errorf("drain timeout %s is negative", c.Drain)
	case c.To != "" && (c.To == c.Queue || c.To == c.stage()):
		return hint.Wrap(fmt.Errorf("the next stage of %s is itself", c.Queue), "name another queue: an item would never end")
	case !queueName.MatchString(c.Dead) || c.Dead == c.Queue || c.Dead == c.stage() || c.Dead == c.To:
		return hint.Wrap(fmt.Errorf("dead-letter queue %q", c.Dead), "a queue of its own; the default is %s-dead", c.Queue)
	}
	for name, b := range map[string]Backoff{"backoff": c.Retry, "crash_backoff": c.CrashRetry, "not_ready": c.NotReady, "infra": c.Infra} {
		if b.Min <= 0 || b.Max < b.Min {
			return hint.Wrap(fmt.Errorf("%s %s..%s", name, b.Min, b.Max), "write the shortest and the longest delay, like 1s..5m")
		}
	}
	return nil
}

// stage is what Stage stands for.
func (c Config) stage() string {
	if c.Stage == "" {
		return c.Queue
	}
	return c.Stage
}

// prefetch is how many items wait in hand for a slot at most: enough that a slot that becomes free finds one.
func (c Config) prefetch() int { return c.Slots * c.Batch }

// hold is the longest delay that an item is kept for here; one that waits longer goes back to the broker.
func (c Config) hold() time.Duration { return c.Lease / 2 }
