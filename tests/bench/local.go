package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"retinue/tests/bench/wire"
)

// local measures what a replica costs while nothing happens, and what the
// application sees of its elector: latency of the local API and of events.
func (r *rig) local(ctx context.Context, idle time.Duration) ([]Fact, []Target, error) {
	contenders := []*contender{elector(10*time.Second, "safe"), apiLock("", lockOptions{ttl: "15s"}), consulLock()}
	if r.etcd != "" {
		contenders = append(contenders, etcdElection("", 60))
	}
	if r.nomadAddr != "" {
		contenders = append(contenders, varLock("", 0))
	}
	var pairs []*pair
	defer func() {
		for _, p := range pairs {
			p.stop()
		}
	}()
	for i, c := range contenders {
		p, err := r.newPair(ctx, fmt.Sprintf("l-%d", i), c, nodeA, nodeB)
		pairs = append(pairs, p)
		if err != nil {
			return nil, nil, err
		}
	}
	costs, err := idleCosts(ctx, pairs, idle)
	if err != nil {
		return nil, nil, err
	}
	ours, library := pairs[0], pairs[1]
	var facts []Fact
	memory, cpu := []string{}, []string{}
	for i, c := range costs[1:] {
		memory = append(memory, fmt.Sprintf("%s %s", contenders[i+1].name, megabytes(c.rss)))
		cpu = append(cpu, fmt.Sprintf("%s %.2f %%", contenders[i+1].name, c.cpu*100))
	}
	facts = append(facts,
		Fact{"resident memory of the process that holds one lock, idle", megabytes(costs[0].rss), strings.Join(memory, ", ")},
		Fact{fmt.Sprintf("processor time of it, over %v idle (of one CPU; lease 10s)", idle), fmt.Sprintf("%.2f %%", costs[0].cpu*100), strings.Join(cpu, ", ")})
	conns, err := connections(ours.members[0].main.pid(), r.clients[nodeA].http())
	if err != nil {
		return nil, nil, err
	}
	facts = append(facts, Fact{What: "connections to Consul, one election", Value: fmt.Sprint(conns)})
	state, key, err := r.localAPI(ctx, ours, library, 1000)
	if err != nil {
		return nil, nil, err
	}
	facts = append(facts, Fact{fmt.Sprintf("`GET` who leads: the local API, beside a `GET` of the key from the local Consul agent (n=%d)", state.N),
		fmt.Sprintf("p50 %s, p99 %s", human(state.P50), human(state.P99)), fmt.Sprintf("consul/api Lock: p50 %s, p99 %s", human(key.P50), human(key.P99))})
	const readers = 100
	first, last, err := r.fanOut(ctx, ours, readers, 50)
	if err != nil {
		return nil, nil, err
	}
	facts = append(facts, Fact{fmt.Sprintf("event to %d readers at once: after a blocking query of our own on the same agent had it; readers in one process (n=%d)", readers, last.N),
		fmt.Sprintf("first reader p50 %s, p99 %s; last reader p50 %s, p99 %s", human(first.P50), human(first.P99), human(last.P50), human(last.P99)), ""})
	ms := time.Millisecond
	return facts, []Target{
		{"local API: state", "p99 ≤ 1.00 ms", "p99 " + human(state.P99), state.P99 <= ms},
		{fmt.Sprintf("event fan-out after Consul's wake-up, last of %d readers", readers), "p50 ≤ 1.00 ms", "p50 " + human(last.P50) + ", p99 " + human(last.P99), last.P50 <= ms},
		{"memory of an elector", "≤ 25 MB", megabytes(costs[0].rss), costs[0].rss <= 25e6},
		{"processor time, idle", "≤ 0.1 %", fmt.Sprintf("%.2f %%", costs[0].cpu*100), costs[0].cpu <= 0.001},
	}, nil
}

// cost is what a process uses while nothing happens.
type cost struct {
	rss int64
	cpu float64 // share of one CPU
}

func megabytes(bytes int64) string { return fmt.Sprintf("%.1f MB", float64(bytes)/1e6) }

func idleCosts(ctx context.Context, pairs []*pair, window time.Duration) ([]cost, error) {
	var pids []int
	for _, p := range pairs {
		pids = append(pids, p.members[p.leader].main.pid())
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return nil, err
	}
	return costsOf(ctx, pids, window)
}

func costsOf(ctx context.Context, pids []int, window time.Duration) ([]cost, error) {
	costs, before := make([]cost, len(pids)), make([]time.Duration, len(pids))
	var err error
	for i, pid := range pids {
		if before[i], err = cpuTime(pid); err != nil {
			return nil, err
		}
	}
	began := time.Now()
	if err := pause(ctx, window); err != nil {
		return nil, err
	}
	for i, pid := range pids {
		after, err := cpuTime(pid)
		if err != nil {
			return nil, err
		}
		costs[i].cpu = float64(after-before[i]) / float64(time.Since(began))
		if costs[i].rss, err = rss(pid); err != nil {
			return nil, err
		}
	}
	return costs, nil
}

// localAPI asks an elector and an agent in turn, each over a connection that is kept.
func (r *rig) localAPI(ctx context.Context, ours, library *pair, n int) (state, key Summary, err error) {
	client := unixClient(ours.members[0].sock)
	defer client.CloseIdleConnections()
	ask := func(c *http.Client, url string) (time.Duration, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		err = doWith(c, req, nil)
		return time.Since(began), err
	}
	var states, keys []time.Duration
	for i := range n + 20 {
		s, err := ask(client, "http://elector/v1/elections/leader")
		if err != nil {
			return state, key, err
		}
		k, err := ask(http.DefaultClient, "http://"+r.clients[nodeA].http()+"/v1/kv/bench/"+library.name+"/.lock")
		if err != nil {
			return state, key, err
		}
		if i >= 20 { // connections are open, buffers made
			states, keys = append(states, s), append(keys, k)
		}
	}
	return summarize(states), summarize(keys), nil
}

// fanOut publishes values under leadership, and measures when readers of the other elector's events learn of each, compared to a
// blocking query of our own on the same agent.
func (r *rig) fanOut(ctx context.Context, p *pair, readers, n int) (first, last Summary, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	leader, follower := p.members[p.leader], p.members[1-p.leader]
	heard := make(chan int64, readers*4)
	var open sync.WaitGroup
	open.Add(readers)
	for range readers {
		go follow(ctx, follower.sock, open.Done, heard)
	}
	open.Wait()
	var state struct {
		Token uint64 `json:"token"`
	}
	if err := leader.get(ctx, "/v1/elections/leader", &state); err != nil {
		return first, last, err
	}
	woken := make(chan int64, n+8)
	go func() {
		for index := uint64(0); ctx.Err() == nil; {
			var err error
			if _, index, err = readKey(ctx, r.clients[follower.node].http(), "retinue/elections/"+p.name+"/leader", index); err == nil {
				woken <- wire.Now()
			}
		}
	}()
	<-woken // the present state
	var firsts, lasts []time.Duration
	for i := range n {
		if err := pause(ctx, 30*time.Millisecond); err != nil {
			return first, last, err
		}
		if err := publishValue(ctx, leader.sock, state.Token, i); err != nil {
			return first, last, err
		}
		at, times := int64(0), []int64{}
		for limit := time.After(5 * time.Second); at == 0 || len(times) < readers; {
			select {
			case at = <-woken:
			case t := <-heard:
				times = append(times, t)
			case <-limit:
				return first, last, fmt.Errorf("%d of %d readers heard of a change", len(times), readers)
			case <-ctx.Done():
				return first, last, ctx.Err()
			}
		}
		least, most := times[0], times[0]
		for _, t := range times {
			least, most = min(least, t), max(most, t)
		}
		// Our own query may come second: then the reader was not late.
		firsts = append(firsts, time.Duration(max(0, least-at)))
		lasts = append(lasts, time.Duration(max(0, most-at)))
	}
	return summarize(firsts), summarize(lasts), nil
}

// follow reads one stream of events and reports when the leader's record has changed.
func follow(ctx context.Context, sock string, open func(), heard chan<- int64) {
	client := unixClient(sock)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://elector/v1/elections/leader/events", nil)
	if err != nil {
		return
	}
	resp, err := client.Do(req)
	open()
	if err != nil {
		return
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if lines.Text() == "event: leader_changed" {
			heard <- wire.Now()
		}
	}
}

func publishValue(ctx context.Context, sock string, token uint64, value int) error {
	client := unixClient(sock)
	defer client.CloseIdleConnections()
	body, err := json.Marshal(map[string]any{"token": token, "value": value})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://elector/v1/elections/leader/value", io.NopCloser(bytes.NewReader(body)))
	if err != nil {
		return err
	}
	return doWith(client, req, nil)
}
