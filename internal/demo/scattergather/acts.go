package scattergather

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/demo/artifact"
)

// How long each act lasts under load, and what a busy machine may add to a
// bound before it counts as broken.
const (
	warmUp = 4 * time.Second // until the roots know how fast their leaves are
	calm   = 6 * time.Second
	fault  = 8 * time.Second
	settle = time.Second // until a frozen replica is left alone
	slack  = 100         // ms

	hiccup      = 200 * time.Millisecond
	hiccupEvery = 700 * time.Millisecond
)

// play is a Demo under way.
type play struct {
	Demo
	shelf            artifact.Shelf
	artifacts        string // base address of the shelf
	hedged, unhedged *client
	usual            summary // of the hedged root without faults
	began            time.Time
	lost             string // the node that was lost and is not back yet
}

// open finds the roots and shows a search.
func (p *play) open(ctx context.Context, questions []question) error {
	for job, to := range map[string]**client{Job: &p.hedged, UnhedgedJob: &p.unhedged} {
		roots, err := p.passing(ctx, job, 1)
		if err != nil {
			return err
		}
		*to = newClient(fmt.Sprintf("http://%s:%d", roots[0].Service.Address, roots[0].Service.Port), questions)
	}
	p.began = time.Now()
	first := p.hedged.ask(ctx, questions[0])
	if first.failure != "" {
		return fmt.Errorf("the first query: %s", first.failure)
	}
	var found []string
	for _, h := range questions[0].hits[:min(3, len(questions[0].hits))] {
		found = append(found, fmt.Sprintf("%s %.2f", h.ID, h.Score))
	}
	p.Timeline.Event("search for %q: %s ... in %.0f ms, coverage %s of %d shards", questions[0].query, strings.Join(found, ", "), first.ms, first.coverage, shards)
	p.Timeline.Note("try it yourself          curl '%s'", searchURL(p.hedged.base, questions[0].query))
	p.Timeline.Note("leaves in the Consul UI  %s/ui/dc1/services/%s-leaf/instances", p.ConsulUI, Job)
	p.Timeline.Note("the job in the Nomad UI  %s/ui/jobs/%s", p.NomadUI, Job)
	return nil
}

func (p *play) acts() []func(context.Context) error {
	acts := []func(context.Context) error{p.undisturbed, p.hiccups, p.freeze}
	if p.LoseNode != nil {
		return append(acts, p.nodeLoss)
	}
	p.Timeline.Note("no loss of a node: this cluster has one client node (`retinue dev up --clients 3`)")
	return acts
}

// undisturbed is what the faults are compared with.
func (p *play) undisturbed(ctx context.Context) error {
	p.Timeline.Event("%.0f queries a second to each root, each answer compared with the one index", float64(time.Second)/float64(pace))
	if err := pause(ctx, warmUp); err != nil {
		return err
	}
	from := time.Now()
	if err := pause(ctx, calm); err != nil {
		return err
	}
	to := time.Now()
	p.usual = p.hedged.between(from, to)
	p.Timeline.Event("undisturbed, hedging:  %s, %d hedges", p.usual, p.usual.sent)
	p.Timeline.Event("undisturbed, without:  %s", p.unhedged.between(from, to))
	p.Timeline.Measure("undisturbed_p99_ms", p.usual.quantile(0.99))
	p.Timeline.Measure("undisturbed_unhedged_p99_ms", p.unhedged.between(from, to).quantile(0.99))
	return nil
}

// hiccups stop one leaf after the other for a moment, as a garbage collection
// or a busy disk does. No leaf is ever gone, so that hedging alone can help.
func (p *play) hiccups(ctx context.Context) error {
	leaves, err := p.leaves(ctx)
	if err != nil {
		return err
	}
	p.Timeline.Event("every %s another leaf stops for %s", hiccupEvery, hiccup)
	from := time.Now()
	for n := 0; time.Since(from) < fault; n++ {
		leaf := leaves[n*7%len(leaves)] // not one neighbour after the other
		for _, step := range []struct {
			signal string
			after  time.Duration
		}{{"SIGSTOP", hiccup}, {"SIGCONT", hiccupEvery - hiccup}} {
			if err := p.signal(ctx, leaf, step.signal); err != nil {
				return err
			}
			if err := pause(ctx, step.after); err != nil {
				return err
			}
		}
	}
	with, without, err := p.report(ctx, "hiccups", "hiccups", from, time.Now())
	if err != nil {
		return err
	}
	// A p99 of so few requests is the second slowest, which a busy machine decides: what counts is how many were slow.
	half := float64(hiccup.Milliseconds()) / 2
	fast, slow := with.slower(half), without.slower(half)
	p.Timeline.Measure("hiccups_slow", float64(fast))
	p.Timeline.Measure("hiccups_unhedged_slow", float64(slow))
	if p.busy() || slow < fewSlow {
		return nil
	}
	p.Timeline.Check(fast < slow, "hiccups: hedging cuts the tail", "%d of %d took longer than %.0f ms, without %d of %d", fast, with.requests, half, slow, without.requests)
	return nil
}

// fewSlow is how many slow requests prove nothing: the root went round the hiccups.
const fewSlow = 6

// busy says, also to people, that times prove nothing here: others use this
// machine so much that even without a fault an answer may take half a hiccup.
func (p *play) busy() bool {
	usual := p.usual.quantile(0.99)
	if usual <= float64(hiccup.Milliseconds())/2 {
		return false
	}
	p.Timeline.Note("this machine is so busy (p99 %.0f ms without faults) that times prove nothing", usual)
	return true
}

// freeze stops one replica without ending it: its connections stay open, and no error is ever seen.
func (p *play) freeze(ctx context.Context) error {
	leaves, err := p.leaves(ctx)
	if err != nil {
		return err
	}
	victim := leaves[0]
	p.Timeline.Event("SIGSTOP of one replica of %s, on %s", strings.Replace(victim.TaskGroup, "leaf-", "shard ", 1), victim.NodeName)
	from := time.Now()
	if err := p.signal(ctx, victim, "SIGSTOP"); err != nil {
		return err
	}
	if err := pause(ctx, fault); err != nil {
		return err
	}
	to := time.Now()
	if err := p.signal(ctx, victim, "SIGCONT"); err != nil {
		return err
	}
	if _, _, err := p.report(ctx, "frozen replica", "frozen", from, to); err != nil {
		return err
	}
	after := p.hedged.between(from.Add(settle), to)
	bound := 2*p.usual.quantile(0.99) + slack
	p.Timeline.Measure("frozen_after_1s_p99_ms", after.quantile(0.99))
	if p.busy() {
		return nil
	}
	p.Timeline.Check(after.quantile(0.99) <= bound, fmt.Sprintf("a frozen replica: %s later p99 is twice the usual at most", settle),
		"%.0f ms, usually %.0f ms (a busy machine may add %d ms)", after.quantile(0.99), p.usual.quantile(0.99), slack)
	return nil
}

// nodeLoss cuts the power of a node with leaves; the roots run elsewhere.
func (p *play) nodeLoss(ctx context.Context) error {
	node, count, err := p.victim(ctx)
	if err != nil {
		return err
	}
	// What is promised needs another replica of every shard: Consul may have taken out the one that was frozen until its next check.
	if _, err := p.passing(ctx, Job+"-leaf", shards*replicas); err != nil {
		return err
	}
	if err := pause(ctx, settle); err != nil { // the roots hear of it, too
		return err
	}
	p.Timeline.Event("loss of %s with %d of %d leaves", node, count, shards*replicas)
	from := time.Now()
	p.lost = node
	if err := p.LoseNode(ctx, node); err != nil {
		return err
	}
	if err := pause(ctx, fault); err != nil {
		return err
	}
	_, _, err = p.report(ctx, "lost node", "node_loss", from, time.Now())
	return err
}

// restore brings the lost node back. Its leaves follow, and nothing that is shown waits for them.
func (p *play) restore(ctx context.Context) error {
	if p.lost == "" {
		return nil
	}
	if err := p.ReturnNode(ctx, p.lost); err != nil {
		return err
	}
	p.Timeline.Event("%s is back, its leaves follow", p.lost)
	return nil
}

// report sets both roots side by side for the time of a fault.
func (p *play) report(ctx context.Context, what, name string, from, to time.Time) (with, without summary, err error) {
	if err := pause(ctx, deadline+200*time.Millisecond); err != nil { // what began just before the end has its deadline
		return with, without, err
	}
	with, without = p.hedged.between(from, to), p.unhedged.between(from, to)
	p.Timeline.Event("%s, hedging:  %s, %d hedges, %d won", what, with, with.sent, with.won)
	p.Timeline.Event("%s, without:  %s%s", what, without, example(without))
	p.Timeline.Measure(name+"_p99_ms", with.quantile(0.99))
	p.Timeline.Measure(name+"_unhedged_p99_ms", without.quantile(0.99))
	p.Timeline.Measure(name+"_failed", float64(with.failed))
	p.Timeline.Measure(name+"_unhedged_failed", float64(without.failed))
	p.Timeline.Check(with.failed == 0 && with.requests > 0, what+": no request fails", "%d of %d failed%s", with.failed, with.requests, example(with))
	return with, without, nil
}

func example(s summary) string {
	if s.failure == "" {
		return ""
	}
	return " (" + s.failure + ")"
}

// judge looks at all answers of the run.
func (p *play) judge() {
	with, without := p.hedged.between(p.began, time.Now()), p.unhedged.between(p.began, time.Now())
	wrong, answers := with.wrong+without.wrong, with.requests+without.requests-with.failed-without.failed
	difference := with.difference + without.difference
	p.Timeline.Event("%d answers, coverage 1 each: %d wrong", answers, wrong)
	p.Timeline.Measure("answers", float64(answers))
	p.Timeline.Measure("wrong_answers", float64(wrong))
	detail := fmt.Sprintf("%d answers, %d differ", answers, wrong)
	if difference != "" {
		detail += ": " + difference
	}
	p.Timeline.Check(wrong == 0 && answers > 0, "every answer is whole, and that of a single index over the whole corpus", "%s", detail)
	extra := 100 * float64(with.sent) / float64(max(with.requests, 1)*shards)
	p.Timeline.Measure("hedged_calls_percent", extra)
	p.Timeline.Check(extra <= 100*budget+0.2, "hedges stay within their budget", "%.2f %% of leaf calls, %.0f %% allowed", extra, 100*budget)
}

// leaves lists the running leaves.
func (p *play) leaves(ctx context.Context) ([]*nomad.AllocationListStub, error) {
	allocs, _, err := p.Nomad.Jobs().Allocations(Job, false, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("list the leaves: %w", err)
	}
	var leaves []*nomad.AllocationListStub
	for _, a := range allocs {
		if a.ClientStatus == nomad.AllocClientStatusRunning && strings.HasPrefix(a.TaskGroup, "leaf-") {
			leaves = append(leaves, a)
		}
	}
	if len(leaves) == 0 {
		return nil, errors.New("no leaf runs")
	}
	return leaves, nil
}

// victim is the node with the most leaves that runs no root.
func (p *play) victim(ctx context.Context) (node string, count int, err error) {
	roots := map[string]bool{}
	for _, job := range []string{Job, UnhedgedJob} {
		allocs, _, err := p.Nomad.Jobs().Allocations(job, false, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return "", 0, fmt.Errorf("find the roots: %w", err)
		}
		for _, a := range allocs {
			if a.TaskGroup == "root" && a.ClientStatus == nomad.AllocClientStatusRunning {
				roots[a.NodeName] = true
			}
		}
	}
	leaves, err := p.leaves(ctx)
	if err != nil {
		return "", 0, err
	}
	on := map[string]int{}
	for _, l := range leaves {
		on[l.NodeName]++
		if !roots[l.NodeName] && on[l.NodeName] > on[node] {
			node = l.NodeName
		}
	}
	if node == "" {
		return "", 0, errors.New("a root runs on every node with leaves")
	}
	return node, on[node], nil
}

func (p *play) signal(ctx context.Context, alloc *nomad.AllocationListStub, signal string) error {
	err := p.Nomad.Allocations().Signal(&nomad.Allocation{ID: alloc.ID, NodeID: alloc.NodeID}, (&nomad.QueryOptions{}).WithContext(ctx), "leaf", signal)
	if err != nil {
		return fmt.Errorf("send %s to %s of %s: %w", signal, alloc.TaskGroup, alloc.ID[:8], err)
	}
	return nil
}

// passing waits until so many instances of a service pass their checks.
func (p *play) passing(ctx context.Context, service string, count int) ([]*consul.ServiceEntry, error) {
	return within(ctx, 3*time.Minute, func(ctx context.Context) ([]*consul.ServiceEntry, error) {
		var index uint64
		for {
			q := (&consul.QueryOptions{WaitIndex: index, WaitTime: 5 * time.Second}).WithContext(ctx)
			entries, meta, err := p.Consul.Health().Service(service, "", true, q)
			if err != nil {
				return nil, fmt.Errorf("wait for %d instances of %s: %w", count, service, err)
			}
			if len(entries) >= count {
				return entries, nil
			}
			index = meta.LastIndex
		}
	})
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
