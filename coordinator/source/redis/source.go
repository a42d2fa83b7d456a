package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
	"retinue/internal/clock"
)

// Source is one consumer and producer of a queue.
type Source struct {
	cfg     Config
	db      *redis.Client
	held    *ledger.Ledger[entry]
	read    *reader
	stamps  ledger.Stamps
	classes source.Classes

	once   sync.Once
	closed chan struct{}
}

// entry is where a message lies.
type entry struct {
	class int
	id    string
}

var _ source.Source = (*Source)(nil)

// Open connects and declares the queue.
func Open(ctx context.Context, c Config) (*Source, error) {
	if err := c.Complete(); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	db, err := c.connect()
	if err == nil {
		if err = c.declare(ctx, db); err != nil {
			db.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open queue %s on Redis: %w", c.Queue, err)
	}
	s := &Source{cfg: c, db: db, held: ledger.New[entry](c.Lease), classes: source.Classes{N: c.Classes}, closed: make(chan struct{})}
	s.read = newReader(s)
	return s, nil
}

// Receive implements source.Source.
func (s *Source) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	ms, err := s.read.receive(ctx, max)
	if closed := s.check(ctx); err != nil && closed != nil {
		return nil, closed
	}
	if err == nil {
		return ms, nil
	}
	if strings.HasPrefix(err.Error(), "NOGROUP") {
		// The server lost its data, or somebody removed the queue.
		if again := s.cfg.declare(ctx, s.db); again == nil {
			err = fmt.Errorf("%w: %w", source.ErrUnavailable, err)
		}
	}
	return nil, fmt.Errorf("receive from %s: %w", s.cfg.Queue, explain(err))
}

// message makes a message of an entry; nil where the lease is over before it began.
func (s *Source) message(at entry, fields map[string]string, deliveries int, sent clock.Instant) *source.Message {
	m := &source.Message{ID: "redis-" + at.id, Body: []byte(fields["body"]), Deliveries: deliveries}
	if ms, err := strconv.ParseInt(at.id[:strings.IndexByte(at.id+"-", '-')], 10, 64); err == nil {
		m.Published = time.UnixMilli(ms)
	}
	delete(fields, "body")
	if body, ok := fields[escapedBody]; ok {
		delete(fields, escapedBody)
		fields["body"] = body
	}
	if count, ok := fields["retinue-count"]; ok {
		n, _ := strconv.Atoi(count)
		m.Deliveries += n
	}
	if origin, ok := fields["retinue-origin"]; ok {
		m.ID = "redis-" + origin
	}
	ledger.Read(m, fields)
	m.Class = at.class
	if !s.held.Add(m, at, sent) {
		return nil
	}
	return m
}

// escapedBody is the field of a header that is called as the body's field.
const escapedBody = "retinue-app-body"

// Extend implements source.Source.
func (s *Source) Extend(ctx context.Context, ms ...*source.Message) error {
	sent := s.held.Now()
	return s.each(ctx, "extend", extend, nil, ms, func(m *source.Message) { s.held.Extend(m, sent) })
}

// Ack implements source.Source.
func (s *Source) Ack(ctx context.Context, ms ...*source.Message) error {
	return s.each(ctx, "ack", ack, nil, ms, s.held.Drop)
}

// Release implements source.Source.
func (s *Source) Release(ctx context.Context, delay time.Duration, ms ...*source.Message) error {
	if delay <= 0 && s.cfg.Order {
		defer s.read.behind.Store(true)
		return s.each(ctx, "release", back, nil, ms, s.held.Drop)
	}
	return s.each(ctx, "release", release, &delay, ms, s.held.Drop)
}

// each runs a script over the messages of each class. A delay makes two more arguments.
func (s *Source) each(ctx context.Context, verb string, script *redis.Script, delay *time.Duration, ms []*source.Message, done func(*source.Message)) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	failed := source.Failures{}
	var byClass [source.MaxClasses][]*source.Message
	for _, m := range ms {
		at, ok := s.held.Get(m)
		if !ok {
			failed[m] = fmt.Errorf("%s: %w", verb, source.ErrLost)
			continue
		}
		byClass[at.class] = append(byClass[at.class], m)
	}
	for class, ms := range byClass {
		// A script blocks the server while it runs: not too many at once.
		for len(ms) > 0 {
			n := min(len(ms), 200)
			args := []any{group, s.cfg.Consumer}
			if delay != nil {
				args = append(args, roundUp(*delay), class)
			}
			s.run(ctx, verb, script, class, args, ms[:n], done, failed)
			ms = ms[n:]
		}
	}
	return failed.Err()
}

func (s *Source) run(ctx context.Context, verb string, script *redis.Script, class int, args []any, ms []*source.Message, done func(*source.Message), failed source.Failures) {
	var sent []*source.Message
	for _, m := range ms {
		if at, ok := s.held.Get(m); ok {
			args = append(args, at.id)
			sent = append(sent, m)
		} else {
			failed[m] = fmt.Errorf("%s: %w", verb, source.ErrLost)
		}
	}
	if len(sent) == 0 {
		return
	}
	ours, err := script.Run(ctx, s.db, []string{s.cfg.keys()[0], s.cfg.stream(class)}, args...).Int64Slice()
	for i, m := range sent {
		switch {
		case err != nil:
			failed[m] = fmt.Errorf("%s: %w", verb, explain(err))
		case i >= len(ours) || ours[i] == 0:
			s.held.Drop(m)
			failed[m] = fmt.Errorf("%s: %w", verb, source.ErrLost)
		default:
			done(m)
		}
	}
}

// roundUp is a delay in milliseconds, never shorter.
func roundUp(d time.Duration) int64 { return (d + time.Millisecond - 1).Milliseconds() }

// Publish implements source.Source.
func (s *Source) Publish(ctx context.Context, outs ...source.Out) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	for _, out := range outs {
		if err := s.cfg.Check(out); err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Queue, err)
		}
		if len(out.Body) > maxBody {
			return fmt.Errorf("publish %s to %s: %w: %d bytes, Redis takes %d", out.ID, s.cfg.Queue, source.ErrTooLarge, len(out.Body), maxBody)
		}
	}
	for len(outs) > 0 {
		n := min(len(outs), 100)
		err := s.publish(ctx, outs[:n])
		if err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
			// The server started anew and forgot the script. What it did of the pipeline is not done twice: the ids are known.
			if err = publish.Load(ctx, s.db).Err(); err == nil {
				err = s.publish(ctx, outs[:n])
			}
		}
		if err != nil {
			return fmt.Errorf("publish to %s: %w", s.cfg.Queue, explain(err))
		}
		outs = outs[n:]
	}
	return nil
}

func (s *Source) publish(ctx context.Context, outs []source.Out) error {
	_, err := s.db.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, out := range outs {
			args := []any{dedupeWindow.Milliseconds(), roundUp(out.Delay), out.Class, "body", out.Body}
			delay := out.Delay
			out.Delay = 0 // by the server's clock, not by a header
			for name, value := range ledger.Headers(out, s.stamps.Next()) {
				if name == "body" {
					name = escapedBody
				}
				args = append(args, name, value)
			}
			out.Delay = delay
			run := publish.EvalSha
			if s.cfg.Order && i == 0 {
				// With its text, so that a server which forgot the script takes all or none: it could learn it from somebody else
				// half way, and what it had refused before would come behind.
				run = publish.Eval
			}
			run(ctx, p, []string{s.cfg.keys()[0], s.cfg.stream(out.Class), s.cfg.prefix() + "id:" + out.ID}, args...)
		}
		return nil
	})
	return err
}

// Depth implements source.Source.
func (s *Source) Depth(ctx context.Context) (source.Depth, error) {
	if err := s.check(ctx); err != nil {
		return source.Depth{}, err
	}
	r, err := depth.Run(ctx, s.db, s.cfg.keys(), group, nobody).Slice()
	if err != nil {
		return source.Depth{}, fmt.Errorf("depth of %s: %w", s.cfg.Queue, explain(err))
	}
	d := source.Depth{Ready: r[0].(int64), Delayed: r[1].(int64), InFlight: r[2].(int64)}
	now := r[3].(int64)
	for _, at := range r[4].([]any) {
		text, _, _ := strings.Cut(at.(string), "-")
		if ms, err := strconv.ParseInt(text, 10, 64); err == nil {
			d.Oldest = max(d.Oldest, time.Duration(now-ms)*time.Millisecond)
		}
	}
	return d, nil
}

// Idle implements source.Source.
func (s *Source) Idle(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	if err := s.giveBack(ctx, s.read.idle(ctx)); err != nil {
		return fmt.Errorf("give back to %s: %w", s.cfg.Queue, err)
	}
	return nil
}

// giveBack releases messages, as far as they are ours. In an ordered queue also those whose lease is over here: the server may see
// the end a moment later, and hand out what is behind them.
func (s *Source) giveBack(ctx context.Context, ms []*source.Message) error {
	var err error
	if !s.cfg.Order {
		if len(ms) > 0 {
			err = s.Release(ctx, 0, ms...)
		}
	} else {
		s.read.behind.Store(true)
		var byClass [source.MaxClasses][]any
		for _, m := range ms {
			if at, ok := s.held.Remove(m); ok {
				byClass[at.class] = append(byClass[at.class], at.id)
			}
		}
		for class, ids := range byClass {
			for part := range slices.Chunk(ids, 200) {
				args := append([]any{group, s.cfg.Consumer}, part...)
				err = errors.Join(err, explain(back.Run(ctx, s.db, []string{s.cfg.keys()[0], s.cfg.stream(class)}, args...).Err()))
			}
		}
	}
	if errors.Is(err, source.ErrLost) {
		return nil
	}
	return err
}

// Caps implements source.Source.
func (s *Source) Caps() source.Caps {
	return source.Caps{
		Broker: "redis", MaxBody: maxBody, Dedupe: dedupeWindow, Order: true, Deliveries: true, Redelivery: s.cfg.Lease + s.read.reapEvery() + tickEvery,
		DelayGrain: 2 * tickEvery, Counts: source.Counts{InFlight: true, Delayed: true, Oldest: true},
	}
}

// Close implements source.Source.
func (s *Source) Close(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s.read.idle(ctx)
		var all []*source.Message
		s.held.Each(func(m *source.Message, _ entry) { all = append(all, m) })
		err = s.giveBack(ctx, all)
		close(s.closed)
		s.db.Close()
		if err != nil {
			err = fmt.Errorf("close queue %s: %w", s.cfg.Queue, err)
		}
	})
	return err
}

func (s *Source) check(ctx context.Context) error {
	select {
	case <-s.closed:
		return source.ErrClosed
	default:
		return ctx.Err()
	}
}
