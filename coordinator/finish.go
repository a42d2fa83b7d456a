package coordinator

import (
	"errors"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// plan is how an item leaves: its record is committed, what follows from the record that counts is published, and then the message
// is acknowledged. In this order; each step only after the one before is known to be done.
type plan struct {
	state  item.State // that is offered to the commit point
	class  item.Class // of a dead letter
	reason string
	output *worker.Output // discarded when the commit is decided
	record *item.Record   // that counts
	outs   map[string][]source.Out
	part   *GroupPart // of a group that may be complete with it
	back   bool       // it is no end: a copy goes back to the queue
	over   bool       // it has ended here before; only the ack is left
}

func (m *machine) finishes(it *held) bool {
	return it.state == item.Committing || it.state == item.Publishing || it.state == item.Acking
}

// finish starts a plan.
func (m *machine) finish(now clock.Instant, it *held, p plan) {
	m.unqueue(it)
	m.acquit(it)
	m.busy[it.id] = it
	if l := m.lanes[it.key]; it.key != "" && l != nil && l.busy == nil {
		l.busy = it
	}
	if !m.finishes(it) {
		m.finishing++
	}
	it.plan, it.failures, it.checking = p, 0, false
	switch {
	case p.over:
		m.acknowledge(it)
	case p.back:
		m.publish(it)
	case m.cfg.Record:
		it.state = item.Committing
		m.offer(it)
	default:
		it.state = item.Committing
		m.settle(now, it, m.record(it))
	}
}

// record is what this side offers to the commit point.
func (m *machine) record(it *held) item.Record {
	p := it.plan
	n := counted(it.env.History)
	if p.state == item.Done || p.state == item.Dropped {
		n++
	}
	rec := item.Record{ID: it.id, Stage: m.cfg.stage(), State: p.state, Class: p.class, Attempt: attemptName(it, n), N: n, Fence: it.fence, Node: m.cfg.Node, Ended: m.wall(), Reason: p.reason}
	if p.state == item.Dead {
		rec.Attempts = it.env.History
	}
	if it.member != nil {
		rec.Group = it.member.group
	}
	if p.state == item.Done && p.output != nil {
		rec.Result, rec.ResultType, rec.Next, rec.Files = p.output.Result, p.output.ResultType, p.output.Next, p.output.Files
	}
	return rec
}

// offer sends the record to the commit point. A repeated offer is the same record.
func (m *machine) offer(it *held) {
	if it.plan.record == nil {
		rec := m.record(it)
		it.plan.record = &rec
	}
	out := ""
	if it.plan.state == item.Done && it.plan.output != nil {
		out = it.plan.output.Out
	}
	m.emit(fxCommit{it.handle, *it.plan.record, out})
}

// committed learns which record counts.
func (m *machine) committed(now clock.Instant, ev evCommitted) {
	it := m.items[ev.handle]
	if it == nil || it.state != item.Committing {
		return
	}
	var large commit.ErrTooLarge
	switch {
	case errors.As(ev.err, &large) && it.plan.state == item.Done: // a larger journal will not come by waiting
		m.bury(now, it, item.Refused, large.Error())
	case ev.err != nil:
		m.failedInfra(now, it, ev.err)
	default:
		if ev.record.Attempt != it.plan.record.Attempt {
			m.totals.Late++
		}
		m.settle(now, it, ev.record)
	}
}

// settle goes on with the record that counts, whoever made it.
func (m *machine) settle(now clock.Instant, it *held, rec item.Record) {
	if it.state == item.Held { // found before the attempt
		m.finishing++
		m.busy[it.id] = it
		if l := m.lanes[it.key]; it.key != "" && l != nil && l.busy == nil {
			l.busy = it
		}
	}
	m.discard(it)
	it.failures = 0
	it.plan = plan{state: rec.State, record: &rec}
	switch rec.State {
	case item.Done:
		it.plan.outs = m.nextMessages(it, rec.Next)
		m.joinGroup(it, rec)
	case item.Dropped:
		m.joinGroup(it, rec)
	case item.Dead:
		it.plan.outs = map[string][]source.Out{m.cfg.Dead: {m.deadLetter(it, rec)}}
	}
	m.publish(it)
}

// publish sends the messages that follow, if there are any.
func (m *machine) publish(it *held) {
	if len(it.plan.outs) == 0 && it.plan.part == nil {
		m.acknowledge(it)
		return
	}
	it.state = item.Publishing
	m.emit(m.publication(it))
}

func (m *machine) publication(it *held) fxPublish {
	fx := fxPublish{handle: it.handle, outs: it.plan.outs, part: it.plan.part}
	if fx.part != nil {
		fx.member = *it.member
	}
	return fx
}

// joinGroup makes an item a committed part of its group. A replay of a dead letter is the same part.
func (m *machine) joinGroup(it *held, rec item.Record) {
	if it.member != nil {
		part := it.member.part(it.env.ID, rec)
		it.plan.part = &part
	}
}

func (m *machine) published(now clock.Instant, ev evPublished) {
	it := m.items[ev.handle]
	switch {
	case it == nil || it.state != item.Publishing:
	case ev.err != nil:
		m.failedInfra(now, it, ev.err)
	default:
		m.acknowledge(it)
	}
}

// acknowledge is the last step. Everything that must not be lost is stored by now.
func (m *machine) acknowledge(it *held) {
	it.failures = 0
	it.state = item.Acking
	m.discard(it)
	if it.plan.record != nil && !it.plan.over {
		m.totals.Ended[it.plan.record.State]++
		m.past.add(it.id, it.plan.record.State)
		m.emit(fxEnded{*it.plan.record})
	}
	m.acks = append(m.acks, it.handle)
}

// driveAck sends all acks that have come together, as many batches at a time as the broker has a use for.
func (m *machine) driveAck() {
	if m.acking >= max(1, m.cfg.Acks) || len(m.acks) == 0 {
		return
	}
	m.acking++
	m.emit(fxAck{m.acks})
	m.acks = nil
}

func (m *machine) acked(now clock.Instant, ev evAcked) {
	m.acking--
	for _, handle := range ev.handles {
		it := m.items[handle]
		if it == nil || it.state != item.Acking {
			continue
		}
		if err := ev.errs[handle]; err != nil && !lost(err) {
			m.failedInfra(now, it, err)
			continue
		}
		m.finishing--
		m.forget(it) // even when the lease was lost: whoever gets it next finds the record
	}
}

func lost(err error) bool { return errors.Is(err, source.ErrLost) || errors.Is(err, source.ErrClosed) }

// failedInfra repeats a step later. What was achieved stays: nothing is executed again.
func (m *machine) failedInfra(now clock.Instant, it *held, err error) {
	if it.state == item.Releasing {
		return
	}
	m.trouble = err.Error()
	it.failures++
	m.totals.Failed[item.Infra]++
	m.redo[it] = now.Add(m.jitter(m.cfg.Infra.ceiling(it.failures)))
}

// driveRedo repeats the steps that failed.
func (m *machine) driveRedo(now clock.Instant) {
	for it, at := range m.redo {
		if now < at {
			continue
		}
		delete(m.redo, it)
		switch it.state {
		case item.Held:
			m.emit(fxCheck{it.handle, it.id})
		case item.Committing:
			m.offer(it)
		case item.Publishing:
			m.emit(m.publication(it))
		case item.Acking:
			m.acks = append(m.acks, it.handle)
		}
	}
}

// discard hands an attempt's leftovers over to be removed.
func (m *machine) discard(it *held) {
	if it.plan.output != nil {
		m.emit(fxDiscard{it.plan.output})
		it.plan.output = nil
	}
}

// past remembers how the last items ended here, for duplicates that come while the broker still has them.
type past struct {
	states map[string]item.State
	order  []string
	oldest int
}

const remembered = 4096

func (p *past) add(id string, state item.State) {
	if p.states == nil {
		p.states = map[string]item.State{}
	}
	if _, ok := p.states[id]; ok {
		return
	}
	if len(p.order) < remembered {
		p.order = append(p.order, id)
	} else {
		delete(p.states, p.order[p.oldest])
		p.order[p.oldest] = id
		p.oldest = (p.oldest + 1) % remembered
	}
	p.states[id] = state
}

func (p *past) find(id string) (item.State, bool) {
	s, ok := p.states[id]
	return s, ok
}
