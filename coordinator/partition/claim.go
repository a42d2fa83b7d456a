package partition

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
)

// Claim is this coordinator's hold of a partition.
type Claim struct {
	Epoch uint64        // grows with every new hold of this partition, by anyone (the index of the lock in Consul)
	Clean bool          // whoever held it before gave it back when everything of it had ended (or nobody ever held it): no wait is needed
	Leave bool          // another coordinator shall have it: finish what is in hand, then Give
	Until clock.Instant // not to be relied on from then on (boot clock); moves on with each renewal
}

// Config is what a coordinator's Holder needs to know.
type Config struct {
	Client     *consulkit.Client
	Prefix     string        // retinue/queues/NAME/ , as scale.Place.Prefix
	Queue      string        // whose partitions
	ID         string        // this coordinator among those of the queue: coordinator.Config.ID, e.g. "ab12cd34@host"
	Partitions int           // 1 to 64, the same for all coordinators of the queue
	TTL        time.Duration // of the session; 0: 10s, which Consul takes without being configured
	Clock      clock.Clock
	Log        hclog.Logger
}

// MaxPartitions is how many a queue can have.
const MaxPartitions = 64

// defaultTTL is the shortest lease that Consul takes without being configured to.
const defaultTTL = 10 * time.Second

// validate says what is wrong with c.
func (c Config) validate() error {
	switch {
	case c.Client == nil || c.Clock == nil || c.Log == nil:
		return errors.New("partitions: no client, clock or log")
	case c.Prefix == "" || !strings.HasSuffix(c.Prefix, "/"):
		return fmt.Errorf("partitions: prefix %q does not end with /", c.Prefix)
	case !part(c.Queue):
		return fmt.Errorf("partitions of the queue %q: a name without / and at most 128 bytes is needed", c.Queue)
	case !part(c.ID):
		return hint.Wrap(fmt.Errorf("partitions of %s: the coordinator's name %q", c.Queue, c.ID), "give it a name of its own without /, of at most 128 bytes: --id NAME")
	case c.Partitions < 1 || c.Partitions > MaxPartitions:
		return hint.Wrap(fmt.Errorf("%d partitions", c.Partitions), "1 to %d, the same for all coordinators of a queue", MaxPartitions)
	case c.TTL < 500*time.Millisecond || c.TTL > time.Hour:
		return hint.Wrap(fmt.Errorf("a session of %s", c.TTL), "500ms to 1h; Consul takes less than 10s only with session_ttl_min")
	}
	return nil
}

// part says whether s can be one part of a key in Consul.
func part(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsAny(s, "/\x00\n")
}

// View is how the partitions are held, for people.
type View struct {
	Partitions []PartitionView `json:"partitions"`
	Members    []string        `json:"members"`   // coordinators that stand for partitions, sorted
	Connected  bool            `json:"connected"` // Consul answers, and this coordinator has a session
	Why        string          `json:"why,omitempty"`
}

// PartitionView is one partition.
type PartitionView struct {
	Partition int    `json:"partition"`
	Owner     string `json:"owner,omitempty"` // "": nobody
	Ours      bool   `json:"ours"`
	Leave     bool   `json:"leave,omitempty"`
}
