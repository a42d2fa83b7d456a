package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial/every"
	"retinue/coordinator/source/partitioned"
	"retinue/internal/clock"
	"retinue/tests/brokers"
)

// world is one campaign on one broker: who runs, and what happened.
type world struct {
	settings
	spawn  *brokers.Spawner
	broker *brokers.Broker
	consul *consul // nil without partitions
	coords []*member
	ledger *ledger
	commit string // that is being tried
}

// member is a coordinator and its worker. The worker of mode exec is whatever command the coordinator runs at the moment.
type member struct {
	name   string
	mode   string
	coord  brokers.Command
	helper *brokers.Command // the worker; nil in mode exec

	mu     sync.Mutex
	proc   *brokers.Process
	worker *brokers.Process
}

// run brings a world up, breaks it until enough is done, repairs it, waits for the end and judges.
func run(ctx context.Context, s settings) (*report, error) {
	if s.Log == nil {
		s.Log = func(string, ...any) {}
	}
	if s.Pace == 0 {
		s.Pace = 1
	}
	if s.Backlog == 0 {
		s.Backlog = 2000
	}
	if s.Patience == 0 {
		s.Patience = 30*time.Second + 20*s.Lease
	}
	w := &world{settings: s, spawn: brokers.NewSpawner(), ledger: newLedger(), commit: commit()}
	defer w.spawn.Close()
	var err error
	if w.broker, err = brokers.Start(ctx, w.spawn, s.Broker, filepath.Join(s.Dir, "broker"), s.Queue); err != nil {
		return nil, err
	}
	if s.Partitions > 0 {
		if w.consul, err = startConsul(ctx, w.spawn, filepath.Join(s.Dir, "consul")); err != nil {
			return nil, err
		}
	}
	if err := w.up(); err != nil {
		return nil, err
	}
	began := time.Now()
	reached, err := w.work(ctx)
	if err != nil {
		return nil, err
	}
	r, err := w.judge()
	if err != nil {
		return nil, err
	}
	r.Seconds, r.Drained = time.Since(began).Seconds(), reached
	if !reached {
		r.Findings, r.Broken[emptyAtEnd] = append(r.Findings, finding{emptyAtEnd, "queue", "something stayed"}), 1
	}
	return r, nil
}

const config = `work_queue "in" {
  drain_timeout = "3s"
  listen        = ["unix://%[1]s/c.sock"]
  source {
    broker = %[2]q
    lease  = %[3]q
  }
  worker {
    mode  = %[4]q
    work  = "%[1]s/wq"
    grace = "1s"
    %[5]s
  }
  retry {
    attempts       = 100
    crash_attempts = 100
    backoff        = "50ms..1s"
    crash_backoff  = "50ms..500ms"
    not_ready      = "50ms..500ms"
    infra          = "50ms..1s"
  }
  %[6]s
  output {
    to     = "out"
    commit = "rename"
    done   = %[7]q
    sync   = false
  }
}
`

// up starts three coordinators of one queue: items one by one over HTTP, in batches over HTTP, and a command for each.
func (w *world) up() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, m := range []*member{{name: "single", mode: "http"}, {name: "batch", mode: "http"}, {name: "exec", mode: "exec"}} {
		dir := filepath.Join(w.Dir, m.name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		executions := workerLog + "=" + filepath.Join(w.Dir, m.name+".executions")
		var worker, rate string
		switch m.name {
		case "single":
			worker = fmt.Sprintf("url = \"unix://%s/w.sock\"\n    slots = 16", dir)
		case "batch":
			worker = fmt.Sprintf("url = \"unix://%s/w.sock\"\n    slots = 4\n    batch = 20", dir)
		case "exec":
			worker = fmt.Sprintf("command = [%q]\n    slots = 3", self)
			if w.Broker != "kafka" && w.Partitions == 0 { // where it has partitions of its own, nobody else would work for it
				rate = "rate {\n    queue = \"15/s\"\n  }"
			}
		}
		file := filepath.Join(dir, "queue.hcl")
		if w.Partitions > 0 {
			rate = fmt.Sprintf("load = \"consul:campaign\"\n  order {\n    key = \"message\"\n    partitions = %d\n  }", w.Partitions)
			m.coord.Env = append(m.coord.Env, "CONSUL_HTTP_ADDR="+w.consul.address)
		}
		text := fmt.Sprintf(config, dir, w.broker.URL, w.Lease.String(), m.mode, worker, rate, filepath.Join(w.Dir, "done"))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		env := m.coord.Env
		m.coord = brokers.Command{Name: m.name + "-coordinator", Path: w.Coordinator, Args: []string{"--config", file, "--id", m.name, "--log-level", logLevel(w.Partitions)}, Dir: dir, Log: filepath.Join(w.Dir, m.name+".log"), Env: env}
		if m.mode == "exec" {
			m.coord.Env = append(m.coord.Env, workerRole+"=exec", executions)
		} else {
			m.helper = &brokers.Command{Name: m.name + "-worker", Path: self, Env: []string{workerRole + "=http " + dir + "/w.sock", executions}, Dir: dir, Log: filepath.Join(w.Dir, m.name+"-worker.log")}
		}
		w.coords = append(w.coords, m)
		if err := errors.Join(m.startWorker(w.spawn), m.startCoord(w.spawn)); err != nil {
			return err
		}
	}
	return nil
}

func (m *member) startCoord(s *brokers.Spawner) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proc, err = s.Start(m.coord)
	return err
}

func (m *member) startWorker(s *brokers.Spawner) (err error) {
	if m.helper == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worker, err = s.Start(*m.helper)
	return err
}

func (m *member) coordinator() *brokers.Process { m.mu.Lock(); defer m.mu.Unlock(); return m.proc }

// children are the processes that a process has started.
func children(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(field); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// open opens a queue of the campaign's own, in a process that nobody kills.
func (w *world) open(ctx context.Context, queue string) (source.Source, error) {
	return every.Open(ctx, w.broker.URL, source.Options{Queue: queue, Lease: w.Lease, Prefetch: 500})
}

// producer opens the queue to publish to and to count.
func (w *world) producer(ctx context.Context) (source.Source, error) {
	if w.Partitions == 0 {
		return w.open(ctx, "in")
	}
	return partitioned.New(partitioned.Config{Options: source.Options{Queue: "in", Lease: w.Lease, Prefetch: 500}, Partitions: w.Partitions, Clock: clock.Boot(), Log: hclog.NewNullLogger(),
		Open: func(o source.Options) (source.Source, error) { return every.Open(ctx, w.broker.URL, o) }})
}

// work publishes and breaks until enough is done or time is up, and then waits until every item has ended. It says whether it has.
func (w *world) work(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, err := w.producer(ctx)
	if err != nil {
		return false, err
	}
	defer in.Close(ctx)
	var watching, breaking sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	for queue, seen := range map[string]func(*source.Message){"out": w.ledger.arrived, "in-dead": w.ledger.buried} {
		src, err := w.open(ctx, queue)
		if err != nil {
			return false, err
		}
		watching.Go(func() { w.watch(ctx, src, seen) })
	}
	watching.Go(func() { w.ledger.sleep(ctx) })
	end := time.Now().Add(w.Limit)
	publishing, stop := context.WithDeadline(ctx, end)
	defer stop()
	// Queues have to be some seconds old to survive a kill of some brokers, and those of delays with them: what comes first makes them.
	w.publish(publishing, in, 0, min(w.Items, 200))
	if err := wait(ctx, w.broker.Settle); err != nil {
		return false, err
	}
	lanes, halt := context.WithCancel(publishing)
	defer halt()
	w.startLanes(ctx, lanes, &breaking)
	breaking.Go(func() { w.report(lanes) })
	w.publish(publishing, in, 200, w.Items)
	for publishing.Err() == nil && (w.ledger.kills() < w.Kills || w.ledger.broken() < w.Faults) {
		// Faults while nothing is in work would count for nothing: more items, beyond what was asked for.
		from := w.ledger.published()
		w.publish(publishing, in, from, from+100)
	}
	halt()
	breaking.Wait()
	w.Log("all repaired: %d kills, %d items; waiting for their ends", w.ledger.kills(), w.ledger.published())
	if ok, err := w.drained(ctx); !ok || err != nil {
		return ok, err
	}
	return w.empty(ctx, in)
}

// empty waits until nothing is left in the queue: repeats of what has ended are taken and acknowledged, not executed.
func (w *world) empty(ctx context.Context, in source.Source) (bool, error) {
	var d source.Depth
	for end := time.Now().Add(w.Patience); time.Now().Before(end); {
		var err error
		if d, err = in.Depth(ctx); err == nil && d.Ready <= 0 && d.InFlight <= 0 && d.Delayed <= 0 {
			return true, nil
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return false, err
		}
	}
	w.Log("the depth stays %+v", d)
	return false, nil
}

// startLanes starts what breaks things until lanes ends.
func (w *world) startLanes(ctx, lanes context.Context, breaking *sync.WaitGroup) {
	coords := coordLane
	if w.Partitions > 0 {
		coords = ownerLane
	}
	if w.Only != nil {
		coords = *w.Only
	} else {
		breaking.Go(func() {
			w.breakAll(lanes, newLane(w.Seed, "broker", brokerLane, w.Pace), func(f fault) error { return w.breakBroker(ctx, f) })
		})
	}
	if w.consul != nil && w.Only == nil {
		breaking.Go(func() {
			w.breakAll(lanes, newLane(w.Seed, "consul", consulLane, w.Pace), func(f fault) error { return w.breakConsul(ctx, f) })
		})
	}
	for _, m := range w.coords {
		if w.Only == nil {
			breaking.Go(func() {
				w.breakAll(lanes, newLane(w.Seed, "worker "+m.name, workerLane, w.Pace), func(f fault) error { return w.breakWorker(m, f) })
			})
		}
		if len(coords.weights) > 0 {
			breaking.Go(func() {
				w.breakAll(lanes, newLane(w.Seed, "coordinator "+m.name, coords, w.Pace), func(f fault) error { return w.breakCoord(m, f) })
			})
		}
	}
}

// drained waits until every confirmed item has ended and been seen downstream, as long as there is progress.
func (w *world) drained(ctx context.Context) (bool, error) {
	last, since := -1, time.Now()
	for {
		open := w.ledger.open()
		if open == 0 {
			return true, nil
		}
		if open != last {
			last, since = open, time.Now()
		}
		if time.Since(since) > w.Patience {
			w.Log("%d items do not end", open)
			return false, nil
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return false, err
		}
	}
}

// publish publishes items of a range, the same until they are confirmed.
func (w *world) publish(ctx context.Context, in source.Source, from, to int) {
	for n := from; n < to && ctx.Err() == nil; {
		if w.ledger.open() > w.Backlog {
			_ = wait(ctx, 20*time.Millisecond)
			continue
		}
		outs, tasks := []source.Out{}, []task{}
		for ; n < to && len(outs) < 50; n++ {
			t := taskOf(w.Seed, n, w.LongShare, w.Lease)
			out := source.Out{ID: idOf(n), Body: encode(t)}
			if w.Partitions > 0 {
				out.Key = keyOf(n)
			}
			outs, tasks = append(outs, out), append(tasks, t)
		}
		w.ledger.offered(outs, tasks)
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, 15*time.Second)
			err := in.Publish(try, outs...)
			cancel()
			if err == nil {
				w.ledger.confirmed(outs)
				break
			}
			_ = wait(ctx, 50*time.Millisecond)
			w.ledger.retried(outs)
		}
	}
}

// watch takes what arrives in a queue.
func (w *world) watch(ctx context.Context, src source.Source, seen func(*source.Message)) {
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		src.Close(closing)
	}()
	for ctx.Err() == nil {
		ms, err := src.Receive(ctx, 200)
		if err != nil {
			_ = wait(ctx, 50*time.Millisecond)
			continue
		}
		for _, m := range ms {
			seen(m)
		}
		_ = src.Ack(ctx, ms...) // what was not acknowledged comes again, and counts as a repeat
	}
}

// breakAll runs a lane until its context ends. What was broken is repaired first.
func (w *world) breakAll(ctx context.Context, l *lane, do func(fault) error) {
	for {
		f := l.next()
		if wait(ctx, f.wait) != nil {
			return
		}
		if err := do(f); err != nil {
			w.Log("%s: %v", f.class, err)
		}
	}
}

func (w *world) breakBroker(ctx context.Context, f fault) error {
	p := w.broker.Process()
	end := w.ledger.fault(f.class, "")
	defer end()
	if f.class == brokerStop {
		p.Signal(syscall.SIGSTOP)
		time.Sleep(f.hold)
		p.Signal(syscall.SIGCONT)
		return nil
	}
	p.Kill()
	time.Sleep(f.hold)
	return w.broker.Up(ctx)
}

func (w *world) breakCoord(m *member, f fault) error {
	p := m.coordinator()
	end := w.ledger.fault(f.class, m.name)
	defer end()
	if f.class == coordStop {
		p.Signal(syscall.SIGSTOP)
		time.Sleep(f.hold)
		p.Signal(syscall.SIGCONT)
		return nil
	}
	if f.class == coordTerm {
		_ = syscall.Kill(p.PID(), syscall.SIGTERM) // it alone, as Nomad does
		select {
		case <-p.Done():
		case <-time.After(15 * time.Second):
		}
	}
	p.Kill()
	time.Sleep(f.hold)
	return m.startCoord(w.spawn)
}

func (w *world) breakWorker(m *member, f fault) error {
	if m.helper == nil { // the command that runs at the moment
		pids := children(m.coordinator().PID())
		if len(pids) == 0 {
			return nil
		}
		end := w.ledger.fault(f.class, m.name)
		defer end()
		if f.class == workerStop {
			_ = syscall.Kill(pids[0], syscall.SIGSTOP)
			time.Sleep(f.hold)
			_ = syscall.Kill(pids[0], syscall.SIGCONT)
			return nil
		}
		_ = syscall.Kill(pids[0], syscall.SIGKILL) // it may have ended
		return nil
	}
	m.mu.Lock()
	p := m.worker
	m.mu.Unlock()
	end := w.ledger.fault(f.class, m.name)
	defer end()
	if f.class == workerStop {
		p.Signal(syscall.SIGSTOP)
		time.Sleep(f.hold)
		p.Signal(syscall.SIGCONT)
		return nil
	}
	p.Kill()
	time.Sleep(f.hold)
	return m.startWorker(w.spawn)
}

// report says now and then how far it is.
func (w *world) report(ctx context.Context) {
	for wait(ctx, 15*time.Second) == nil {
		w.Log("%d items confirmed, %d not through, %d kills", w.ledger.published(), w.ledger.open(), w.ledger.kills())
	}
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logLevel: with partitions it is of interest who had them when.
func logLevel(partitions int) string {
	if partitions > 0 {
		return "info"
	}
	return "warn"
}
