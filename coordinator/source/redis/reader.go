package redis

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
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

	// In an ordered queue: something was given back or its lease may have ended since all of that was looked for. What nobody had
	// yet is not read before.
	behind atomic.Bool
	doubt  atomic.Bool // an answer was lost, and messages may have been in it

	mu    sync.Mutex
	lines []line
	ended chan struct{} // closed and replaced when a read that waits has ended
	more  bool          // than the last read brought
	ahead [source.MaxClasses][]*source.Message
	err   error // how a read ended

	receiving bool        // a Receive is under way
	wanted    bool        // nothing was given back after the last one
	rest      *time.Timer // until what nobody asks for is given back; nil: never yet
}

// line is a connection for reads that wait. Of two, one waits at the server while the other's answer is on its way and its next question back: what is
// published then would wait for that.
type line struct {
	conn   *redis.Conn // the read's that is under way
	client int64       // its name at the server

	wants int   // messages, of the read that is under way; 0: none is
	id    int64 // of the connection, while it can be unblocked
}

// waitFor is how long a read waits at the server.
const waitFor = time.Second

func newReader(s *Source) *reader {
	r := &reader{s: s, shares: source.Classes{N: s.cfg.Classes}, lines: make([]line, 1), ended: make(chan struct{})}
	if s.cfg.Abreast && !s.cfg.Order && s.cfg.Classes == 1 { // several classes are asked for one message at a time
		r.lines = make([]line, 2)
	}
	r.behind.Store(true)
	return r
}

// reapEvery is how often a consumer looks for leases that ended.
func (r *reader) reapEvery() time.Duration {
	if r.s.cfg.Order {
		return tickEvery // what is given back waits for this, and few are in flight
	}
	return min(max(r.s.cfg.Lease/4, tickEvery), 5*time.Second)
}

func (r *reader) receive(ctx context.Context, max int) ([]*source.Message, error) {
	r.begin()
	defer r.end()
	for {
		ms, over := r.take(max)
		if r.s.cfg.Order && len(over) > 0 {
			if err := r.s.giveBack(ctx, over); err != nil && len(ms) == 0 {
				return nil, err
			}
		}
		if len(ms) > 0 {
			return ms, nil
		}
		if r.s.cfg.Order {
			if err := r.search(ctx); err != nil {
				return nil, err
			}
		}
		if err := r.tick(ctx, max); err != nil {
			return nil, err
		}
		if r.s.cfg.Order && (r.behind.Load() || r.doubt.Load() && !r.reads()) {
			if err := r.s.check(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if r.count() == 0 && !r.reads() && r.full() {
			if err := r.now(ctx, max); err != nil {
				return nil, err
			}
		}
		if r.count() > 0 {
			continue
		}
		if err := r.wait(ctx, max); err != nil {
			return nil, err
		}
	}
}

func (r *reader) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receiving, r.wanted = true, true
}

func (r *reader) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receiving = false
	r.keep()
}

// keep gives what has arrived, and no Receive waits for, a moment to be asked for. Of a queue in order nobody else could have it. r.mu is held.
func (r *reader) keep() {
	if r.receiving || r.s.cfg.Order || !r.arrived() {
		return
	}
	patience := min(r.s.cfg.Lease/8, time.Second)
	if r.rest == nil {
		r.rest = time.AfterFunc(patience, r.unused)
	} else {
		r.rest.Reset(patience)
	}
}

// unused gives back what nobody has asked for: others may want it before its lease ends.
func (r *reader) unused() {
	r.mu.Lock()
	if r.receiving {
		r.mu.Unlock()
		return // its end looks again
	}
	r.wanted = false // a read that went on would take them again
	back := r.all()
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.s.giveBack(ctx, back); err != nil {
		for _, m := range back {
			r.s.held.Drop(m) // it comes back at the end of its lease, which nobody extends
		}
	}
}

// arrived says whether something has. r.mu is held.
func (r *reader) arrived() bool {
	return slices.ContainsFunc(r.ahead[:], func(ms []*source.Message) bool { return len(ms) > 0 })
}

// all takes what has arrived. r.mu is held.
func (r *reader) all() (ms []*source.Message) {
	for class := range r.ahead {
		ms = append(ms, r.ahead[class]...)
		r.ahead[class] = nil
	}
	return ms
}

// search gives back what was in an answer that was lost: at the end of its lease it would come out of turn.
func (r *reader) search(ctx context.Context) error {
	if r.reads() || !r.doubt.Swap(false) {
		return nil
	}
	r.behind.Store(true)
	var known [source.MaxClasses][]any
	r.s.held.Each(func(_ *source.Message, at entry) { known[at.class] = append(known[at.class], at.id) })
	for class := range r.s.cfg.Classes {
		args := append([]any{group, r.s.cfg.Consumer}, known[class]...)
		if err := missed.Run(ctx, r.s.db, []string{r.s.cfg.keys()[0], r.s.cfg.stream(class)}, args...).Err(); err != nil {
			r.doubt.Store(true)
			return err
		}
	}
	return nil
}

// take hands out what has arrived and is still ours. What is not any more is its second result.
func (r *reader) take(max int) (ms, over []*source.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(ms) < max {
		class := r.s.classes.Next(func(class int) bool { return len(r.ahead[class]) > 0 })
		if class < 0 {
			break
		}
		m := r.ahead[class][0]
		r.ahead[class] = r.ahead[class][1:]
		if _, ok := r.s.held.Get(m); !ok {
			if over = append(over, m); r.s.cfg.Order { // what is behind it would come before it
				over = append(over, r.ahead[class]...)
				r.ahead[class] = nil
			} else {
				r.s.held.Drop(m)
			}
			continue
		}
		ms = append(ms, m)
	}
	return ms, over
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
		r.doubt.Store(true) // its lease was over when it came
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ahead[m.Class] = append(r.ahead[m.Class], m)
}

// tick does what is due: delayed messages, leases that ended, consumers that are gone.
func (r *reader) tick(ctx context.Context, max int) error {
	now := time.Now()
	behind := r.s.cfg.Order && r.behind.Load()
	if now.Sub(r.ticked) < tickEvery && !behind {
		return nil
	}
	r.ticked = now
	lease := int64(0)
	looks := 200
	if r.s.cfg.Order {
		looks = 100_000 // all: what is overlooked would come out of turn
	}
	if now.Sub(r.reaped) >= r.reapEvery() || behind {
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
	if lease > 0 {
		r.behind.Store(false) // before it is looked: what is given back meanwhile is looked for again
	}
	answer, err := tick.Run(ctx, r.s.db, r.s.cfg.keys(), group, r.s.cfg.Consumer, lease, max, looks).Slice()
	if err != nil {
		r.behind.Store(true)
		r.doubt.Store(true)
		return err
	}
	if lease > 0 && answer[0].(int64) == 0 {
		r.behind.Store(true)
	}
	for _, g := range answer[1].([]any) {
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
		r.doubt.Store(true)
		return err
	}
	for class := range n {
		if reads[class] != nil {
			r.entries(reads[class].Val(), []int{class}, sent)
		}
	}
	r.mu.Lock()
	r.more = n == 1 && len(r.ahead[0]) >= max
	r.mu.Unlock()
	for class := n - 1; class >= 0 && n > 1 && r.count() < max; class-- {
		sent := r.s.held.Now()
		got, err := r.s.db.XReadGroup(ctx, r.args(-1, max-r.count(), class)).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			r.doubt.Store(true)
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
	return r.readsLocked()
}

func (r *reader) readsLocked() bool {
	for i := range r.lines { // not copied: conn is the read's
		if r.lines[i].wants > 0 {
			return true
		}
	}
	return false
}

// wait returns when a waiting read has ended, when it is time for a tick, or with an error.
func (r *reader) wait(ctx context.Context, max int) error {
	r.mu.Lock()
	if r.arrived() {
		r.mu.Unlock()
		return nil // since it was looked
	}
	idle := 0
	for i := range r.lines {
		if max -= r.lines[i].wants; r.lines[i].wants == 0 {
			idle++
		}
	}
	for i := range r.lines {
		if l := &r.lines[i]; l.wants == 0 && max > 0 {
			l.wants = (max + idle - 1) / idle
			max -= l.wants
			idle--
			go r.block(l, l.wants)
		}
	}
	ended := r.ended
	r.mu.Unlock()
	timer := time.NewTimer(tickEvery)
	defer timer.Stop()
	select {
	case <-ended:
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

// full says whether a read that waits is not what is wanted: there was more than the last one brought, or several classes have to share.
func (r *reader) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.more || r.s.cfg.Classes > 1
}

// connect makes the connection of a line, and returns its name at the server.
func (l *line) connect(ctx context.Context, db *redis.Client) (id int64, err error) {
	if l.conn == nil {
		conn := db.Conn()
		if l.client, err = conn.ClientID(ctx).Result(); err != nil {
			conn.Close()
			return 0, err
		}
		l.conn = conn
	}
	return l.client, nil
}

// block waits at the server for messages: of one class as many as are wanted, which brings what is there already without a question before, and one
// of each class at most where there are several. Where it brings fewer than are wanted it goes on for the others.
func (r *reader) block(l *line, max int) {
	var all []int
	for class := r.s.cfg.Classes - 1; class >= 0; class-- {
		all = append(all, class)
	}
	if len(all) > 1 {
		max = 1
	}
	for max > 0 {
		n, err := r.blockOnce(l, max, all)
		max = r.over(l, n, max, err)
		runtime.Gosched() // whoever waited for this answer comes before the next question is sent
	}
}

func (r *reader) blockOnce(l *line, max int, classes []int) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), waitFor+10*time.Second)
	defer cancel()
	id, err := l.connect(ctx, r.s.db)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	l.id = id
	r.mu.Unlock()
	got, err := l.conn.XReadGroup(ctx, r.args(waitFor, max, classes...)).Result()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	// The lease begins when the server answers, not when it was asked.
	r.entries(got, classes, r.s.held.Now())
	for _, st := range got {
		n += len(st.Messages)
	}
	if err != nil {
		l.conn.Close()
		l.conn = nil
	}
	return n, err
}

// over says that a read has ended, and returns how many the next one may bring, which has begun then; 0: none.
func (r *reader) over(l *line, n, max int, err error) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.more, l.id = n >= max, 0
	if err != nil {
		r.err = err
		r.doubt.Store(true)
	}
	r.keep()
	close(r.ended)
	r.ended = make(chan struct{})
	if l.wants = 0; n > 0 && n < max && err == nil && r.wanted && !r.s.cfg.Order {
		l.wants = max - n
	}
	return l.wants
}

// idle ends the reads that wait and returns what has arrived.
func (r *reader) idle(ctx context.Context) []*source.Message {
	r.mu.Lock()
	r.wanted = false
	r.mu.Unlock()
	for range 100 {
		r.mu.Lock()
		ended, reads := r.ended, r.readsLocked()
		var ids []int64
		for i := range r.lines {
			if id := r.lines[i].id; id != 0 {
				ids = append(ids, id)
			}
		}
		r.mu.Unlock()
		if !reads {
			break
		}
		for _, id := range ids {
			// Where the server does not allow it, the read ends by itself, soon.
			r.s.db.ClientUnblock(ctx, id)
		}
		select {
		case <-ended:
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all()
}
