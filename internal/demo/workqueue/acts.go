package workqueue

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// How the faults come, and how long the work may take at all.
const (
	between  = 3 * time.Second // between two faults, and as much again at random
	patience = 5 * time.Minute
	kinds    = 3 // every so many faults each kind has come once
	faults   = 9 // at least, while there is work
)

// disturb kills tasks at random until all files are through both stages.
func (p *play) disturb(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p.Timeline.Event("every %.1f to %.1f s a worker, a coordinator or the broker is killed with kill -9, at random", between.Seconds(), 2*between.Seconds())
	order := []string{}
	reported, portion := time.Now(), (len(p.files)-p.published)/faults+1
	for through := 0; through < len(p.files); {
		if err := pause(ctx, between+rand.N(between)); err != nil {
			return fmt.Errorf("%d of %d files were through after %s: %w", through, len(p.files), patience, err)
		}
		if len(order) == 0 {
			order = []string{"worker", "coordinator", "broker"}
			rand.Shuffle(kinds, func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		if done, err := p.kill(ctx, order[0]); err != nil {
			return err
		} else if done {
			order = order[1:]
			if err := p.publish(ctx, min(p.published+portion, len(p.files))); err != nil {
				return err
			}
		}
		// The broker may be down at the moment.
		if n, err := p.out.Waiting(ctx); err == nil {
			through = n
		}
		if time.Since(reported) > 8*time.Second {
			reported = time.Now()
			p.Timeline.Event("%d of %d files are through; killed: %s", through, len(p.files), p.kills())
		}
	}
	took := time.Since(p.began)
	p.Timeline.Event("all are through after %.0f s; killed: %s", took.Seconds(), p.kills())
	p.Timeline.Measure("files_per_second", float64(len(p.files))/took.Seconds())
	return nil
}

func (p *play) kills() string {
	return fmt.Sprintf("%d workers, %d coordinators, %d brokers", p.killed["worker"], p.killed["coordinator"], p.killed["broker"])
}

// kill ends one running task of a kind, as a crash would. False: none runs at the moment.
func (p *play) kill(ctx context.Context, task string) (bool, error) {
	stubs, _, err := p.Nomad.Jobs().Allocations(Job, false, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return false, fmt.Errorf("find something to kill: %w", err)
	}
	var up []*nomad.AllocationListStub
	for _, a := range stubs {
		if s := a.TaskStates[task]; a.ClientStatus == nomad.AllocClientStatusRunning && s != nil && s.State == "running" {
			up = append(up, a)
		}
	}
	if len(up) == 0 {
		return false, nil
	}
	a := up[rand.IntN(len(up))]
	err = p.Nomad.Allocations().Signal(&nomad.Allocation{ID: a.ID, NodeID: a.NodeID}, (&nomad.QueryOptions{}).WithContext(ctx), task, "SIGKILL")
	if err != nil {
		return false, nil // it has ended in this moment
	}
	p.killed[task]++
	return true, nil
}

// judge compares what came out with what had to.
func (p *play) judge(ctx context.Context) error {
	came := map[string]int{}
	wrong, strange := 0, 0
	index := map[string]int{}
	for i := range p.files {
		index[name(i)] = i
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		items, err := p.out.Take(ctx)
		if err != nil {
			return fmt.Errorf("read the results: %w", err)
		}
		if len(items) == 0 {
			break
		}
		for _, it := range items {
			id, _, _ := strings.Cut(it.ID, "/")
			i, known := index[id]
			sum, _, _ := strings.Cut(string(it.Body), " ")
			switch {
			case !known:
				strange++
			case sum != p.files[i].sum:
				wrong++
			}
			came[id]++
		}
	}
	lost, twice := 0, 0
	for i := range p.files {
		switch n := came[name(i)]; {
		case n == 0:
			lost++
		case n > 1:
			twice += n - 1
		}
	}
	total := len(p.files)
	p.Timeline.Measure("lost", float64(lost))
	p.Timeline.Measure("duplicate_effects", float64(twice))
	p.Timeline.Check(lost == 0, "no item is lost", "%d files in, %d came out: lost %d", total, total-lost, lost)
	p.Timeline.Check(twice == 0 && strange == 0, "each output goes on exactly once", "duplicate effects %d, unknown %d", twice, strange)
	p.Timeline.Check(wrong == 0, "each output is right", "%d of %d checksums differ from this program's own", wrong, total)
	return p.judgeRecords(ctx, total)
}

// judgeRecords looks at the commit point: each stage has one record for each file, and none was ever written twice.
func (p *play) judgeRecords(ctx context.Context, total int) error {
	repeated := 0
	for _, stage := range []string{extract, digest} {
		pairs, _, err := p.Consul.KV().List(p.records()+"commit/"+Job+"-"+stage+"/", (&consul.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return fmt.Errorf("read the records: %w", err)
		}
		done, overwritten := 0, 0
		for _, pair := range pairs {
			var rec struct {
				State   string `json:"state"`
				Attempt int    `json:"attempt"`
			}
			if err := json.Unmarshal(pair.Value, &rec); err != nil {
				return fmt.Errorf("read the record %s: %w", pair.Key, err)
			}
			if rec.State == "done" {
				done++
			}
			if rec.Attempt > 1 {
				repeated++
			}
			if pair.CreateIndex != pair.ModifyIndex {
				overwritten++
			}
		}
		p.Timeline.Check(done == total && len(pairs) == total && overwritten == 0, "stage "+stage+" committed each item once", "%d records, %d done, %d written twice", len(pairs), done, overwritten)
	}
	p.Timeline.Measure("items_with_failed_attempts", float64(repeated))
	for _, task := range []string{"worker", "coordinator", "broker"} {
		p.Timeline.Measure(task+"s_killed", float64(p.killed[task]))
	}
	p.Timeline.Check(p.killed["worker"] > 0 && p.killed["coordinator"] > 0 && p.killed["broker"] > 0, "there were faults of every kind", "killed: %s", p.kills())
	return nil
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
