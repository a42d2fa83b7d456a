package leaderelection

import (
	"context"
	"fmt"
	"net/http"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// play is a Demo under way.
type play struct {
	Demo
	store  store
	watch  *watch
	client *client
}

// open waits for the first leader and says where people see it.
func (p *play) open(ctx context.Context) error {
	first, err := within(ctx, 30*time.Second, func(ctx context.Context) (tenure, error) { return p.watch.next(ctx, 0) })
	if err != nil {
		return err
	}
	p.Timeline.Event("replica %s leads, fencing token %d", short(first.Alloc), first.Token)
	p.Timeline.Note("see it in the Consul UI  %s/ui/dc1/services/%s-elector/instances", p.ConsulUI, job)
	p.Timeline.Note("its lock                 %s/ui/dc1/kv/retinue/elections/%s/%s/edit", p.ConsulUI, job, election)
	p.Timeline.Note("the job in the Nomad UI  %s/ui/jobs/%s", p.NomadUI, job)
	p.Timeline.Event("a client writes through the leader, one write after the other, each under the leader's token")
	return nil
}

func (p *play) acts() []func(context.Context) error {
	acts := []func(context.Context) error{p.handOver, p.crash, p.hang, p.electorCrash}
	if p.LoseNode != nil {
		return append(acts, p.nodeLoss)
	}
	p.Timeline.Note("no loss of a node: this cluster has one client node (`retinue dev up --clients 3`)")
	return acts
}

// handOver asks the leading application to step down, as a deployment would.
func (p *play) handOver(ctx context.Context) error {
	_, err := p.change(ctx, "planned hand-over", "planned_handover", p.Lease, func(ctx context.Context, leader tenure) error {
		status, err := post(ctx, "http://"+leader.Address+"/step-down", nil)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("the leading application answered %d", status)
		}
		return err
	})
	return err
}

// crash kills the leading application; its elector sees the connection close.
func (p *play) crash(ctx context.Context) error {
	_, err := p.change(ctx, "kill -9 of the leading application", "app_crash", p.Lease, func(ctx context.Context, leader tenure) error {
		return p.signal(ctx, leader, "app", "SIGKILL")
	})
	return err
}

// hang stops the leading application without ending it, then lets it go on, late.
func (p *play) hang(ctx context.Context) error {
	old, err := p.change(ctx, "SIGSTOP of the leading application", "app_hang", appLease, func(ctx context.Context, leader tenure) error {
		return p.signal(ctx, leader, "app", "SIGSTOP")
	})
	if err != nil {
		return err
	}
	if err := p.signal(ctx, old, "app", "SIGCONT"); err != nil {
		return err
	}
	status, err := post(ctx, "http://"+old.Address+"/write", map[string]uint64{"seq": 0})
	if err != nil {
		return fmt.Errorf("write to the application that woke up: %w", err)
	}
	p.Timeline.Event("SIGCONT: %s wakes up and answers a write with %d %s", short(old.Alloc), status, http.StatusText(status))
	p.Timeline.Check(status == http.StatusConflict || status == http.StatusPreconditionFailed,
		"a leader that slept too long knows it", "its answer to a write is %d", status)
	return nil
}

// electorCrash kills the elector beside the leader. Nomad restarts it; within
// the lease it takes up what it held, later the leadership moves.
func (p *play) electorCrash(ctx context.Context) error {
	old, err := p.watch.next(ctx, 0)
	if err != nil {
		return err
	}
	p.Timeline.Event("kill -9 of the leader's elector: %s", short(old.Alloc))
	began := time.Now()
	if err := p.signal(ctx, old, "elector", "SIGKILL"); err != nil {
		return err
	}
	sleep(ctx, p.Lease+slack) // by then the old deadline has passed, whatever it was
	_, err = within(ctx, p.worst()+30*time.Second, func(ctx context.Context) (any, error) { return nil, p.writeAfter(ctx, time.Now()) })
	if err != nil {
		return fmt.Errorf("kill -9 of the leader's elector: %w", err)
	}
	now, err := p.watch.next(ctx, 0)
	if err != nil {
		return err
	}
	log, _ := p.store.history()
	gap := longestGap(log, began)
	outcome := fmt.Sprintf("replica %s leads, fencing token %d", short(now.Alloc), now.Token)
	if now.Token == old.Token {
		outcome = fmt.Sprintf("Nomad restarted it within the lease: %s goes on under token %d", short(now.Alloc), now.Token)
	}
	p.Timeline.Event("%s: %.0f ms without a write", outcome, gap)
	p.within("kill -9 of the leader's elector", "elector_crash", gap, p.worst())
	return nil
}

// nodeLoss cuts the power of the leader's node.
func (p *play) nodeLoss(ctx context.Context) error {
	var node string
	_, err := p.change(ctx, "loss of the leader's node", "node_loss", p.worst(), func(ctx context.Context, leader tenure) error {
		alloc, err := p.allocation(ctx, leader)
		if err != nil {
			return err
		}
		node = alloc.NodeName
		return p.LoseNode(ctx, node)
	})
	if err != nil {
		return err
	}
	if err := p.ReturnNode(ctx, node); err != nil {
		return err
	}
	p.Timeline.Event("%s is back", node)
	return nil
}

// change causes a change of leadership, waits until the successor has written,
// and reports the times. It returns the leadership that ended.
func (p *play) change(ctx context.Context, what, name string, bound time.Duration, cause func(context.Context, tenure) error) (tenure, error) {
	old, err := within(ctx, time.Minute, func(ctx context.Context) (tenure, error) { return p.watch.next(ctx, 0) })
	if err != nil {
		return tenure{}, err
	}
	if err := p.writeAfter(ctx, time.Now()); err != nil {
		return tenure{}, err
	}
	p.Timeline.Event("%s: %s", what, short(old.Alloc))
	began := time.Now()
	if err := cause(ctx, old); err != nil {
		return tenure{}, fmt.Errorf("%s: %w", what, err)
	}
	limit := bound + 30*time.Second
	next, err := within(ctx, limit, func(ctx context.Context) (tenure, error) { return p.watch.next(ctx, old.Token) })
	if err != nil {
		return tenure{}, fmt.Errorf("%s: %w", what, err)
	}
	if _, err := within(ctx, limit, func(ctx context.Context) (any, error) { return nil, p.client.waitFor(ctx, old.Token) }); err != nil {
		return tenure{}, fmt.Errorf("%s: %w", what, err)
	}
	log, _ := p.store.history()
	gap := longestGap(log, began)
	locked := float64(next.Seen.Sub(began).Microseconds()) / 1000
	p.Timeline.Event("replica %s leads, fencing token %d: lock seen %.0f ms after the order, %.0f ms without a write", short(next.Alloc), next.Token, locked, gap)
	p.Timeline.Measure(name+"_lock_ms", locked)
	p.within(what, name, gap, bound)
	return old, nil
}

// within records how long nobody wrote, and checks the bound.
func (p *play) within(what, name string, gapMS float64, bound time.Duration) {
	p.Timeline.Measure(name+"_write_gap_ms", gapMS)
	p.Timeline.Check(gapMS > 0 && gapMS <= float64((bound+slack).Milliseconds()), what+": another write within "+bound.String(),
		"%.0f ms (a busy machine may add %s)", gapMS, slack)
}

// writeAfter waits for a write that the store accepted after a moment.
func (p *play) writeAfter(ctx context.Context, moment time.Time) error {
	_, err := within(ctx, time.Minute, func(ctx context.Context) (any, error) {
		for {
			log, _ := p.store.history()
			if n := len(log); n > 0 && log[n-1].at.After(moment) {
				return nil, nil
			}
			if !sleep(ctx, time.Millisecond) {
				return nil, fmt.Errorf("no write is accepted: %w", context.Cause(ctx))
			}
		}
	})
	return err
}

func (p *play) allocation(ctx context.Context, t tenure) (*nomad.Allocation, error) {
	alloc, _, err := p.Nomad.Allocations().Info(t.Alloc, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("look up allocation %s: %w", t.Alloc, err)
	}
	return alloc, nil
}

func (p *play) signal(ctx context.Context, t tenure, task, signal string) error {
	alloc, err := p.allocation(ctx, t)
	if err != nil {
		return err
	}
	if err := p.Nomad.Allocations().Signal(alloc, (&nomad.QueryOptions{}).WithContext(ctx), task, signal); err != nil {
		return fmt.Errorf("send %s to task %s of %s: %w", signal, task, short(t.Alloc), err)
	}
	return nil
}

// stale does what a leader does that was suspended and woke up too late: it writes under its old token.
func (p *play) stale(ctx context.Context, store string) error {
	past := p.watch.tenures()
	log, _ := p.store.history()
	old, now := past[len(past)-2], log[len(log)-1].Token
	status, err := post(ctx, store+"/writes", Write{Token: old.Token, Writer: old.Alloc, Seq: 0})
	if err != nil {
		return fmt.Errorf("write under an old token: %w", err)
	}
	verdict := "refused"
	if status != http.StatusPreconditionFailed {
		verdict = fmt.Sprintf("answered %d", status)
	}
	p.Timeline.Event("a late write under the old token %d, now that %d is in force: %s", old.Token, now, verdict)
	p.Timeline.Check(status == http.StatusPreconditionFailed, "a write under an old token is refused", "%s", verdict)
	return nil
}

// judge lays the store's log, the client's acknowledgements and Consul's record side by side.
func (p *play) judge() {
	log, refused := p.store.history()
	v := prove(log, refused, p.client.acknowledged())
	p.Timeline.Event("%d writes acknowledged, %d late writes refused: %s", v.acked, v.refused, v)
	p.Timeline.Measure("writes_acknowledged", float64(v.acked))
	p.Timeline.Measure("writes_lost", float64(v.lost))
	p.Timeline.Measure("stale_writes_accepted", float64(v.stale+v.shared))
	p.Timeline.Check(v.acked > 0 && v.lost == 0, "no acknowledged write is lost", "%d acknowledged, %d lost", v.acked, v.lost)
	p.Timeline.Check(v.stale == 0 && v.shared == 0, "no stale write is accepted", "%d behind a newer leader's, %d under a shared token", v.stale, v.shared)
	held := map[uint64]string{}
	for _, t := range p.watch.tenures() {
		held[t.Token] = t.Alloc
	}
	strangers := 0
	for _, w := range log {
		if held[w.Token] != w.Writer {
			strangers++
		}
	}
	p.Timeline.Check(strangers == 0, "who wrote is who Consul says led", "%d writes by others", strangers)
}
