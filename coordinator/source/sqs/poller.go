package sqs

import (
	"context"
	"slices"

	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"retinue/coordinator/source"
)

// poller asks for messages. A long poll is not given up with the Receive that started it, because what SQS sends to nobody is
// lost until its lease ends: its messages are handed out by the next Receive.
type poller struct {
	s       *Source
	classes source.Classes // whose message is handed out next
	shares  source.Classes // of what is asked for
	events  chan struct{}
	looked  time.Time // when the queue of moved messages was looked into

	mu    sync.Mutex
	ended bool                    // no long poll is started any more
	polls [source.MaxClasses]bool // a long poll waits
	ahead [source.MaxClasses][]*source.Message
	err   error
}

// waitFor is how long a long poll waits, and so how long Idle and Close may take.
const waitFor = 3 * time.Second

func newPoller(s *Source) *poller {
	c := source.Classes{N: s.cfg.Classes}
	return &poller{s: s, classes: c, shares: c, events: make(chan struct{}, 1)}
}

func (p *poller) receive(ctx context.Context, max int) ([]*source.Message, error) {
	for {
		if ms := p.take(max); len(ms) > 0 {
			return ms, nil
		}
		if every := min(p.s.cfg.Lease, 30*time.Second); time.Since(p.looked) > every {
			p.looked = time.Now()
			p.s.orphans(ctx)
		}
		parts := p.shares.Split(max)
		for class := range p.classes.N {
			if err := p.now(ctx, class, parts[class]); err != nil {
				return nil, err
			}
		}
		for class := p.classes.N - 1; class >= 0 && p.count() < max && p.classes.N > 1; class-- {
			if err := p.now(ctx, class, max-p.count()); err != nil {
				return nil, err
			}
		}
		if p.count() > 0 {
			continue
		}
		for class := range p.classes.N {
			p.long(class)
		}
		if err := p.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// wait returns when something arrived, or when it is time to look around.
func (p *poller) wait(ctx context.Context) error {
	timer := time.NewTimer(min(p.s.cfg.Lease, waitFor))
	defer timer.Stop()
	select {
	case <-p.events:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	case <-p.s.closed:
		return source.ErrClosed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.err
	p.err = nil
	return err
}

// now takes what a class has, ten at a time. A class with a long poll has nothing.
func (p *poller) now(ctx context.Context, class, n int) error {
	p.mu.Lock()
	waits := p.polls[class]
	p.mu.Unlock()
	for n > 0 && !waits {
		// Not with the caller's context: an answer that nobody reads has taken messages.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		asked := min(n, batch)
		got, due, err := p.fetch(ctx, class, asked, 0)
		cancel()
		if err != nil {
			return err
		}
		if n -= due; got < asked {
			return nil
		}
	}
	return nil
}

// long starts a long poll for one message of a class.
func (p *poller) long(class int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.polls[class] || p.ended {
		return
	}
	p.polls[class] = true
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitFor+10*time.Second)
		defer cancel()
		_, _, err := p.fetch(ctx, class, 1, waitFor)
		p.mu.Lock()
		p.polls[class] = false
		if err != nil {
			p.err = err
		}
		p.mu.Unlock()
		p.wake() // also when nothing came, or something before its time: Receive looks again
	}()
}

func (p *poller) wake() {
	select {
	case p.events <- struct{}{}:
	default:
	}
}

// fetch asks for messages and puts those that are due where take finds them. It tells how many came and how many were due.
func (p *poller) fetch(ctx context.Context, class, n int, wait time.Duration) (got, due int, err error) {
	s := p.s
	sent := s.held.Now()
	all, err := s.ask(ctx, s.urls[class], n, wait)
	if wait > 0 {
		sent = s.held.Now() // its lease began when SQS answered
	}
	if err != nil {
		return 0, 0, err
	}
	for _, raw := range all {
		m, h, at := s.message(class, s.urls[class], raw)
		if left := time.Until(at); !at.IsZero() && left > 0 {
			p.early(ctx, m, h, left)
			continue
		}
		due++
		if s.add(m, h, sent) {
			p.offer(m)
		}
	}
	return len(all), due, nil
}

// ask is one request for messages.
func (s *Source) ask(ctx context.Context, url string, n int, wait time.Duration) ([]types.Message, error) {
	out, err := s.api.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &url, MaxNumberOfMessages: int32(n), WaitTimeSeconds: int32(wait / time.Second), VisibilityTimeout: seconds(s.cfg.Lease),
		MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll},
	})
	if err != nil {
		return nil, err
	}
	return out.Messages, nil
}

// early hides a message that came before its time again. What is left below a second, which is SQS's grain, is waited for here.
func (p *poller) early(ctx context.Context, m *source.Message, h *hold, left time.Duration) {
	s := p.s
	if left >= time.Second {
		_, _ = s.api.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{
			QueueUrl: &h.url, ReceiptHandle: &h.receipt, VisibilityTimeout: int32(min(left, maxDelay) / time.Second),
		}) // if this fails it comes again when the lease ends, and is looked at again
		return
	}
	_, err := s.api.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{
		QueueUrl: &h.url, ReceiptHandle: &h.receipt, VisibilityTimeout: seconds(left + s.cfg.Lease),
	})
	if err != nil {
		return
	}
	time.AfterFunc(left, func() {
		if s.add(m, h, s.held.Now()) {
			p.offer(m)
		}
	})
}

func (p *poller) offer(m *source.Message) {
	p.mu.Lock()
	p.ahead[m.Class] = append(p.ahead[m.Class], m)
	p.mu.Unlock()
	p.wake()
}

// take hands out what has arrived and is still ours.
func (p *poller) take(max int) []*source.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ms []*source.Message
	for len(ms) < max {
		class := p.classes.Next(func(class int) bool { return len(p.ahead[class]) > 0 })
		if class < 0 {
			break
		}
		m := p.ahead[class][0]
		p.ahead[class] = p.ahead[class][1:]
		if _, ok := p.s.held.Get(m); !ok {
			p.s.held.Drop(m)
			continue
		}
		ms = append(ms, m)
	}
	return ms
}

func (p *poller) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, ms := range p.ahead {
		n += len(ms)
	}
	return n
}

func (p *poller) waiting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.polls[:], true)
}

// end lets no new long poll start.
func (p *poller) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
}

// idle waits for the long polls to end and returns what has arrived.
func (p *poller) idle(ctx context.Context) []*source.Message {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for p.waiting() && ctx.Err() == nil {
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var back []*source.Message
	for class := range p.ahead {
		back = append(back, p.ahead[class]...)
		p.ahead[class] = nil
	}
	return back
}
