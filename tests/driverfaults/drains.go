package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/internal/nomadkit"
	"retinue/jobspecs"
	"retinue/tests/drivercluster"
)

const (
	users   = 3 // of each server
	between = 20 * time.Millisecond
)

// counter is a server with its state in its memory, and the users who count in it, each one increment after the other. A user
// who gets no answer sends the same increment again, until it has one.
type counter struct {
	w      *world
	id     string
	driver string
	users  sync.WaitGroup

	mu      sync.Mutex
	address string
	acked   uint64
	longest time.Duration
}

// drainNodes moves a server of each driver between the two clients, under load, as often as is asked.
func (w *world) drainNodes(ctx context.Context, r *report, end time.Time) error {
	source, err := jobspecs.Pattern("lifecycle")
	if err != nil {
		return err
	}
	if err := w.eligible(ctx, other, false); err != nil {
		return err
	}
	counting, stop := context.WithCancel(ctx)
	defer stop()
	var all []*counter
	for _, driver := range w.drivers {
		c := &counter{w: w, id: "drained-" + strings.ReplaceAll(driver, "_", "-"), driver: driver}
		vars := map[string]string{"job_name": c.id, "driver": driver, "network_mode": "host", "retinue_image": w.cluster.JobVars()["retinue_image"]}
		if driver == devcluster.DriverRawExec {
			vars["retinue_command"] = w.Retinue
		}
		for name, value := range vars {
			vars[name] = nomadkit.Literal(value)
		}
		job, err := nomadkit.Parse(ctx, w.cluster.Nomad, source, vars)
		if err != nil {
			return err
		}
		// A drain waits until the task is healthy elsewhere: by default for ten seconds.
		job.TaskGroups[0].Migrate = &nomad.MigrateStrategy{MaxParallel: new(1), HealthCheck: new("task_states"), MinHealthyTime: new(100 * time.Millisecond), HealthyDeadline: new(time.Minute)}
		if err := nomadkit.Register(ctx, w.cluster.Nomad, job); err != nil {
			return err
		}
		all = append(all, c)
	}
	for _, c := range all {
		if _, err := nomadkit.WaitRunning(ctx, w.cluster.Nomad, c.id, 1); err != nil {
			return err
		}
		for user := range users {
			c.users.Go(func() { c.count(counting, fmt.Sprintf("user-%d", user)) })
		}
	}
	from, to := target, other
	for n := range w.Drains {
		if time.Now().After(end) {
			break
		}
		if err := w.drainOne(ctx, all, from, to); err != nil {
			return fmt.Errorf("drain %d: %w", n, err)
		}
		r.Drains++
		r.Moves += len(all)
		from, to = to, from
		if n%10 == 9 {
			w.Log("%d drains", n+1)
		}
	}
	stop()
	for _, c := range all {
		c.users.Wait()
		if err := c.judge(ctx, r); err != nil {
			return err
		}
	}
	for _, c := range all {
		if err := nomadkit.Purge(ctx, w.cluster.Nomad, c.id); err != nil {
			return err
		}
	}
	return w.eligible(ctx, from, true)
}

// drainOne drains a node, and waits until every server counts on the other one.
func (w *world) drainOne(ctx context.Context, all []*counter, from, to string) error {
	if err := w.eligible(ctx, to, true); err != nil {
		return err
	}
	node, err := w.cluster.Node(ctx, from)
	if err != nil {
		return err
	}
	before := make([]uint64, len(all))
	for i, c := range all {
		before[i] = c.acks()
	}
	q := (&nomad.WriteOptions{}).WithContext(ctx)
	if _, err := w.cluster.Nomad.Nodes().UpdateDrainOpts(node.ID, &nomad.DrainOptions{DrainSpec: &nomad.DrainSpec{Deadline: time.Minute}}, q); err != nil {
		return err
	}
	return drivercluster.Eventually(ctx, patience, from+" is drained", func() error {
		for i, c := range all {
			stub, err := c.stub()
			if err != nil {
				return err
			}
			if stub.NodeName != to {
				return fmt.Errorf("%s is on %s", c.id, stub.NodeName)
			}
			if c.acks() < before[i]+2*users { // some of these were answered after the move
				return fmt.Errorf("%s does not count", c.id)
			}
		}
		info, _, err := w.cluster.Nomad.Nodes().Info(node.ID, nil)
		if err == nil && info.DrainStrategy != nil {
			err = errors.New("it is draining")
		}
		return err
	})
}

// eligible says whether a node takes tasks.
func (w *world) eligible(ctx context.Context, name string, yes bool) error {
	node, err := w.cluster.Node(ctx, name)
	if err != nil {
		return err
	}
	_, err = w.cluster.Nomad.Nodes().ToggleEligibility(node.ID, yes, (&nomad.WriteOptions{}).WithContext(ctx))
	return err
}

// stub is the allocation of the server that runs and shall run.
func (c *counter) stub() (*nomad.AllocationListStub, error) {
	stubs, _, err := c.w.cluster.Nomad.Jobs().Allocations(c.id, false, nil)
	if err != nil {
		return nil, err
	}
	for _, s := range stubs {
		if t := s.TaskStates["server"]; s.DesiredStatus == "run" && s.ClientStatus == "running" && t != nil && t.State == "running" {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%s does not run", c.id)
}

func (c *counter) acks() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acked
}

// count sends increments until ctx ends; what was begun is brought to its end, so that the sum is known.
func (c *counter) count(ctx context.Context, user string) {
	for seq := 1; ctx.Err() == nil; seq++ {
		began := time.Now()
		for {
			_, err := c.ask(http.MethodPost, fmt.Sprintf("/increment?client=%s&seq=%d", user, seq))
			if err == nil {
				break
			}
			if time.Since(began) > patience {
				c.w.Log("%s, %s: increment %d: %v", c.id, user, seq, err)
				return // it is not acknowledged
			}
			time.Sleep(between)
		}
		c.mu.Lock()
		c.acked++
		c.longest = max(c.longest, time.Since(began))
		c.mu.Unlock()
		time.Sleep(between)
	}
}

// ask sends a request to where the server is now.
func (c *counter) ask(method, path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c.mu.Lock()
	address := c.address
	c.mu.Unlock()
	if address == "" {
		stub, err := c.stub()
		if err != nil {
			return "", err
		}
		alloc, _, err := c.w.cluster.Nomad.Allocations().Info(stub.ID, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return "", err
		}
		port := alloc.AllocatedResources.Shared.Ports[0]
		address = fmt.Sprintf("%s:%d", port.HostIP, port.Value)
	}
	body, err := send(ctx, method, "http://"+address+path)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.address = address; err != nil {
		c.address = "" // it may have moved
	}
	return body, err
}

func send(ctx context.Context, method, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %d", resp.StatusCode)
	}
	return strings.TrimSpace(string(body)), err
}

// judge compares the server's counter with what its users were told.
func (c *counter) judge(ctx context.Context, r *report) error {
	var value uint64
	if err := drivercluster.Eventually(ctx, patience, c.id+" tells its counter", func() error {
		body, err := c.ask(http.MethodGet, "/value")
		if err == nil {
			value, err = strconv.ParseUint(body, 10, 64)
		}
		return err
	}); err != nil {
		return err
	}
	acked := c.acks()
	r.Increments += acked
	r.Longest = max(r.Longest, c.longest.Seconds())
	if value != acked || acked == 0 {
		r.find(finding{noLoss, c.driver, fmt.Sprintf("%d acknowledged, the counter is %d", acked, value)})
	}
	return nil
}
