package coordinator

import (
	"math"
	"sort"
	"strings"
	"time"

	"retinue/coordinator/item"
	"retinue/internal/clock"
)

// lane is the items of one key, in order of arrival. At most one is at the worker or being finished.
type lane struct {
	items  []*held
	busy   *held
	parked string // behind this dead item; "" when open
}

func (m *machine) join(it *held) {
	if it.key == "" {
		return
	}
	l := m.lanes[it.key]
	if l == nil {
		l = &lane{}
		m.lanes[it.key] = l
	}
	l.items = append(l.items, it)
}

func (m *machine) leave(it *held) {
	l := m.lanes[it.key]
	if it.key == "" || l == nil {
		return
	}
	for i, other := range l.items {
		if other == it {
			l.items = append(l.items[:i], l.items[i+1:]...)
			break
		}
	}
	if l.busy == it {
		l.busy = nil
	}
	m.sweepLane(it.key, l)
}

func (m *machine) sweepLane(key string, l *lane) {
	if len(l.items) == 0 && l.parked == "" {
		delete(m.lanes, key)
	}
}

// turn says whether it is its turn within its key.
func (m *machine) turn(now clock.Instant, it *held) bool {
	l := m.lanes[it.key]
	if it.key == "" || l == nil {
		return true
	}
	if l.busy != nil {
		return false
	}
	if m.cfg.Lane != LaneSkip {
		return l.items[0] == it
	}
	for _, other := range l.items {
		if other == it {
			return true
		}
		if other.notBefore <= now {
			return false
		}
	}
	return true
}

// blocking says whether items behind it wait until it has ended, so that it has to stay.
func (m *machine) blocking(it *held) bool { return it.key != "" && m.cfg.Lane != LaneSkip }

// bucket is a token bucket.
type bucket struct {
	tokens float64
	at     clock.Instant
}

func (b *bucket) fill(now clock.Instant, rate float64, burst int) {
	if b.at == 0 {
		b.tokens = float64(burst)
	}
	b.tokens = min(float64(burst), b.tokens+rate*now.Sub(b.at).Seconds())
	b.at = now
}

// due is when a token is there.
func (b *bucket) due(rate float64) clock.Instant {
	if b.tokens >= 1 {
		return b.at
	}
	return b.at.Add(time.Duration(math.Ceil((1 - b.tokens) / rate * float64(time.Second))))
}

// queueRate and keyRate are this coordinator's part of the rates, in calls a second. Items of one key that are all here have all of its rate.
func (m *machine) queueRate() float64 { return m.cfg.Rate * m.share }

func (m *machine) keyRate() float64 {
	if m.cfg.KeyOrder {
		return m.cfg.KeyRate
	}
	return m.cfg.KeyRate * m.share
}

// setShare changes this coordinator's part of the rates from now on.
func (m *machine) setShare(now clock.Instant, share float64) {
	if share <= 0 || share > 1 || share == m.share {
		return
	}
	m.rate.fill(now, m.queueRate(), m.cfg.Burst)
	for _, b := range m.rates {
		b.fill(now, m.keyRate(), m.cfg.KeyBurst)
	}
	m.share = share
}

// allowed says whether the rates let an item start now.
func (m *machine) allowed(now clock.Instant, it *held) bool {
	if m.cfg.Rate > 0 {
		m.rate.fill(now, m.queueRate(), m.cfg.Burst)
		if m.rate.tokens < 1 {
			return false
		}
	}
	if m.cfg.KeyRate > 0 && it.key != "" {
		b := m.rates[it.key]
		if b == nil {
			b = &bucket{}
			m.rates[it.key] = b
		}
		b.fill(now, m.keyRate(), m.cfg.KeyBurst)
		return b.tokens >= 1
	}
	return true
}

func (m *machine) spend(now clock.Instant, it *held) {
	if m.cfg.Rate > 0 {
		m.rate.tokens--
	}
	if b := m.rates[it.key]; b != nil {
		b.tokens--
	}
	const many = 10000
	if len(m.rates) > many { // those that are full again remember nothing
		for key, b := range m.rates {
			if b.fill(now, m.keyRate(), m.cfg.KeyBurst); b.tokens >= float64(m.cfg.KeyBurst) {
				delete(m.rates, key)
			}
		}
	}
}

func (m *machine) considerRates(now clock.Instant, consider func(clock.Instant)) {
	if len(m.queue) == 0 || m.cfg.Rate == 0 && m.cfg.KeyRate == 0 {
		return
	}
	if m.cfg.Rate > 0 {
		consider(m.rate.due(m.queueRate()))
	}
	for _, it := range m.queue {
		if b := m.rates[it.key]; b != nil && m.cfg.KeyRate > 0 {
			consider(b.due(m.keyRate()))
		}
	}
}

// driveStart gives items to the worker as long as it has slots.
func (m *machine) driveStart(now clock.Instant) {
	for m.slot(now) {
		items, test := m.pick(now)
		if len(items) == 0 {
			return
		}
		m.start(now, items, test)
	}
}

// slot says whether a call may begin.
func (m *machine) slot(now clock.Instant) bool {
	switch {
	case m.closed(), len(m.redo) > 0, m.finishing >= 4*m.cfg.Slots*m.cfg.Batch+64: // what is done has to be stored first
		return false
	case m.flow.failures > 0:
		return now >= m.flow.until && len(m.calls) == 0
	}
	return len(m.calls) < m.flow.limit
}

// pick chooses the items of the next call: half of the suspects of a bisection, or the most urgent.
func (m *machine) pick(now clock.Instant) ([]*held, *bisection) {
	m.resolve(now)
	for _, t := range m.tests {
		if t.testing == 0 {
			if items := m.half(now, t); len(items) > 0 {
				return items, t
			}
		}
	}
	size := m.cfg.Batch
	if m.flow.failures > 0 {
		size = 1 // a probe
	}
	var ready []*held
	for _, it := range m.queue {
		if it.test == nil && m.startable(now, it) {
			ready = append(ready, it)
		}
	}
	if len(ready) == 0 {
		return nil, nil
	}
	if m.cfg.Classes > 1 {
		sort.SliceStable(ready, func(i, j int) bool { return m.urgency(now, ready[i]) > m.urgency(now, ready[j]) })
	}
	var chosen []*held
	for _, it := range ready {
		if len(chosen) == size {
			break
		}
		if !m.startable(now, it) { // one of its key or id was chosen before, or the rate is used up
			continue
		}
		if crashes(it.env.History) > 0 { // it may be what crashes batches: it runs alone
			if len(chosen) == 0 {
				m.claim(now, it)
				return []*held{it}, nil
			}
			continue
		}
		m.claim(now, it)
		chosen = append(chosen, it)
	}
	return chosen, nil
}

// claim makes it the one of its id and key that is under way.
func (m *machine) claim(now clock.Instant, it *held) {
	m.busy[it.id] = it
	if l := m.lanes[it.key]; it.key != "" && l != nil {
		l.busy = it
	}
	m.spend(now, it)
}

func (m *machine) startable(now clock.Instant, it *held) bool {
	return it.notBefore <= now && !it.checking && m.busy[it.id] == nil && m.turn(now, it) && m.allowed(now, it)
}

// urgency orders waiting items: a class counts as much as a wait of Aging.
func (m *machine) urgency(now clock.Instant, it *held) time.Duration {
	return now.Sub(it.aged) + time.Duration(it.msg.Class)*m.cfg.Aging
}

// resolve ends waiting items that need no call: duplicates of what has ended here, and those of a parked key.
func (m *machine) resolve(now clock.Instant) {
	for i := 0; i < len(m.queue); i++ {
		it := m.queue[i]
		if it.checking || m.busy[it.id] != nil {
			continue
		}
		rec, ended := m.past.find(it.id)
		l := m.lanes[it.key]
		switch {
		case ended:
			m.unqueue(it)
			m.finish(now, it, plan{state: rec, over: true})
			i--
		case it.key != "" && l != nil && l.parked != "" && l.busy == nil && l.items[0] == it:
			m.unqueue(it)
			m.bury(now, it, item.Parked, "behind "+l.parked)
			i--
		}
	}
}

// start begins a call.
func (m *machine) start(now clock.Instant, items []*held, test *bisection) {
	m.seq++
	wall := m.wall()
	c := &call{id: m.seq, items: items, started: now, begun: now, wall: wall, deadline: now.Add(m.cfg.MaxRuntime), beat: now, test: test}
	m.calls[c.id] = c
	m.callsDue = clock.Min(m.callsDue, m.due(c))
	if test != nil {
		test.testing, test.alone = c.id, len(items) == 1
	}
	tasks := make([]*item.Task, len(items))
	for i, it := range items {
		m.unqueue(it)
		it.state, it.call, it.progress = item.Running, c, nil
		it.fence = max(uint64(wall.UnixMicro()), it.fence+1)
		tasks[i] = m.task(it, c)
	}
	m.totals.Started += uint64(len(items))
	m.emit(fxCall{c.id, tasks})
}

func (m *machine) task(it *held, c *call) *item.Task {
	first := it.msg.Published
	if first.IsZero() {
		first = c.wall
	}
	n := counted(it.env.History) + 1
	return &item.Task{Attempt: attemptName(it, n), ID: it.id, Stage: m.cfg.stage(), Key: it.named(), N: n, Max: m.cfg.Attempts, Fence: it.fence, FirstSeen: first,
		Deadline: c.wall.Add(m.cfg.MaxRuntime), ContentType: it.env.ContentType, Headers: it.env.Headers, Input: it.env.Input, Body: it.msg.Body}
}

// header finds a header whatever the case of its name.
func header(headers map[string]string, name string) string {
	if v, ok := headers[name]; ok {
		return v
	}
	for k, v := range headers {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return ""
}
