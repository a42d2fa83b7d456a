package source

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"retinue/internal/hint"
)

// Limits of the contract.
const (
	MaxClasses   = 10
	maxID        = 200
	maxName      = 200
	maxKey       = 200
	maxHeaders   = 16 << 10
	MaxQueue     = 80
	MinLease     = 100 * time.Millisecond
	ownPrefix    = "retinue-"
	idPunct      = "-_.:/+=@~"
	namePunct    = "-_."
	defaultLease = 30 * time.Second
)

// Options are the same for every broker.
type Options struct {
	// Queue is the name: letters, digits, - and _, at most MaxQueue.
	Queue string
	// Consumer names this process among the consumers, in the broker's own tools and where a broker keeps state per consumer.
	// Unique per process; "" makes a random one.
	Consumer string
	// Lease is how long a message stays ours without Extend. Default 30s. SQS rounds it up to whole
	// seconds.
	Lease time.Duration
	// Prefetch is how many messages this consumer wants to have at most, those that Receive returned included: slots and a
	// few more. Default 16.
	Prefetch int
	// Classes is the number of priority classes, 1 to MaxClasses. Default 1. All producers and consumers of a queue use the same.
	Classes int
	// Order: the queue has one consumer at a time, and its messages are to be taken in the order of publication (Caps.Order says
	// how far that goes). All its consumers and producers use the same. A broker that cannot do it is ErrConfig.
	Order bool
	// Abreast: messages may overtake each other on the way here, by about a round trip. Otherwise one consumer has first deliveries in
	// the order in which the broker gives them.
	Abreast bool
}

// NoOrder refuses Order, for adapters of brokers that cannot keep it.
func (o Options) NoOrder(broker string) error {
	if !o.Order {
		return nil
	}
	return hint.Wrap(fmt.Errorf("%w: %s does not keep the order of a queue", ErrConfig, broker),
		"leave partitions out: Kafka with groups=classic and SQS with fifo=true have an order of each key of their own, and NATS, Redis, RabbitMQ and ActiveMQ can have partitions")
}

// Complete checks the options and fills in what was left out.
func (o *Options) Complete() error {
	if o.Lease == 0 {
		o.Lease = defaultLease
	}
	if o.Prefetch == 0 {
		o.Prefetch = 16
	}
	if o.Classes == 0 {
		o.Classes = 1
	}
	if o.Consumer == "" {
		o.Consumer = "c" + NewID()
	}
	switch {
	case !only(o.Queue, "-_") || o.Queue == "" || len(o.Queue) > MaxQueue:
		return fmt.Errorf("%w: queue %q: letters, digits, - and _, 1 to %d of them", ErrConfig, o.Queue, MaxQueue)
	case !only(o.Consumer, "-_") || len(o.Consumer) > MaxQueue:
		return fmt.Errorf("%w: consumer %q: letters, digits, - and _, at most %d of them", ErrConfig, o.Consumer, MaxQueue)
	case o.Lease < MinLease:
		return fmt.Errorf("%w: lease %v is below %v", ErrConfig, o.Lease, MinLease)
	case o.Prefetch < 1:
		return fmt.Errorf("%w: prefetch %d is below 1", ErrConfig, o.Prefetch)
	case o.Classes < 1 || o.Classes > MaxClasses:
		return fmt.Errorf("%w: %d classes: 1 to %d are possible", ErrConfig, o.Classes, MaxClasses)
	}
	return nil
}

// Check says whether a message may be published to a source of these options.
func (o Options) Check(out Out) error {
	switch {
	case out.ID == "" || len(out.ID) > maxID || !only(out.ID, idPunct):
		return fmt.Errorf("%w: id %q: letters, digits and %s, 1 to %d of them", ErrInvalid, out.ID, idPunct, maxID)
	case len(out.Key) > maxKey || !printable(out.Key):
		return fmt.Errorf("%w: key %q: text without control characters and space around it, at most %d bytes", ErrInvalid, out.Key, maxKey)
	case out.Class < 0 || out.Class >= o.Classes:
		return fmt.Errorf("%w: class %d of %d", ErrInvalid, out.Class, o.Classes)
	case out.Delay < 0:
		return fmt.Errorf("%w: delay %v", ErrInvalid, out.Delay)
	}
	size := 0
	for name, value := range out.Headers {
		size += len(name) + len(value)
		switch {
		case name == "" || len(name) > maxName || !only(name, namePunct):
			return fmt.Errorf("%w: header name %q: letters, digits and %s", ErrInvalid, name, namePunct)
		case OwnHeader(name):
			return fmt.Errorf("%w: header name %q: names that begin with %s are taken", ErrInvalid, name, ownPrefix)
		case !printable(value):
			return fmt.Errorf("%w: header %s: text without control characters and space around it", ErrInvalid, name)
		}
	}
	if size > maxHeaders {
		return fmt.Errorf("%w: %d bytes of headers, at most %d", ErrInvalid, size, maxHeaders)
	}
	return nil
}

// OwnHeader says that a header is the adapters' own.
func OwnHeader(name string) bool {
	return len(name) >= len(ownPrefix) && equalFold(name[:len(ownPrefix)], ownPrefix)
}

func equalFold(s, lower string) bool {
	for i := range len(lower) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// only says that s has ASCII letters, digits and the given punctuation, nothing else.
func only(s, punct string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		default:
			found := false
			for j := range len(punct) {
				found = found || punct[j] == c
			}
			if !found {
				return false
			}
		}
	}
	return true
}

// printable says that s survives as the value of a header on every broker.
func printable(s string) bool {
	if !utf8.ValidString(s) || strings.TrimSpace(s) != s {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}
