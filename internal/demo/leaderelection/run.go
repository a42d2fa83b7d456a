// Package leaderelection demonstrates the leader-election pattern: the
// application, the store that it protects, and the faults. See elector/README.md
// for the promises that it checks.
package leaderelection

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/demo"
	"retinue/internal/nomadkit"
	"retinue/jobspecs"
)

const (
	job      = "leader-election" // the jobspec's default job_name
	election = "leader"          // the jobspec's default election
	replicas = 3
	pause    = 5 * time.Millisecond // between two writes of the client
)

// Demo is one run of the demonstration on a cluster.
type Demo struct {
	Nomad     *nomad.Client
	Consul    *consul.Client
	Vars      map[string]string // variables of the jobspec that this cluster needs, as HCL expressions
	StoreHost string            // address of this machine at which the tasks reach the store
	ConsulUI  string            // base address, for the links
	NomadUI   string
	Lease     time.Duration // lease of the jobspec on this cluster
	Timeline  *demo.Timeline

	// LoseNode cuts a client node's power and ReturnNode restores it. Nil where the cluster has no node to spare.
	LoseNode, ReturnNode func(ctx context.Context, node string) error
}

// worst is the bound for whatever dies without a certificate of death: Consul
// ends the session after twice its TTL and keeps the lock for one lease more.
func (d Demo) worst() time.Duration { return 3 * d.Lease }

// slack is what a busy machine may add to a bound before it counts as broken.
const slack = time.Second

// Run plays the demonstration and records its checks. An error means that it could not be played to its end.
func (d Demo) Run(ctx context.Context) error {
	p := play{Demo: d}
	base, stop, err := p.store.serve(d.StoreHost)
	if err != nil {
		return err
	}
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.watch = follow(ctx, d.Consul, "retinue/elections/"+job+"/"+election)
	p.client = &client{leader: p.watch.leader, http: &http.Client{}}
	if err := d.start(ctx, base); err != nil {
		return err
	}
	if err := p.open(ctx); err != nil {
		return err
	}
	writing, stopWriting := context.WithCancel(ctx)
	defer stopWriting()
	written := make(chan struct{})
	go func() {
		defer close(written)
		p.client.run(writing, pause)
	}()
	for _, act := range p.acts() {
		sleep(ctx, time.Second)
		if err := act(ctx); err != nil {
			return err
		}
	}
	if err := p.stale(ctx, base); err != nil {
		return err
	}
	sleep(ctx, time.Second)
	stopWriting()
	<-written
	p.judge()
	return nil
}

// start replaces the job of an earlier run and waits until all replicas are up.
func (d Demo) start(ctx context.Context, store string) error {
	source, err := jobspecs.Pattern("leader-election")
	if err != nil {
		return err
	}
	vars := map[string]string{
		"count":   fmt.Sprint(replicas),
		"app_env": fmt.Sprintf("{ DEMO_STORE = %s }", nomadkit.Literal(store)),
	}
	for name, value := range d.Vars {
		vars[name] = value
	}
	spec, err := nomadkit.Parse(ctx, d.Nomad, source, vars)
	if err != nil {
		return err
	}
	if err := nomadkit.Purge(ctx, d.Nomad, job); err != nil {
		return err
	}
	if err := nomadkit.Register(ctx, d.Nomad, spec); err != nil {
		return err
	}
	d.Timeline.Event("nomad job run jobspecs/leader-election: %d replicas, an elector beside each", replicas)
	_, err = within(ctx, 2*time.Minute, func(ctx context.Context) ([]*nomad.AllocationListStub, error) {
		return nomadkit.WaitRunning(ctx, d.Nomad, job, replicas)
	})
	if err != nil {
		return err
	}
	d.Timeline.Event("%d replicas run", replicas)
	return nil
}

func post(ctx context.Context, url string, body any) (status int, err error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

func within[T any](ctx context.Context, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

// short is the form of an allocation ID that Nomad prints.
func short(alloc string) string {
	if len(alloc) > 8 {
		return alloc[:8]
	}
	return alloc
}
