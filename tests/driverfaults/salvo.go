package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/tests/drivercluster"
)

// How long the campaign waits for what has to happen.
const (
	patience = 2 * time.Minute
	toLeave  = time.Minute // for what an allocation leaves, after its end
)

// shot is one task of a salvo.
type shot struct {
	outcome
	id   string
	stub *nomad.AllocationListStub
	dir  string // of the allocation
}

// fire plays a salvo: tasks into their points, the fault, the repair, the end of all.
func (w *world) fire(ctx context.Context, s salvo) ([]*shot, int, error) {
	var held, restoring, starting, all []*shot
	for _, p := range w.Points {
		for _, driver := range w.drivers {
			one := &shot{outcome: outcome{driver: driver, point: p, fault: s.fault}, id: fmt.Sprintf("s%d-%s-%s", s.number, p.name, driver)}
			all = append(all, one)
			switch p.name {
			case "starting":
				starting = append(starting, one)
			case "restoring":
				restoring = append(restoring, one)
			default:
				held = append(held, one)
			}
		}
	}
	defer func() { // also when it was given up
		for _, one := range all {
			_, _, _ = w.cluster.Nomad.Jobs().Deregister(one.id, true, nil)
		}
	}()
	if err := w.register(held); err != nil {
		return nil, 0, err
	}
	if err := each(held, func(one *shot) error { return w.reach(ctx, one) }); err != nil {
		return nil, 0, err
	}
	consul, err := w.cluster.Agent("consul-" + target)
	if err != nil {
		return nil, 0, err
	}
	if len(restoring) > 0 {
		// What is in the store is not told while Consul stands still.
		if err := consul.Kill(syscall.SIGSTOP); err != nil {
			return nil, 0, err
		}
		defer consul.Kill(syscall.SIGCONT)
		if err := w.register(restoring); err != nil {
			return nil, 0, err
		}
		if err := each(restoring, func(one *shot) error {
			return w.until(ctx, one, "restores", func() error {
				if p := phase(one.dir); p != "restoring" {
					return fmt.Errorf("phase %q", p)
				}
				return nil
			})
		}); err != nil {
			return nil, 0, err
		}
	}
	if err := w.register(starting); err != nil {
		return nil, 0, err
	}
	time.Sleep(s.begun)
	var ids []string
	for _, one := range all {
		if one.stub == nil { // one that has just begun, or not yet
			if one.stub, _ = w.alloc(one.id); one.stub == nil {
				continue
			}
			if one.dir, err = w.cluster.AllocDir(target, one.stub.ID); err != nil {
				return nil, 0, err
			}
		}
		ids = append(ids, one.stub.ID)
	}
	for _, one := range all {
		if one.dir != "" {
			one.phase = phase(one.dir)
		}
	}
	kills, err := w.strike(s, ids)
	if err != nil {
		return nil, kills, err
	}
	if s.early {
		release(all)
	}
	if s.again > 0 {
		if s.fault == killAgent {
			if err := w.repair(ctx, s); err != nil {
				return nil, kills, err
			}
		}
		time.Sleep(s.again)
		if err := w.learn(ctx); err != nil {
			return nil, kills, err
		}
		more, err := w.strike(s, ids)
		if err != nil {
			return nil, kills, err
		}
		kills += more
	}
	if err := w.repair(ctx, s); err != nil {
		return nil, kills, err
	}
	if err := consul.Kill(syscall.SIGCONT); err != nil {
		return nil, kills, err
	}
	release(all)
	if err := each(all, func(one *shot) error { return w.finish(ctx, one) }); err != nil {
		return nil, kills, err
	}
	return all, kills, w.collect(ctx, all)
}

func (w *world) register(shots []*shot) error {
	for _, one := range shots {
		if _, _, err := w.cluster.Nomad.Jobs().Register(w.job(one.id, one.driver, one.point), nil); err != nil {
			return err
		}
	}
	return nil
}

// each does something for all shots at once, and returns the first error.
func each(shots []*shot, do func(*shot) error) error {
	var group sync.WaitGroup
	errs := make([]error, len(shots))
	for i, one := range shots {
		group.Go(func() { errs[i] = do(one) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// until waits for something about a task's allocation, whose folder it finds out.
func (w *world) until(ctx context.Context, one *shot, what string, check func() error) error {
	return drivercluster.Eventually(ctx, patience, one.id+" "+what, func() (err error) {
		if one.stub == nil {
			if one.stub, err = w.alloc(one.id); err != nil {
				return err
			}
			if one.dir, err = w.cluster.AllocDir(target, one.stub.ID); err != nil {
				return err
			}
		}
		return check()
	})
}

// reach brings a task to its point.
func (w *world) reach(ctx context.Context, one *shot) error {
	hook := one.point.hold
	if hook == "post_start" {
		return w.until(ctx, one, "warms up", func() error { return one.noted("begin", hook) })
	}
	if err := w.until(ctx, one, "runs", func() error {
		if p := phase(one.dir); p != "running" {
			return fmt.Errorf("phase %q", p)
		}
		stub, err := w.alloc(one.id)
		if err != nil {
			return err
		}
		if t := stub.TaskStates[taskName]; t == nil || t.State != "running" { // Nomad takes no signal before
			return errors.New("the server does not know yet")
		}
		return nil
	}); err != nil {
		return err
	}
	alloc := &nomad.Allocation{ID: one.stub.ID}
	switch {
	case one.point.name == "paused":
		if err := w.cluster.Nomad.Allocations().Signal(alloc, nil, taskName, "pause"); err != nil {
			return fmt.Errorf("pause %s: %w", one.id, err)
		}
		return nil
	case one.point.name == "pausing":
		go w.cluster.Nomad.Allocations().Signal(alloc, nil, taskName, "pause") // its answer comes when it is over
	case one.point.stop:
		if _, _, err := w.cluster.Nomad.Jobs().Deregister(one.id, false, nil); err != nil {
			return err
		}
	}
	switch hook {
	case "":
		return nil
	case "signal":
		return w.until(ctx, one, "gets the signal", func() error { return one.noted("signal terminated", "-") })
	}
	return w.until(ctx, one, "is in "+hook, func() error { return one.noted("begin", hook) })
}

// noted says whether the subject has written such a line.
func (one *shot) noted(what, hook string) error {
	lines, err := readHistory(filepath.Join(one.dir, "alloc", "history"))
	if err != nil {
		return err
	}
	for _, l := range lines {
		if l.what == what && l.hook == hook {
			return nil
		}
	}
	return fmt.Errorf("no %s %s in its history", what, hook)
}

// release lets the applications go on.
func release(all []*shot) {
	for _, one := range all {
		if one.point.hold != "" && one.dir != "" {
			_ = os.WriteFile(filepath.Join(one.dir, "alloc", "go-"+one.point.hold), nil, 0o644) // else it does not end, which is seen
		}
	}
}

// finish waits until a task runs that should, stops it, and waits for its end.
func (w *world) finish(ctx context.Context, one *shot) error {
	over := func() bool {
		return one.stub.ClientStatus == nomad.AllocClientStatusComplete || one.stub.ClientStatus == nomad.AllocClientStatusFailed
	}
	look := func() (err error) {
		stub, err := w.alloc(one.id)
		if err == nil {
			one.stub = stub
		}
		return err
	}
	if one.back = one.point.stop; !one.back {
		err := w.until(ctx, one, "runs again", func() error {
			if err := look(); err != nil {
				return err
			}
			if over() {
				return nil
			}
			if p := phase(one.dir); p != "running" && p != "paused" {
				return fmt.Errorf("phase %q", p)
			}
			return w.ask(ctx, one.stub, "GET", "/v1/task")
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		one.back, one.status = err == nil && !over(), one.stub.ClientStatus
		if _, _, err := w.cluster.Nomad.Jobs().Deregister(one.id, false, nil); err != nil {
			return err
		}
	}
	err := w.until(ctx, one, "ends", func() error {
		if err := look(); err != nil {
			return err
		}
		if !over() {
			return fmt.Errorf("it is %s", one.stub.ClientStatus)
		}
		return nil
	})
	one.ended = err == nil
	if one.back || one.status == "" {
		one.status = one.stub.ClientStatus
	}
	for _, e := range one.stub.TaskStates[taskName].Events {
		one.events = append(one.events, fmt.Sprintf("%s %s: %s", time.Unix(0, e.Time).Format("05.000"), e.Type, e.DisplayMessage))
	}
	return ctx.Err()
}

// collect reads the histories, has Nomad forget the allocations, and looks for what stays.
func (w *world) collect(ctx context.Context, all []*shot) error {
	for _, one := range all {
		var err error
		if one.history, err = readHistory(filepath.Join(one.dir, "alloc", "history")); err != nil {
			return err
		}
		if _, _, err := w.cluster.Nomad.Jobs().Deregister(one.id, true, nil); err != nil {
			return err
		}
	}
	if err := w.cluster.Nomad.System().GarbageCollect(); err != nil {
		return err
	}
	end := time.Now().Add(toLeave)
	for {
		var pids []int
		left := 0
		for _, one := range all {
			var mine []int
			var err error
			if one.left, mine, err = w.remains(one.stub.ID); err != nil {
				return err
			}
			left, pids = left+len(one.left), append(pids, mine...)
		}
		if left == 0 || time.Now().After(end) {
			clean(pids)
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
