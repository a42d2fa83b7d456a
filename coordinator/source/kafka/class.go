package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"retinue/coordinator/source"
)

// class receives from the topic of one priority, as a member of its group while somebody wants messages.
type class struct {
	s *Source
	n int

	// taking is held from the choice of messages until the commit behind them: a partition goes to another consumer only between.
	taking sync.Mutex

	mu     sync.Mutex
	client *kgo.Client // nil: idle
	shares map[int32]*share
	ahead  []*arrival
	room   chan struct{}
	err    error // the last of a poll
	last   int   // of own
}

// share is one partition from its assignment until it goes.
type share struct{ gone bool }

// arrival is a message that was not handed out.
type arrival struct {
	m     *source.Message
	at    position
	due   time.Time
	share *share
}

func newClass(s *Source, n int) *class { return &class{s: s, n: n, room: make(chan struct{}, 1)} }

// join becomes a member of the group.
func (c *class) join() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return nil
	}
	client, err := c.s.member(c.s.topic(c.n), kgo.OnPartitionsAssigned(c.assigned), kgo.OnPartitionsRevoked(c.revoked), kgo.OnPartitionsLost(c.revoked))
	if err != nil {
		return err
	}
	c.client, c.shares, c.err = client, map[int32]*share{}, nil
	c.s.tasks.Go(func() { c.fetch(client) })
	return nil
}

// leave gives the partitions to others, with what was fetched ahead.
func (c *class) leave(ctx context.Context) error {
	c.taking.Lock()
	c.mu.Lock()
	client := c.client
	c.client, c.ahead = nil, nil
	c.mu.Unlock()
	c.taking.Unlock()
	if client == nil {
		return nil
	}
	c.freed()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	err := client.LeaveGroupContext(ctx)
	client.CloseAllowingRebalance()
	c.s.wake()
	return err
}

func (c *class) assigned(_ context.Context, client *kgo.Client, parts map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != client {
		return
	}
	for _, p := range parts[c.s.topic(c.n)] {
		c.shares[p] = &share{}
	}
}

func (c *class) revoked(_ context.Context, client *kgo.Client, parts map[string][]int32) {
	c.taking.Lock()
	defer c.taking.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != client {
		return
	}
	for _, p := range parts[c.s.topic(c.n)] {
		if share := c.shares[p]; share != nil {
			share.gone = true
			delete(c.shares, p)
		}
	}
	var rest []*arrival
	for _, a := range c.ahead {
		if !a.share.gone {
			rest = append(rest, a)
		}
	}
	c.ahead = rest
	c.freed()
}

// fetch polls as long as there is room.
func (c *class) fetch(client *kgo.Client) {
	for {
		n := c.space(client)
		if n == 0 {
			return
		}
		fs := client.PollRecords(context.Background(), n)
		if fs.IsClientClosed() {
			return
		}
		c.arrived(client, fs)
		client.AllowRebalance()
		c.s.wake()
	}
}

// space waits until there is room for messages; 0: the client is not used any more.
func (c *class) space(client *kgo.Client) int {
	for {
		c.mu.Lock()
		n, current := c.s.cfg.Prefetch-len(c.ahead), c.client == client
		c.mu.Unlock()
		switch {
		case !current:
			return 0
		case n > 0:
			return n
		}
		<-c.room
	}
}

// own is a partition that is ours, the next one each time; anywhere where there is none.
func (c *class) own() int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil || len(c.shares) == 0 {
		return anywhere
	}
	all := slices.Sorted(maps.Keys(c.shares))
	c.last++
	return all[c.last%len(all)]
}

// freed tells fetch that there may be room, or that its client is not used any more.
func (c *class) freed() {
	select {
	case c.room <- struct{}{}:
	default:
	}
}

func (c *class) arrived(client *kgo.Client, fs kgo.Fetches) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != client {
		return
	}
	c.err = nil
	for _, e := range fs.Errors() {
		c.err = e.Err
	}
	fs.EachRecord(func(r *kgo.Record) {
		if share := c.shares[r.Partition]; share != nil {
			a := c.s.message(c.n, r)
			a.share = share
			c.ahead = append(c.ahead, a)
		}
	})
}

// choose takes the next n messages; taking is held.
func (c *class) choose(n int) []*arrival {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, len(c.ahead))
	chosen := c.ahead[:n:n]
	c.ahead = c.ahead[n:]
	c.freed()
	return chosen
}

// putBack returns what choose took; taking is still held.
func (c *class) putBack(all []*arrival) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		c.ahead = append(all, c.ahead...)
	}
}

func (c *class) waiting() (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ahead), c.err
}

// commit moves the group's position behind messages, whose marks are written.
func (c *class) commit(ctx context.Context, all []*arrival) error {
	c.mu.Lock()
	client := c.client
	c.mu.Unlock()
	if client == nil {
		return kgo.ErrClientClosed
	}
	ends := map[int32]kgo.EpochOffset{}
	for _, a := range all {
		ends[a.at.partition] = kgo.EpochOffset{Epoch: -1, Offset: max(ends[a.at.partition].Offset, a.at.offset+1)}
	}
	return commit(ctx, client, c.s.topic(c.n), ends)
}

// commit waits until a group's position is stored.
func commit(ctx context.Context, client *kgo.Client, topic string, ends map[int32]kgo.EpochOffset) error {
	for {
		var failed error
		client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{topic: ends},
			func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
				if err != nil {
					failed = err
					return
				}
				for _, t := range resp.Topics {
					for _, p := range t.Partitions {
						failed = errors.Join(failed, kerr.ErrorForCode(p.ErrorCode))
					}
				}
			})
		// The group agrees on a new generation, in which the partitions are still ours.
		if errors.Is(failed, kerr.RebalanceInProgress) {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
				continue
			}
		}
		if failed != nil {
			return fmt.Errorf("commit: %w", failed)
		}
		return nil
	}
}
