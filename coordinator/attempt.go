package coordinator

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// counted is how many attempts have failed. The history may have lost its oldest entries; the numbers stay.
func counted(history []item.Attempt) int {
	if len(history) == 0 {
		return 0
	}
	return history[len(history)-1].N
}

func crashes(history []item.Attempt) int {
	n := 0
	for _, a := range history {
		if a.Class == item.Crash {
			n++
		}
	}
	return n
}

// replayID is the id of an item that came back from the dead letters: its record is another one.
func replayID(id string, replay int) string {
	if replay == 0 {
		return id
	}
	return id + "~r" + strconv.Itoa(replay)
}

// attemptName is unique over all coordinators: the fence is the time of the claim.
func attemptName(it *held, n int) string {
	name := append(append(make([]byte, 0, 64), item.FileName(it.id)...), '.')
	name = append(strconv.AppendInt(name, int64(n), 10), '.')
	return string(strconv.AppendUint(name, it.fence, 16))
}

// called learns how a call ended.
func (m *machine) called(now clock.Instant, ev evCalled) {
	c := m.calls[ev.call]
	if c == nil {
		return
	}
	delete(m.calls, c.id)
	m.tally.add(now, c, ev.verdicts)
	m.pace += (now.Sub(c.started) - m.pace) / 8
	var failed []*held
	var whole worker.Verdict
	for i, it := range c.items {
		it.call = nil
		v := ev.verdicts[i]
		if v.Whole && suspicious(v.Kind) && !it.lost && !it.cancelled {
			whole = v
			failed = append(failed, it)
			continue
		}
		m.clear(it, v)
		m.judge(now, c, it, v)
	}
	m.judgeBatch(now, c, failed, whole, slices.ContainsFunc(ev.verdicts, func(v worker.Verdict) bool { return telling(v.Kind) }))
}

// telling kinds are of a worker that has tried.
func telling(k worker.Kind) bool {
	return k != worker.NotReady && k != worker.Infra && k != worker.Stopped
}

// suspicious kinds of failure may be due to a single item of a batch.
func suspicious(k worker.Kind) bool {
	return k == worker.Crashed || k == worker.Retry || k == worker.TimedOut || k == worker.Dead
}

// judge does what follows from a verdict.
func (m *machine) judge(now clock.Instant, c *call, it *held, v worker.Verdict) {
	it.plan = plan{output: v.Output}
	if v.Kind == worker.NotReady || v.Kind == worker.Infra {
		m.notReady(now, c, v)
	} else if v.Kind != worker.Stopped {
		m.ready()
	}
	switch {
	case it.lost && v.Kind != worker.Ack: // somebody else has it; what has been done may still count
		m.discard(it)
		m.forget(it)
	case it.cancelled:
		m.finish(now, it, plan{state: item.Cancelled, output: v.Output})
	case v.Kind == worker.Ack:
		m.succeed(now, it, v)
	case v.Kind == worker.Drop:
		m.finish(now, it, plan{state: item.Dropped, output: v.Output, reason: v.Reason})
	case v.Kind == worker.Dead:
		m.fail(now, c, it, item.Refused, v)
	case v.Kind == worker.NotReady:
		m.fail(now, c, it, item.NotReady, v)
	case v.Kind == worker.Crashed:
		m.fail(now, c, it, item.Crash, v)
	case v.Kind == worker.TimedOut:
		m.fail(now, c, it, item.Timeout, v)
	case v.Kind == worker.Retry:
		m.fail(now, c, it, item.Error, v)
	default:
		m.fail(now, c, it, item.Infra, v)
	}
}

// succeed takes what an attempt produced to the commit point.
func (m *machine) succeed(now clock.Instant, it *held, v worker.Verdict) {
	p := plan{state: item.Done, output: v.Output}
	if err := m.publishable(it, v.Output); err != nil {
		// After the commit it would be too late: a message that cannot be published would keep the item for ever.
		m.bury(now, it, item.Refused, err.Error())
		return
	}
	m.finish(now, it, p)
}

// fail notes a failed attempt, and decides whether there is another.
func (m *machine) fail(now clock.Instant, c *call, it *held, class item.Class, v worker.Verdict) {
	m.discard(it)
	a := item.Attempt{N: counted(it.env.History) + 1, Class: class, Reason: v.Reason, Stderr: v.Stderr, Node: cmp.Or(v.Node, m.cfg.Node), Alloc: cmp.Or(v.Alloc, m.cfg.Alloc), Started: c.wall, Ended: m.wall()}
	m.totals.Failed[class]++
	m.emit(fxFailed{it.id, a, class.Counted()})
	if !class.Counted() {
		m.later(now, it, max(v.RetryAfter, m.pauseFor(now, class, it)))
		return
	}
	it.env.History = append(it.env.History, a)
	it.dirty = true
	n := crashes(it.env.History)
	switch {
	case class == item.Refused:
		m.bury(now, it, class, v.Reason)
	case m.cfg.Divert != "" && (class == item.Timeout || class == item.Crash && n >= m.cfg.CrashAttempts):
		m.divert(now, it, v.Reason)
	case class == item.Crash && n >= m.cfg.CrashAttempts:
		m.bury(now, it, item.Quarantine, fmt.Sprintf("crashed %d times: %s", n, v.Reason))
	case a.N >= m.cfg.Attempts:
		m.bury(now, it, class, fmt.Sprintf("attempt %d of %d: %s", a.N, m.cfg.Attempts, v.Reason))
	case class == item.Crash:
		m.later(now, it, max(v.RetryAfter, m.jitter(m.cfg.CrashRetry.ceiling(n))))
	default:
		m.later(now, it, max(v.RetryAfter, m.jitter(m.cfg.Retry.ceiling(a.N))))
	}
}

// pauseFor is how long an item waits that has not been tried.
func (m *machine) pauseFor(now clock.Instant, class item.Class, it *held) time.Duration {
	if class == item.NotReady {
		return max(0, m.flow.until.Sub(now))
	}
	if m.closed() {
		return 0
	}
	it.failures++
	return m.jitter(m.cfg.Infra.ceiling(it.failures))
}

// later keeps an item for its next attempt, or gives it back to the broker when that is far away.
func (m *machine) later(now clock.Instant, it *held, delay time.Duration) {
	if m.busy[it.id] == it {
		delete(m.busy, it.id)
	}
	if l := m.lanes[it.key]; it.key != "" && l != nil && l.busy == it {
		l.busy = nil
	}
	crowded := len(m.queue) > 4*m.cfg.Slots*m.cfg.Batch+m.cfg.Keyed
	probe := m.flow.failures > 0 && len(m.queue) == 0 // the next call will be with this one
	switch {
	case it.lost:
		m.forget(it)
	case m.kept(it):
		it.state, it.notBefore = item.Held, now.Add(delay)
		m.queue = append(m.queue, it)
	case m.closed(), !m.blocking(it) && !probe && (delay > m.cfg.hold() || crowded):
		if it.dirty && !m.inPlace(it) {
			m.giveBack(now, it, delay)
			return
		}
		if m.inPlace(it) {
			delay = 0
		}
		it.state = item.Releasing
		m.totals.Released++
		m.emit(fxRelease{[]uint64{it.handle}, delay})
	default:
		it.state, it.notBefore = item.Held, now.Add(delay)
		m.queue = append(m.queue, it)
	}
}

// giveBack publishes a copy that carries the attempts so far, and then acknowledges the message.
func (m *machine) giveBack(now clock.Instant, it *held, delay time.Duration) {
	m.totals.Released++
	m.republish(now, it, m.cfg.Queue, "", delay)
}

// republish publishes a copy of an item that carries its attempts so far, and then acknowledges the message. The copy has an id of its own,
// which ends in mark: brokers drop what they have seen.
func (m *machine) republish(now clock.Instant, it *held, queue, mark string, delay time.Duration) {
	id := fmt.Sprintf("%s~%d%s", item.Short(it.id), counted(it.env.History), mark)
	env := it.env
	env.Fence = it.fence
	out := source.Out{ID: id, Body: it.msg.Body, Headers: env.Seal(id), Key: it.msg.Key, Class: it.msg.Class, Delay: delay}
	m.finish(now, it, plan{back: true, output: it.plan.output, outs: map[string][]source.Out{queue: {out}}})
}

// bury sends an item to the dead letters.
func (m *machine) bury(now clock.Instant, it *held, class item.Class, reason string) {
	if l := m.lanes[it.key]; it.key != "" && l != nil && m.cfg.Lane == LanePark && l.parked == "" {
		l.parked = it.id
	}
	m.finish(now, it, plan{state: item.Dead, class: class, reason: reason, output: it.plan.output})
}

// deadLetter is the message as it came, with everything that the record knows about its end.
func (m *machine) deadLetter(it *held, rec item.Record) source.Out {
	id := item.Short(it.id) + "~dead"
	env := it.env
	env.Fence, env.History, env.DeadClass, env.DeadReason, env.Queue = it.fence, rec.Attempts, rec.Class, rec.Reason, m.cfg.Queue
	return source.Out{ID: id, Body: it.msg.Body, Headers: env.Seal(id), Key: it.msg.Key}
}

// nextMessages are what the next stages get, always with the same ids.
func (m *machine) nextMessages(it *held, next []item.Message) map[string][]source.Out {
	outs := map[string][]source.Out{}
	for n, msg := range next {
		id := fmt.Sprintf("%s/%s/%d", item.Short(it.id), m.cfg.stage(), n)
		env := item.Envelope{ID: id, ContentType: msg.ContentType, Headers: m.groupHeaders(it, next, n), Input: msg.Input}
		queue := msg.Queue
		if queue == "" {
			queue = m.cfg.To
		}
		outs[queue] = append(outs[queue], source.Out{ID: id, Body: msg.Body, Headers: env.Seal(id), Key: msg.Key, Class: msg.Priority, Delay: msg.Delay})
	}
	return outs
}

// publishable says whether every message for the next stage can be published, before anything is committed.
func (m *machine) publishable(it *held, out *worker.Output) error {
	if out == nil {
		return nil
	}
	rules := source.Options{Classes: source.MaxClasses}
	for queue, outs := range m.nextMessages(it, out.Next) {
		if !queueName.MatchString(queue) || queue == m.cfg.Queue || queue == m.cfg.stage() {
			return fmt.Errorf("a message for the next stage names the queue %q", queue)
		}
		for _, o := range outs {
			if err := rules.Check(o); err != nil {
				return fmt.Errorf("message for %s: %w", queue, err)
			}
		}
	}
	return nil
}
