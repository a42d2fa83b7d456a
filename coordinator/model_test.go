package coordinator

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// The model is a whole stage in simulated time: a broker with leases, a commit point, workers, and several coordinators that die,
// freeze, lose answers and find the disk full. Nothing in it is random but by its seed.

type model struct {
	t    *testing.T
	rng  *rand.Rand
	cfg  Config
	now  clock.Instant
	plan agenda
	seq  int

	queues  map[string][]*modelMsg
	seen    map[string]bool // published ids; nil: a broker without dedupe
	records map[string]item.Record
	nodes   []*modelNode
	items   map[string]modelKind

	faults   bool
	runs     map[string]int // executions
	running  map[string]int // at once, of items whose lease never ran out
	overlaps int
	crashes  int
}

type modelKind string

const (
	good   modelKind = "good"
	long   modelKind = "long"   // far longer than a lease
	flaky  modelKind = "flaky"  // fails twice
	broken modelKind = "broken" // fails always
	poison modelKind = "poison" // crashes the worker, and its batch
	wrong  modelKind = "wrong"  // a retry is useless
	large  modelKind = "large"  // its payload is
	frail  modelKind = "frail"  // crashes a worker that has others too
)

type modelMsg struct {
	out        source.Out
	visible    clock.Instant
	holder     *modelNode
	epoch      int // of the holder
	lease      int
	until      clock.Instant
	deliveries int
	gone       bool
}

type modelNode struct {
	m         *model
	cfg       Config
	id        int
	epoch     int // grows with every death
	machine   *machine
	frozen    clock.Instant // until
	downUntil clock.Instant // its worker is not ready
	wake      clock.Instant
	receiving int
	calls     map[uint64]func(item.Class)
}

type modelToken struct {
	msg   *modelMsg
	lease int
}

type appointment struct {
	at  clock.Instant
	seq int
	do  func()
}

type agenda []appointment

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(appointment)) }
func (a *agenda) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	*a = (*a)[:last]
	return x
}

func testConfig() Config {
	return Config{Queue: "q", ID: "c", Node: "n", Lease: 10 * time.Second, Slots: 4, Batch: 1, Keyed: 64, MaxRuntime: time.Hour, Attempts: 4, CrashAttempts: 2,
		Retry: Backoff{time.Second, time.Minute}, CrashRetry: Backoff{500 * time.Millisecond, time.Minute}, NotReady: Backoff{time.Second, 30 * time.Second},
		Infra: Backoff{200 * time.Millisecond, 30 * time.Second}, Lane: LaneBlock, Classes: 1, Aging: time.Minute, Record: true, To: "next", ToClasses: 1, Dead: "q-dead", Drain: 5 * time.Second}
}

// newModel makes nodes of one configuration, and one of each of the others.
func newModel(t *testing.T, seed uint64, nodes int, cfg Config, others ...Config) *model {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 1)), cfg: cfg, now: clock.Instant(time.Hour), queues: map[string][]*modelMsg{}, records: map[string]item.Record{},
		items: map[string]modelKind{}, runs: map[string]int{}, running: map[string]int{}}
	for i, cfg := range append(slices.Repeat([]Config{cfg}, nodes), others...) {
		cfg.Acks = int(seed % 3) // as brokers differ
		n := &modelNode{m: m, id: i, cfg: cfg}
		m.nodes = append(m.nodes, n)
		n.boot()
	}
	return m
}

func (m *model) after(d time.Duration, do func()) {
	m.seq++
	heap.Push(&m.plan, appointment{m.now.Add(max(0, d)), m.seq, do})
}

func (m *model) chance(p float64) bool { return m.faults && m.rng.Float64() < p }

func (m *model) between(a, b time.Duration) time.Duration {
	return a + time.Duration(m.rng.Int64N(int64(b-a)+1))
}

func (m *model) wall() time.Time { return time.Unix(1e9, 0).Add(time.Duration(m.now)) }

func (m *model) publish(queue string, outs []source.Out) {
	for _, out := range outs {
		if err := (source.Options{Classes: 10}).Check(out); err != nil {
			m.t.Fatalf("published what no broker takes: %v", err)
		}
		if m.seen != nil {
			if m.seen[queue+" "+out.ID] {
				continue
			}
			m.seen[queue+" "+out.ID] = true
		}
		m.queues[queue] = append(m.queues[queue], &modelMsg{out: out, visible: m.now.Add(out.Delay)})
	}
}

// boot starts a coordinator with nothing but what the broker and the commit point know.
func (n *modelNode) boot() {
	m := n.m
	n.epoch++
	n.receiving, n.wake, n.calls = 0, 0, map[uint64]func(item.Class){}
	n.machine = newMachine(n.cfg, m.wall, func(d time.Duration) time.Duration { return time.Duration(m.rng.Int64N(int64(d) + 1)) })
	n.step(evTick{})
}

func (n *modelNode) kill() {
	n.m.crashes++
	n.epoch++
	for _, end := range n.calls {
		end("killed")
	}
	n.machine = nil
	n.m.after(n.m.between(0, 20*time.Second), n.boot)
}

func (n *modelNode) step(ev any) {
	if n.machine == nil {
		return
	}
	if n.frozen > n.m.now {
		epoch := n.epoch
		n.m.after(n.frozen.Sub(n.m.now), func() {
			if n.epoch == epoch {
				n.step(ev)
			}
		})
		return
	}
	n.machine.step(n.m.now, ev)
	for _, fx := range n.machine.take() {
		n.do(fx)
	}
	n.schedule()
}

func (n *modelNode) schedule() {
	at := n.machine.next(n.m.now)
	if at == clock.Never || n.wake > n.m.now && n.wake <= at {
		return
	}
	n.wake = at
	epoch := n.epoch
	n.m.after(at.Sub(n.m.now), func() {
		if n.epoch == epoch && n.machine != nil {
			n.step(evTick{})
		}
	})
}

// request does something outside after a while, and brings the answer back after a while. A coordinator that dies in between may or
// may not have been heard; an answer may be lost.
func (n *modelNode) request(do func() any, failed func(error) any) {
	m, epoch := n.m, n.epoch
	err := errors.New("no answer")
	before, after := m.chance(0.02), m.chance(0.02)
	m.after(m.between(0, 20*time.Millisecond), func() {
		if n.epoch != epoch && m.rng.IntN(2) == 0 {
			return
		}
		var ev any
		if !before {
			ev = do()
		}
		m.after(m.between(0, 20*time.Millisecond), func() {
			if n.epoch != epoch {
				return
			}
			if before || after {
				ev = failed(err)
			}
			n.step(ev)
		})
	})
}

func (n *modelNode) do(fx any) {
	m := n.m
	switch fx := fx.(type) {
	case fxReceive:
		n.receiving = fx.max
		m.after(m.between(0, 5*time.Millisecond), n.receive(n.epoch, m.now))
	case fxIdle:
		if n.receiving > 0 {
			n.receiving = 0
			epoch := n.epoch
			m.after(0, func() {
				if n.epoch == epoch {
					n.step(evReceived{})
				}
			})
		}
	case fxCheck:
		n.request(func() any {
			if rec, ok := m.records[fx.id]; ok {
				return evChecked{handle: fx.handle, record: &rec}
			}
			return evChecked{handle: fx.handle}
		}, func(err error) any { return evChecked{handle: fx.handle, err: err} })
	case fxCall:
		n.call(fx)
	case fxEnd:
		if end := n.calls[fx.call]; end != nil {
			end(fx.class)
		}
	case fxCommit:
		n.request(func() any {
			if _, ok := m.records[fx.record.ID]; !ok {
				m.records[fx.record.ID] = fx.record
			}
			return evCommitted{handle: fx.handle, record: m.records[fx.record.ID]}
		}, func(err error) any { return evCommitted{handle: fx.handle, err: err} })
	case fxPublish:
		n.request(func() any {
			for queue, outs := range fx.outs {
				m.publish(queue, outs)
			}
			return evPublished{handle: fx.handle}
		}, func(err error) any { return evPublished{handle: fx.handle, err: err} })
	case fxAck:
		n.onMessages(fx.handles, func(msg *modelMsg) { m.remove(msg) }, func(errs map[uint64]error) any { return evAcked{fx.handles, errs} })
	case fxRelease:
		n.onMessages(fx.handles, func(msg *modelMsg) { msg.holder, msg.visible = nil, m.now.Add(fx.delay) }, func(map[uint64]error) any { return evReleased{fx.handles} })
	case fxExtend:
		n.onMessages(fx.handles, func(msg *modelMsg) { msg.until = m.now.Add(m.cfg.Lease) }, func(errs map[uint64]error) any { return evExtended{fx.handles, errs} })
	}
}

func (m *model) remove(msg *modelMsg) {
	msg.gone, msg.holder = true, nil
	for name, q := range m.queues {
		if i := slices.Index(q, msg); i >= 0 {
			m.queues[name] = slices.Concat(q[:i], q[i+1:])
		}
	}
}

// left is how many messages coordinators still have to take.
func (m *model) left() int {
	names := map[string]bool{}
	for _, n := range m.nodes {
		names[n.cfg.Queue] = true
	}
	left := 0
	for name := range names {
		left += len(m.queues[name])
	}
	return left
}

// onMessages does something to leased messages.
func (n *modelNode) onMessages(handles []uint64, do func(*modelMsg), answer func(map[uint64]error) any) {
	m := n.m
	tokens := map[uint64]modelToken{}
	for _, h := range handles {
		tokens[h] = n.machine.messageOf(h).Token.(modelToken)
	}
	n.request(func() any {
		errs := map[uint64]error{}
		for _, h := range handles {
			token := tokens[h]
			msg := token.msg
			if msg.holder != nil && m.now >= msg.until {
				msg.holder = nil
			}
			if msg.gone || msg.holder != n || msg.lease != token.lease {
				errs[h] = source.ErrLost
				continue
			}
			do(msg)
		}
		return answer(errs)
	}, func(err error) any {
		errs := map[uint64]error{}
		for _, h := range handles {
			errs[h] = err
		}
		return answer(errs)
	})
}

// receive answers once there is something, as a long poll does.
func (n *modelNode) receive(epoch int, sent clock.Instant) func() {
	m := n.m
	var poll func()
	poll = func() {
		if n.epoch != epoch || n.receiving == 0 {
			return
		}
		var msgs []*source.Message
		for _, msg := range m.queues[n.cfg.Queue] {
			if len(msgs) == n.receiving {
				break
			}
			if msg.visible > m.now || msg.holder != nil && m.now < msg.until {
				continue
			}
			msg.holder, msg.epoch, msg.until = n, n.epoch, m.now.Add(m.cfg.Lease)
			msg.lease++
			msg.deliveries++
			msgs = append(msgs, &source.Message{ID: msg.out.ID, Body: msg.out.Body, Headers: msg.out.Headers, Key: msg.out.Key, Class: msg.out.Class,
				Deliveries: msg.deliveries, Token: modelToken{msg, msg.lease}})
		}
		if len(msgs) == 0 {
			m.after(100*time.Millisecond, poll)
			return
		}
		n.receiving = 0
		n.step(evReceived{msgs: msgs})
	}
	return poll
}

// call plays the worker.
func (n *modelNode) call(fx fxCall) {
	m, epoch := n.m, n.epoch
	done := false
	answer := func(verdicts []worker.Verdict) {
		if done {
			return
		}
		done = true
		delete(n.calls, fx.call)
		for _, task := range fx.tasks {
			m.running[task.ID]--
		}
		if n.epoch == epoch {
			n.step(evCalled{fx.call, verdicts})
		}
	}
	all := func(v worker.Verdict) []worker.Verdict {
		out := make([]worker.Verdict, len(fx.tasks))
		for i := range out {
			v.Whole = len(out) > 1
			out[i] = v
		}
		return out
	}
	for _, task := range fx.tasks {
		if m.running[task.ID]++; m.running[task.ID] > 1 {
			m.overlaps++
		}
	}
	n.calls[fx.call] = func(class item.Class) {
		kind := worker.Stopped
		if class == item.Timeout {
			kind = worker.TimedOut
		}
		if class == "killed" {
			answer(all(worker.Verdict{Kind: kind}))
			return
		}
		m.after(time.Millisecond, func() { answer(all(worker.Verdict{Kind: kind})) })
	}
	if n.downUntil > m.now {
		m.after(5*time.Millisecond, func() { answer(all(worker.Verdict{Kind: worker.NotReady, Reason: "503"})) })
		return
	}
	took := m.between(time.Millisecond, 300*time.Millisecond)
	verdicts := make([]worker.Verdict, len(fx.tasks))
	poisoned := false
	for i, task := range fx.tasks {
		id, _, _ := strings.Cut(task.ID, "~r")
		m.runs[id]++
		verdicts[i] = worker.Verdict{Kind: worker.Ack, Output: &worker.Output{Next: []item.Message{{Body: []byte(task.Attempt)}}}}
		switch kind := m.items[id]; {
		case kind == poison:
			poisoned = true
			verdicts[i] = worker.Verdict{Kind: worker.Crashed}
		case kind == broken, kind == flaky && task.N <= 2:
			verdicts[i] = worker.Verdict{Kind: worker.Retry, Reason: "exit 1"}
		case kind == wrong:
			verdicts[i] = worker.Verdict{Kind: worker.Dead, Reason: "exit 65"}
		case kind == frail && n.cfg.Divert != "":
			verdicts[i] = worker.Verdict{Kind: worker.Crashed}
		case kind == large && n.cfg.Divert != "":
			m.t.Errorf("%s is with a worker that should not have it", id)
		case kind == long:
			took = 5 * m.cfg.Lease
		}
	}
	if poisoned {
		verdicts = all(worker.Verdict{Kind: worker.Crashed, Reason: "signal 9"})
	} else if m.chance(0.005) {
		verdicts = all(worker.Verdict{Kind: worker.Infra, Reason: "no space left on device"})
	}
	m.after(took, func() { answer(verdicts) })
}

// mischief keeps things going wrong.
func (m *model) mischief() {
	if !m.faults {
		return
	}
	n := m.nodes[m.rng.IntN(len(m.nodes))]
	switch m.rng.IntN(4) {
	case 0:
		if n.machine != nil {
			n.kill()
		}
	case 1:
		n.frozen = m.now.Add(m.between(0, 3*m.cfg.Lease))
	case 2:
		n.downUntil = m.now.Add(m.between(0, time.Minute))
	case 3: // the leases of one consumer end, as when its connection breaks
		for _, msg := range m.queues[n.cfg.Queue] {
			if msg.holder == n {
				msg.holder = nil
			}
		}
	}
	m.after(m.between(0, 4*time.Second), m.mischief)
}

// run goes on until everything has ended and the broker is empty, or the time is over.
func (m *model) run(limit time.Duration) {
	end := m.now.Add(limit)
	for len(m.plan) > 0 {
		a := heap.Pop(&m.plan).(appointment)
		m.now = max(m.now, a.at)
		if m.now > end {
			m.t.Fatalf("not finished after %s: %d messages left, %d records of %d", limit, m.left(), len(m.records), len(m.items))
		}
		a.do()
		if len(m.records) == len(m.items) && m.left() == 0 && m.settled() {
			return
		}
	}
}

func (m *model) settled() bool {
	for _, n := range m.nodes {
		if n.machine != nil && len(n.machine.items) > 0 {
			return false
		}
	}
	return true
}

// check compares what came out with what had to.
func (m *model) check() {
	t := m.t
	t.Helper()
	next, dead := map[string]string{}, map[string]int{}
	for _, msg := range m.queues["next"] {
		id := strings.TrimSuffix(msg.out.ID, "/q/0")
		if before, ok := next[id]; ok && before != string(msg.out.Body) {
			t.Errorf("%s went to the next stage twice, as %s and %s", id, before, msg.out.Body)
		}
		next[id] = string(msg.out.Body)
	}
	for _, msg := range m.queues["q-dead"] {
		env, err := item.Open(msg.out.ID, msg.out.Headers)
		if err != nil {
			t.Errorf("dead letter %s: %v", msg.out.ID, err)
		}
		dead[env.ID]++
		if env.DeadReason == "" && env.DeadClass == "" || len(env.History) == 0 {
			t.Errorf("dead letter %s says nothing: %+v", env.ID, env)
		}
	}
	for id, kind := range m.items {
		rec, ok := m.records[id]
		want := item.Done
		if kind == broken || kind == poison || kind == wrong {
			want = item.Dead
		}
		switch {
		case !ok:
			t.Errorf("%s (%s) is lost", id, kind)
		case rec.State != want:
			t.Errorf("%s (%s) is %s: %s %s", id, kind, rec.State, rec.Class, rec.Reason)
		case want == item.Done && next[id] != rec.Attempt:
			t.Errorf("%s was committed by %s, the next stage got %q", id, rec.Attempt, next[id])
		case want == item.Done && dead[id] > 0:
			t.Errorf("%s is done and dead", id)
		case want == item.Dead && (dead[id] == 0 || next[id] != ""):
			t.Errorf("%s (%s): %d dead letters, next stage %q", id, kind, dead[id], next[id])
		}
	}
}

func (m *model) fill(count int, kinds ...modelKind) {
	var outs []source.Out
	for i := range count {
		id := fmt.Sprintf("i%d", i)
		kind := good
		if m.rng.IntN(20) == 0 && len(kinds) > 0 {
			kind = kinds[m.rng.IntN(len(kinds))]
		}
		m.items[id] = kind
		body := []byte(id)
		if kind == large {
			body = make([]byte, 100)
		}
		outs = append(outs, source.Out{ID: id, Body: body})
	}
	m.publish(m.cfg.Queue, outs)
}
