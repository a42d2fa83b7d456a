package main

import (
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// hub is where applications report to, and where the fenced registers are. Some requests to a register are late, as they would be on
// a network: that is what fencing is for.
type hub struct {
	world  *world
	listen net.Listener

	mu    sync.Mutex
	rng   *rand.Rand
	lines map[*incarnation]*line
	live  map[*slot]*incarnation
	late  int
}

func newHub(w *world, path string, seed uint64) (*hub, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	h := &hub{world: w, listen: l, rng: rand.New(rand.NewPCG(seed, 1)), lines: map[*incarnation]*line{}, live: map[*slot]*incarnation{}}
	go h.serve()
	return h, nil
}

func (h *hub) serve() {
	for {
		conn, err := h.listen.Accept()
		if err != nil {
			return
		}
		go h.attend(newLine(conn))
	}
}

func (h *hub) close() {
	h.listen.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lines {
		l.conn.Close()
	}
	for _, g := range h.world.groups {
		for _, e := range g.elections {
			e.seal()
		}
	}
}

// attend reads what one application says until it is gone.
func (h *hub) attend(l *line) {
	defer l.conn.Close()
	hello, ok := l.receive()
	s := h.world.slot(hello.Slot)
	if !ok || s == nil {
		return
	}
	who := s.incarnate(hello.Run)
	h.mu.Lock()
	h.lines[who] = l
	h.live[s] = who
	h.mu.Unlock()
	for {
		m, ok := l.receive()
		if !ok {
			break
		}
		if m.Kind == kindLate {
			h.world.late.note(who, m.At, time.Duration(m.Until))
		} else if e := s.group.election(m.Election); e != nil {
			h.take(l, who, e, m)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.lines, who)
	if h.live[s] == who {
		delete(h.live, s)
	}
}

func (h *hub) take(l *line, who *incarnation, e *election, m message) {
	switch m.Kind {
	case kindBelief:
		e.believed(who, m)
	case kindEnd:
		e.ended(who, m)
	case kindAppend, kindRead:
		op := &operation{who: who, read: m.Kind == kindRead, token: m.Token, call: m.Call}
		e.note(func() { e.byID[opID(who, m.ID)] = op })
		answer := func() {
			e.operate(op)
			_ = l.send(message{Kind: kindOutcome, ID: m.ID}) // an application that is gone never knows
		}
		if d := h.delay(e.group.lease); d > 0 {
			time.AfterFunc(d, answer)
			return
		}
		answer()
	case kindReturn:
		e.returned(who, m)
	case kindLoss, kindSilent:
		e.note(func() {
			e.notices = append(e.notices, notice{who, m.Token, m.Until, m.At, m.Kind == kindSilent, m.Text})
		})
	case kindVerify:
		e.note(func() { e.verified = append(e.verified, verification{who, m.Token, m.Call, m.At, m.OK}) })
	case kindResign:
		e.note(func() { e.resigned[m.OK]++ })
	}
}

// delay is for how long a request is on its way: mostly not at all, now and then longer than a lease.
func (h *hub) delay(lease time.Duration) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rng.IntN(25) != 0 {
		return 0
	}
	h.late++
	return time.Duration(h.rng.Float64() * 2.5 * float64(lease))
}

// hears says whether an application of the slot is there.
func (h *hub) hears(s *slot) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.live[s] != nil
}

// ask makes an application resign.
func (h *hub) ask(s *slot, election, to string) bool {
	h.mu.Lock()
	l := h.lines[h.live[s]]
	h.mu.Unlock()
	return l != nil && l.send(message{Kind: kindResign, Election: election, Text: to}) == nil
}
