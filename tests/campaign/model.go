package main

import (
	"fmt"
	"math"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// lockInput is an operation on the mutex that an election is.
type lockInput struct {
	acquire bool
	who     string
	token   uint64
}

type lockState struct {
	holder string
	token  uint64 // the highest so far
}

// mutexModel: a free lock can be acquired with a token above all before; the holder can release it.
var mutexModel = porcupine.Model{
	Init: func() any { return lockState{} },
	Step: func(state, input, _ any) (bool, any) {
		s, in := state.(lockState), input.(lockInput)
		if in.acquire {
			return s.holder == "" && in.token >= s.token, lockState{in.who, in.token}
		}
		return s.holder == in.who, lockState{"", s.token}
	},
	Equal: func(a, b any) bool { return a == b },
}

// registerInput is an operation on a fenced register, registerOutput what came of it.
type registerInput struct {
	read  bool
	token uint64
}

type registerOutput struct {
	unknown  bool
	accepted bool
	pos      int
	high     uint64
}

type registerState struct {
	pos  int
	high uint64
}

// registerModel: a log that takes no token below the highest it has seen. What an application never learned may have happened or not.
func registerModel(init registerState) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return init },
		Step: func(state, input, output any) (bool, any) {
			s, in, out := state.(registerState), input.(registerInput), output.(registerOutput)
			if in.read {
				return out.unknown || out.pos == s.pos && out.high == s.high, s
			}
			next := s
			if in.token >= s.high {
				next = registerState{s.pos + 1, in.token}
			}
			accepted := in.token >= s.high
			return out.unknown || out.accepted == accepted && out.pos == next.pos, next
		},
		Equal: func(a, b any) bool { return a == b },
	}
}

// modelPatience bounds one check. One that does not end is counted, and is no finding.
const modelPatience = 20 * time.Second

func (c *campaign) checkModels(e *election, beliefs []*belief) {
	verdict := func(invariant int, what string, model porcupine.Model, history []porcupine.Operation) {
		if len(history) == 0 {
			return
		}
		c.judge.checked(invariant, len(history))
		switch porcupine.CheckOperationsTimeout(model, history, modelPatience) {
		case porcupine.Illegal:
			c.judge.violation(invariant, e.group.name, e.name, fmt.Sprintf("the history of %d operations on the %s is not linearizable", len(history), what))
		case porcupine.Unknown:
			c.judge.exclude("a " + what + " history that could not be decided in " + modelPatience.String())
		}
	}
	for _, part := range lockHistories(e, beliefs) {
		verdict(1, "mutex", mutexModel, part)
	}
	for _, w := range registerHistories(e.ops) {
		verdict(3, "register", registerModel(w.init), w.history)
	}
}

// lockHistories are the acquisitions and releases of an election. Where an operator's act excuses two leaders at once, or that an
// application heard of its leadership after its successor did, the history is cut: what comes after begins anew.
func lockHistories(e *election, beliefs []*belief) (out [][]porcupine.Operation) {
	var part []porcupine.Operation
	var held, top *belief
	end := int64(0)
	for i, b := range beliefs {
		switch {
		case i == 0:
		case b.from < end && held.who == b.who: // one process, a new term at once: nobody else could see the lock free
			part[len(part)-1].Call, part[len(part)-1].Return = b.from, b.from
		case b.from < end && excused(e, held, b) != "", b.token < top.token && excused(e, top, b) != "":
			out, part, top = append(out, part), nil, nil
		}
		if top == nil || b.token > top.token {
			top = b
		}
		client := int(b.token)
		call := min(b.from, max(b.called, end))
		who := fmt.Sprint(b.who, "/", b.token, "/", i)
		part = append(part,
			porcupine.Operation{ClientId: client, Input: lockInput{true, who, b.token}, Call: call, Return: b.from},
			porcupine.Operation{ClientId: client, Input: lockInput{false, who, b.token}, Call: b.end(), Return: b.end()})
		if b.end() > end {
			end, held = b.end(), b
		}
	}
	return append(out, part)
}

// registerWindow is a part of a register's history that can be checked by itself.
type registerWindow struct {
	init    registerState
	history []porcupine.Operation
}

const windowSize = 500

// registerHistories cuts the operations on a register into windows, at moments when none was under way. The order in which the
// register took them is used for nothing but this cut, and for where to put those whose outcome was never known: in the window
// in which they happened, open-ended.
func registerHistories(ops []*operation) (out []registerWindow) {
	taken := append([]*operation(nil), ops...)
	sort.SliceStable(taken, func(i, k int) bool { return taken[i].at < taken[k].at })
	w := registerWindow{}
	busy := int64(0) // until when an operation of this window was under way
	last := registerState{}
	for i, op := range taken {
		if op.ret == 0 && !op.accepted {
			continue // it did nothing, and nobody knows
		}
		if len(w.history) >= windowSize && clear(taken[i:], busy) {
			out = append(out, w)
			w = registerWindow{init: last}
		}
		ret := op.ret
		if ret == 0 {
			ret = math.MaxInt64
		} else {
			busy = max(busy, ret)
		}
		w.history = append(w.history, porcupine.Operation{ClientId: len(w.history), Input: registerInput{op.read, op.token}, Call: op.call, Return: ret,
			Output: registerOutput{op.ret == 0, op.accepted, op.pos, op.high}})
		last = registerState{op.pos, op.high}
	}
	if len(w.history) > 0 {
		out = append(out, w)
	}
	return out
}

// clear says whether every operation that is known to have returned was called after the others had.
func clear(rest []*operation, busy int64) bool {
	for _, op := range rest {
		if op.ret != 0 && op.call <= busy {
			return false
		}
		if op.at > busy+int64(10*time.Second) {
			break
		}
	}
	return true
}
