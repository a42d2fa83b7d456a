package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"retinue/coordinator/source"
)

// session is one connection. What was delivered over it dies with it.
type session struct {
	s    *Source
	conn *amqp.Connection
	in   *amqp.Channel // deliveries; what asks it something has asking
	out  *amqp.Channel // publications, confirmed
	dead chan struct{}

	asking   sync.Mutex // the library gives an answer to whoever waits for one first, and breaks the channel when it is another's
	settled  settled    // deliveries of in
	retakes  retakes
	verdicts chan verdicts
	returns  chan amqp.Return
	drained  chan chan map[string]bool // asks for the ids that came back

	mu        sync.Mutex
	consuming bool
	turn      int         // how often consumers were made
	first     []string    // the consumers
	second    []string    // those of the second window
	quick     time.Time   // when messages passed fast last
	resting   atomic.Bool // what was taken goes back
	readers   sync.WaitGroup
	held      map[int]time.Time             // classes whose own queue is consumed, and since when
	delays    map[string]time.Time          // queues of delays that were declared, and when
	moving    map[string]chan amqp.Delivery // copies on their way to the own queue
}

func (s *Source) newSession(ctx context.Context) (*session, error) {
	conn, err := s.cfg.dial(ctx)
	if err != nil {
		return nil, err
	}
	se := &session{
		s: s, conn: conn, dead: make(chan struct{}), settled: settled{above: map[uint64]bool{}}, verdicts: make(chan verdicts), drained: make(chan chan map[string]bool),
		held: map[int]time.Time{}, delays: map[string]time.Time{}, moving: map[string]chan amqp.Delivery{},
	}
	if err := se.setUp(); err != nil {
		conn.Close()
		return nil, err
	}
	go se.watch(conn.NotifyClose(make(chan *amqp.Error, 1)), se.in.NotifyClose(make(chan *amqp.Error, 1)), se.out.NotifyClose(make(chan *amqp.Error, 1)))
	go se.flush()
	go se.collect()
	return se, nil
}

func (se *session) setUp() (err error) {
	if err := se.s.cfg.declare(se.conn); err != nil {
		return err
	}
	if se.in, err = se.conn.Channel(); err != nil {
		return err
	}
	if se.out, err = se.conn.Channel(); err != nil {
		return err
	}
	se.returns = se.out.NotifyReturn(make(chan amqp.Return, 1))
	return se.out.Confirm(false)
}

// watch ends the session with the first of its parts.
func (se *session) watch(parts ...chan *amqp.Error) {
	select {
	case <-parts[0]:
	case <-parts[1]:
	case <-parts[2]:
	}
	close(se.dead)
	se.s.lost(se)
	se.conn.CloseDeadline(time.Now().Add(time.Second))
}

func (se *session) alive() bool {
	select {
	case <-se.dead:
		return false
	default:
		return true
	}
}

const (
	acks = 64
	// An acknowledgement that speaks for many costs the broker little more than one for one, and so does the question whether it has worked them off:
	// gathering is how long deliveries are gathered at most, and flushing how long where somebody waits for more than that, or few more would come.
	gathering = 5 * time.Millisecond
	flushing  = time.Millisecond
)

// verdicts are deliveries to acknowledge, none for whoever has sent what there is to say.
type verdicts struct {
	tags   []uint64
	answer chan error
}

// flush acknowledges deliveries, and answers those who want to know that the broker has worked off all that was sent on the incoming
// channel: an acknowledgement itself has no answer, but a channel does its methods in order. One question serves all who wait. The first after a pause goes at once.
func (se *session) flush() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var answers []chan error
	var tags []uint64
	pause, last := gathering, time.Time{}
	enough, pace := se.s.cfg.Prefetch/2, pace{}
	for {
		var due <-chan time.Time
		if len(answers) > 0 {
			timer.Reset(time.Until(last.Add(pause)))
			due = timer.C
		}
		select {
		case <-se.dead:
			return
		case next := <-se.verdicts:
			answers, tags = append(answers, next.answer), append(tags, next.tags...)
			if len(next.tags) == 0 || len(tags) >= enough || se.s.cfg.Order {
				pause = flushing
			}
			continue
		case <-due:
		}
		err := se.acknowledge(tags)
		if err == nil {
			err = se.window()
		}
		for _, answer := range answers {
			answer <- err
		}
		pause, last = gathering, time.Now()
		if rate, ok := pace.add(len(tags), last); ok && err == nil {
			_ = se.adjust(rate, last) // an error is the end of the session
		}
		enough = se.windows() * se.s.cfg.Prefetch / 2
		answers, tags = nil, nil
	}
}

// acknowledge sends as few acknowledgements as there can be.
func (se *session) acknowledge(tags []uint64) error {
	upTo, each := se.settled.split(tags)
	if upTo > 0 {
		if err := se.in.Ack(upTo, true); err != nil {
			return err
		}
	}
	for _, tag := range each {
		if err := se.in.Ack(tag, false); err != nil {
			return err
		}
	}
	se.settled.note(tags...)
	return nil
}

// settle acknowledges deliveries of the incoming channel, and returns when the broker has worked off these and all that was sent on
// that channel before. Taken: an error is the end of the session, or they will be acknowledged yet; otherwise nothing was sent.
func (se *session) settle(ctx context.Context, tags ...uint64) (taken bool, _ error) {
	v := verdicts{tags, make(chan error, 1)}
	select {
	case se.verdicts <- v:
	case <-se.dead:
		return false, source.ErrUnavailable
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case err := <-v.answer:
		return true, err
	case <-se.dead:
		return true, source.ErrUnavailable
	case <-ctx.Done():
		return true, ctx.Err()
	}
}

// barrier returns when the broker has worked off all that was sent on the incoming channel.
func (se *session) barrier(ctx context.Context) error {
	_, err := se.settle(ctx)
	return err
}

// collect gathers publications that no queue took. The broker sends them back before it confirms them, so whoever has the
// confirmation and asks here then learns of all.
func (se *session) collect() {
	back := map[string]bool{}
	for {
		select {
		case r, ok := <-se.returns:
			if !ok {
				return
			}
			back[r.MessageId] = true
		case ask := <-se.drained:
			for more := true; more; {
				select {
				case r, ok := <-se.returns:
					if more = ok; ok {
						back[r.MessageId] = true
					}
				default:
					more = false
				}
			}
			ask <- maps.Clone(back)
			clear(back)
		case <-se.dead:
			return
		}
	}
}

type publication struct {
	queue string
	msg   amqp.Publishing
}

// publish sends messages and waits until the broker has confirmed all.
func (se *session) publish(ctx context.Context, pubs ...publication) error {
	var confirms []*amqp.DeferredConfirmation
	for _, p := range pubs {
		c, err := se.out.PublishWithDeferredConfirmWithContext(ctx, "", p.queue, true, false, p.msg)
		if err != nil {
			return err
		}
		confirms = append(confirms, c)
	}
	for _, c := range confirms {
		select {
		case <-c.Done():
			if !c.Acked() {
				return fmt.Errorf("%w: the broker did not take it", source.ErrUnavailable)
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-se.dead:
			return fmt.Errorf("%w: the connection was lost", source.ErrUnavailable)
		}
	}
	ask := make(chan map[string]bool, 1)
	select {
	case se.drained <- ask:
	case <-se.dead:
		return fmt.Errorf("%w: the connection was lost", source.ErrUnavailable)
	}
	back := <-ask
	for _, p := range pubs {
		if back[p.msg.MessageId] {
			se.forget(p.queue)
			return fmt.Errorf("%w: the queue %s is gone", source.ErrUnavailable, p.queue)
		}
	}
	return nil
}

// consume starts to take messages from all classes.
func (se *session) consume() error {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.consuming {
		return nil
	}
	if err := se.window(); err != nil {
		return err
	}
	se.consuming = true
	se.resting.Store(false)
	return se.subscribe(&se.first)
}

func (se *session) consumes() bool {
	se.mu.Lock()
	defer se.mu.Unlock()
	return se.consuming
}

// rest stops taking messages. When it returns, all that were on their way have arrived.
func (se *session) rest() error {
	se.mu.Lock()
	defer se.mu.Unlock()
	if !se.consuming {
		return nil
	}
	se.consuming = false
	if err := errors.Join(se.cancel(&se.first), se.cancel(&se.second)); err != nil {
		return err
	}
	se.readers.Wait()
	se.resting.Store(true) // not before: what has just arrived goes back behind what has lain here
	return nil
}

// move sends a copy of a message to our own queue and takes it from there: a new delivery, with a new limit.
func (se *session) move(ctx context.Context, m *source.Message, msg amqp.Publishing) (amqp.Delivery, error) {
	token := source.NewID()
	msg.Headers = maps.Clone(msg.Headers)
	msg.Headers[headerMove] = token
	arrival := make(chan amqp.Delivery, 1)
	se.mu.Lock()
	se.moving[token] = arrival
	se.mu.Unlock()
	defer func() {
		se.mu.Lock()
		defer se.mu.Unlock()
		delete(se.moving, token)
	}()
	if err := se.publish(ctx, publication{se.s.cfg.heldQueue(m.Class), msg}); err != nil {
		return amqp.Delivery{}, err
	}
	select {
	case d := <-arrival:
		return d, nil
	case <-ctx.Done():
		return amqp.Delivery{}, ctx.Err()
	case <-se.dead:
		return amqp.Delivery{}, source.ErrUnavailable
	}
}

// consumeHeld declares our own queue and takes what comes there. It says for how long it has done so.
func (se *session) consumeHeld(class int) (time.Duration, error) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if since, ok := se.held[class]; ok {
		return time.Since(since), nil
	}
	ch, err := se.conn.Channel()
	if err != nil {
		return 0, err
	}
	name := se.s.cfg.heldQueue(class)
	args := se.s.cfg.waiting(class, max(se.s.cfg.Lease, time.Second))
	// Its name is this process's. It must not go while a copy may be in it: the time runs on while the broker is down.
	args["x-expires"] = (7 * 24 * time.Hour).Milliseconds()
	if _, err := ch.QueueDeclare(name, true, false, false, false, args); err != nil {
		return 0, err
	}
	in, err := ch.Consume(name, "held", false, true, false, false, nil)
	if err != nil {
		return 0, err
	}
	se.held[class] = time.Now()
	go func() {
		for d := range in {
			token, _ := d.Headers[headerMove].(string)
			se.mu.Lock()
			arrival := se.moving[token]
			se.mu.Unlock()
			if arrival == nil {
				// Nobody waits for it any more: it passes on when its time to live is over.
				d.Nack(false, false)
				continue
			}
			arrival <- d
		}
	}()
	return 0, nil
}

// headerMove names a copy on its way to the own queue.
const headerMove = "retinue-move"

var errLostConnection = errors.New("the connection was lost")
