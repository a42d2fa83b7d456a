package main

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// incarnation is one process of an application. Its number is a counter of the supervisor: process ids are used again within minutes
// when so many processes come and go.
type incarnation struct {
	slot   *slot
	run    int
	killed atomic.Int64 // boot clock, just before SIGKILL; 0 while it lives
}

func (in *incarnation) String() string { return fmt.Sprintf("%s.%d", in.slot.name, in.run) }

// belief is a time in which an application was entitled to act: from when it knew of its grant until the deadline. A loss that it is
// told of early does not shorten it here, because an application that misses the news would act on; only its own word, given before
// it resigns, and its death do.
type belief struct {
	who    *incarnation
	token  uint64
	called int64 // when it asked
	from   int64
	until  int64
	ended  int64 // by its own word
}

// end is when the belief was over.
func (b *belief) end() int64 {
	end := b.until
	if b.ended != 0 {
		end = min(end, b.ended)
	}
	if killed := b.who.killed.Load(); killed != 0 {
		end = min(end, killed)
	}
	return end
}

func (b *belief) String() string {
	return fmt.Sprintf("%s led with token %d from %.4f to %.4f", b.who, b.token, seconds(b.from), seconds(b.end()))
}

func seconds(ns int64) float64 { return float64(ns) / 1e9 }

// operation is one operation on a fenced register.
type operation struct {
	who      *incarnation
	read     bool
	token    uint64
	call     int64
	ret      int64 // 0: the application never knew
	at       int64 // when the register took it
	accepted bool
	pos      int // length after an accepted write; what a read saw
	high     uint64
}

// notice is news of a loss, or its absence.
type notice struct {
	who      *incarnation
	token    uint64
	deadline int64
	at       int64
	silent   bool
	text     string
}

// verification is what an elector said about a token.
type verification struct {
	who      *incarnation
	token    uint64
	call, at int64
	current  bool
}

// operatorAct is what an operator did to an election's key or its holder's session. From and to enclose the moment; without an answer
// it may have happened at any time after from, or not at all.
type operatorAct struct {
	class      Class
	from, to   int64
	unanswered bool
	index      uint64 // of a deleted key: it was deleted between this index of the key and its next one
	victim     string // of an invalidated session: the elector that it belonged to
}

// election is one election with its history and its fenced register.
type election struct {
	group *group
	name  string

	mu       sync.Mutex
	beliefs  []*belief
	ops      []*operation
	byID     map[string]*operation
	notices  []notice
	verified []verification
	operator []operatorAct
	resigned map[bool]int
	sealed   bool // the campaign is over: what still arrives is no part of the history

	// The register: a log that takes no token below the highest it has seen.
	high uint64
	log  int
}

func newElection(g *group, name string) *election {
	return &election{group: g, name: name, byID: map[string]*operation{}, resigned: map[bool]int{}}
}

// note changes the history, unless it is over.
func (e *election) note(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.sealed {
		change()
	}
}

func (e *election) seal() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sealed = true
}

func (e *election) key() string { return "retinue/elections/" + e.group.name + "/" + e.name }

// believed takes in a belief, or the prolongation of one.
func (e *election) believed(who *incarnation, m message) {
	e.note(func() { e.believe(who, m) })
}

func (e *election) believe(who *incarnation, m message) {
	for i := len(e.beliefs) - 1; i >= 0; i-- {
		b := e.beliefs[i]
		if b.who == who {
			if b.token == m.Token && m.At <= b.until && b.ended == 0 {
				b.until = max(b.until, m.Until)
				return
			}
			break
		}
	}
	e.beliefs = append(e.beliefs, &belief{who: who, token: m.Token, called: m.Call, from: m.At, until: m.Until})
}

func (e *election) ended(who *incarnation, m message) {
	e.note(func() {
		for _, b := range e.beliefs {
			if b.who == who && b.token == m.Token && b.ended == 0 {
				b.ended = m.At
			}
		}
	})
}

// leader is who leads at the moment.
func (e *election) leader() *belief {
	now := bootNow()
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := len(e.beliefs) - 1; i >= 0 && i >= len(e.beliefs)-8; i-- {
		if b := e.beliefs[i]; b.from <= now && now < b.end() {
			return b
		}
	}
	return nil
}

// highest is the highest token that the register has seen.
func (e *election) highest() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.high
}

// operate is the register at work. It is as simple as a fenced resource can be.
func (e *election) operate(op *operation) {
	e.note(func() { e.apply(op) })
}

func (e *election) apply(op *operation) {
	op.at = bootNow()
	switch {
	case op.read:
		op.accepted = true
	case op.token >= e.high:
		e.high, op.accepted = op.token, true
		e.log++
	}
	op.pos, op.high = e.log, e.high
	e.ops = append(e.ops, op)
}

func (e *election) returned(who *incarnation, m message) {
	e.note(func() {
		id := opID(who, m.ID)
		if op := e.byID[id]; op != nil {
			op.ret = m.At
			delete(e.byID, id)
		}
	})
}

func opID(who *incarnation, id int64) string { return fmt.Sprint(who, "/", id) }

// acted notes what an operator did.
func (e *election) acted(act operatorAct) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.operator = append(e.operator, act)
}

// ordered are the beliefs that are some time long, by their beginning.
func (e *election) ordered() []*belief {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*belief
	for _, b := range e.beliefs {
		if b.end() > b.from {
			copied := *b
			out = append(out, &copied)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].from < out[j].from })
	return out
}

// vacancy is a time in which nobody was entitled to act.
type vacancy struct {
	from, to int64
	last     *belief // whose end it began with
	disputed bool    // another had led with a higher token meanwhile: an excused overlap
}

// resigned says whether the last leader ended it by its own word.
func (v vacancy) resigned() bool { return v.last.ended != 0 && v.last.end() == v.last.ended }

func (v vacancy) length() time.Duration { return time.Duration(v.to - v.from) }

// vacancies are the gaps between beliefs.
func vacancies(beliefs []*belief) (out []vacancy) {
	var last *belief
	var top uint64
	for _, b := range beliefs {
		if last != nil && b.from > last.end() {
			out = append(out, vacancy{last.end(), b.from, last, last.token < top})
		}
		top = max(top, b.token)
		if last == nil || b.end() > last.end() {
			last = b
		}
	}
	return out
}
