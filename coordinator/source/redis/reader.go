package redis

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"retinue/coordinator/source"
	"retinue/internal/clock"
)

// reader asks the group for messages. A read that waits is not given up with the Receive that started it, because what the
// server sends to nobody would be lost until its lease ends: its messages are handed out by the next Receive.
type reader struct {
	s      *Source
	shares source.Classes

	reaped time.Time // when we last looked for leases that ended
	swept  time.Time
	ticked time.Time

	mu      sync.Mutex
	waiting chan struct{} // a read that waits: closed at its end; nil: none
	id      int64         // of the connection it waits on
	ahead   [source.MaxClasses][]*source.Message
	err     error // how it ended
}

// waitFor is how long a read waits at the server.
const waitFor = time.Second

func newReader(s *Source) *reader {
	return &reader{s: s, shares: source.Classes{N: s.cfg.Classes}}
}

// reapEvery is how often a consumer looks for leases that ended.
func (r *reader) reapEvery() time.Duration {
	return min(max(r.s.cfg.Lease/4, tickEvery), 5*time.Second)
}

func (r *reader) receive(ctx context.Context, max int) ([]*source.Message, error) {
	for {
		if ms := r.take(max); len(ms) > 0 {
			return ms, nil
		}
		if err := r.tick(ctx, max); err != nil {
			return nil, err
		}
		if r.count() == 0 && !r.reads() {
			if err := r.now(ctx, max); err != nil {
				return nil, err
			}
		}
		if r.count() > 0 {
			continue
		}
		if err := r.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// take hands out what has arrived and is still ours.
func (r *reader) take(max int) []*source.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ms []*source.Message
	for len(ms) < max {
		class := r.s.classes.Next(func(class int) bool { return len(r.ahead[class]) > 0 })
		if class < 0 {
			break
		}
		m := r.ahead[class][0]
		r.ahead[class] = r.ahead[class][1:]
		if _, ok := r.s.held.Get(m); !ok {
			r.s.held.Drop(m)
			continue
		}
		ms = append(ms, m)
	}
	return ms
}

func (r *reader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, ms := range r.ahead {
		n += len(ms)
	}
	return n
}

func (r *reader) add(m *source.Message) {
	if m == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ahead[m.Class] = append(r.ahead[m.Class], m)
}

// tick does what is due: delayed messages, leases that ended, consumers that are gone.
func (r *reader) tick(ctx context.Context, max int) error {
	now := time.Now()
	if now.Sub(r.ticked) < tickEvery {
		return nil
	}
	r.ticked = now
	lease := int64(0)
	if now.Sub(r.reaped) >= r.reapEvery() {
		r.reaped = now
		lease = r.s.cfg.Lease.Milliseconds()
	}
	if now.Sub(r.swept) >= time.Minute {
		r.swept = now
		if err := sweep.Run(ctx, r.s.db, r.s.cfg.keys(), group).Err(); err != nil {
			return err
		}
	}
	sent := r.s.held.Now()
	// Not with the caller's context: an answer that nobody reads has taken messages.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	got, err := tick.Run(ctx, r.s.db, r.s.cfg.keys(), group, r.s.cfg.Consumer, lease, max).Slice()
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	for _, g := range got {
		row := g.([]any)
		flat := row[3].([]any)
		fields := make(map[string]string, len(flat)/2)
		for i := 0; i+1 < len(flat); i += 2 {
			fields[flat[i].(string)] = flat[i+1].(string)
		}
		r.add(r.s.message(entry{int(row[0].(int64)), row[1].(string)}, fields, int(row[2].(int64)), sent))
	}
	return nil
}

// now reads what is there: shared between the classes, then for what they left one after the other.
func (r *reader) now(ctx context.Context, max int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	n := r.s.cfg.Classes
	parts := r.shares.Split(max)
	sent := r.s.held.Now()
	var reads [source.MaxClasses]*redis.XStreamSliceCmd
	_, err := r.s.db.Pipelined(ctx, func(p redis.Pipeliner) error {
		for class := range n {
			if parts[class] > 0 {
				reads[class] = p.XReadGroup(ctx, r.args(-1, parts[class], class))
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	for class := range n {
		if reads[class] != nil {
			r.entries(reads[class].Val(), []int{class}, sent)
		}
	}
	for class := n - 1; class >= 0 && n > 1 && r.count() < max; class-- {
		sent := r.s.held.Now()
		got, err := r.s.db.XReadGroup(ctx, r.args(-1, max-r.count(), class)).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		r.entries(got, []int{class}, sent)
	}
	return nil
}

func (r *reader) args(block time.Duration, count int, classes ...int) *redis.XReadGroupArgs {
	var streams []string
	for _, class := range classes {
		streams = append(streams, r.s.cfg.stream(class))
	}
	for range classes {
		streams = append(streams, ">")
	}
	return &redis.XReadGroupArgs{Group: group, Consumer: r.s.cfg.Consumer, Streams: streams, Count: int64(count), Block: block}
}

func (r *reader) entries(got []redis.XStream, classes []int, sent clock.Instant) {
	for _, st := range got {
		for _, class := range classes {
			if r.s.cfg.stream(class) != st.Stream {
				continue
			}
			for _, e := range st.Messages {
				fields := make(map[string]string, len(e.Values))
				for name, value := range e.Values {
					fields[name], _ = value.(string)
				}
				r.add(r.s.message(entry{class, e.ID}, fields, 1, sent))
			}
		}
	}
}

func (r *reader) reads() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting != nil
}

// wait returns when a waiting read has ended, when it is time for a tick, or with an error.
func (r *reader) wait(ctx context.Context) error {
	r.mu.Lock()
	if r.waiting == nil {
		r.waiting = make(chan struct{})
		go r.block()
	}
	done := r.waiting
	r.mu.Unlock()
	timer := time.NewTimer(tickEvery)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	case <-r.s.closed:
		return source.ErrClosed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.err
	r.err = nil
	return err
}

// block waits at the server for one message of each class at most.
func (r *reader) block() {
	ctx, cancel := context.WithTimeout(context.Background(), waitFor+10*time.Second)
	defer cancel()
	conn := r.s.db.Conn()
	id, err := conn.ClientID(ctx).Result()
	var all []int
	for class := r.s.cfg.Classes - 1; class >= 0; class-- {
		all = append(all, class)
	}
	if err == nil {
		r.mu.Lock()
		r.id = id
		r.mu.Unlock()
		var got []redis.XStream
		got, err = conn.XReadGroup(ctx, r.args(waitFor, 1, all...)).Result()
		// The lease begins when the server answers, not when it was asked.
		r.entries(got, all, r.s.held.Now())
	}
	conn.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && !errors.Is(err, redis.Nil) {
		r.err = err
	}
	r.id = 0
	close(r.waiting)
	r.waiting = nil
}

// idle ends a read that waits and returns what has arrived.
func (r *reader) idle(ctx context.Context) []*source.Message {
	for range 100 {
		r.mu.Lock()
		waiting, id := r.waiting, r.id
		r.mu.Unlock()
		if waiting == nil {
			break
		}
		if id != 0 {
			// Where the server does not allow it, the read ends by itself, soon.
			r.s.db.ClientUnblock(ctx, id)
		}
		select {
		case <-waiting:
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var back []*source.Message
	for class := range r.ahead {
		back = append(back, r.ahead[class]...)
		r.ahead[class] = nil
	}
	return back
}
