package leaderelection_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/tests/harness"
)

// askEvery is the pace at which a watch asks every application whether it leads.
const askEvery = 10 * time.Millisecond

// patience is how often in a row an agent on a busy machine may not answer a watch.
const patience = 30

// watch follows an election from outside, in two ways: the lock and the record
// in Consul by a blocking query, and every application by asking it again and
// again. Both run until the test is over.
type watch struct {
	cluster *harness.Cluster
	job     string

	mu      sync.Mutex
	tenures []tenure
	reigns  []*reign
	errs    []string
}

// tenure is a lock as Consul shows it. until is zero while it is held.
type tenure struct {
	session, alloc string
	token          uint64
	from, until    time.Time
}

// reign is a time in which an application certainly led: from its first answer
// with a token to the sending of the last request that was answered with it.
type reign struct {
	alloc       string
	token       uint64
	first, last time.Time
}

// passage is what a watch saw since a moment.
type passage struct {
	tenures []tenure
	// unlocked is the longest time in which nobody had the lock, unled the
	// longest in which no application acted, a round of questions included.
	unlocked, unled time.Duration
	// moved is the time until the lock of another leadership was seen.
	moved time.Duration
}

func (o *orders) watch(t *testing.T) *watch {
	w := &watch{cluster: o.cluster, job: o.ID}
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { w.followLock(ctx, o.key()) })
	done.Go(func() { w.followApps(ctx) })
	t.Cleanup(func() {
		stop()
		done.Wait()
		w.judge(t)
	})
	harness.Eventually(t, 60*time.Second, "the watch sees the leader from both sides", func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.tenures) == 0 || len(w.reigns) == 0 {
			return fmt.Errorf("%d locks, %d applications", len(w.tenures), len(w.reigns))
		}
		return nil
	})
	return w
}

func (w *watch) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, fmt.Sprintf(format, args...))
}

// followLock keeps one blocking query open on the key of the election.
func (w *watch) followLock(ctx context.Context, key string) {
	var index uint64
	failing := 0
	for ctx.Err() == nil {
		q := (&consulapi.QueryOptions{WaitIndex: index, WaitTime: time.Minute}).WithContext(ctx)
		pair, meta, err := w.cluster.Consul.KV().Get(key, q)
		if ctx.Err() != nil {
			return
		}
		if failing++; err != nil && failing < patience {
			pause(ctx, time.Second)
			continue
		} else if err != nil {
			w.note("read %s: %v", key, err)
			return
		}
		failing, index = 0, meta.LastIndex
		w.sawLock(pair, time.Now())
	}
}

func (w *watch) sawLock(pair *consulapi.KVPair, now time.Time) {
	var record struct {
		Alloc string `json:"alloc"`
		Token uint64 `json:"token"`
	}
	held := pair != nil && pair.Session != ""
	if held {
		if err := json.Unmarshal(pair.Value, &record); err != nil {
			w.note("the record of the lock: %v", err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var last *tenure
	if n := len(w.tenures); n > 0 && w.tenures[n-1].until.IsZero() {
		last = &w.tenures[n-1]
	}
	switch {
	case held && last != nil && last.session == pair.Session && (last.token == 0 || record.Token == 0 || last.token == record.Token):
		last.token, last.alloc = max(last.token, record.Token), record.Alloc // the record follows the lock by a moment
	default:
		if last != nil {
			last.until = now
		}
		if held {
			w.tenures = append(w.tenures, tenure{session: pair.Session, alloc: record.Alloc, token: record.Token, from: now})
		}
	}
}

// followApps asks the applications of all allocations, also of those that come and go.
func (w *watch) followApps(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	known := map[string]bool{}
	failing := 0
	for ctx.Err() == nil {
		stubs, _, err := w.cluster.Nomad.Jobs().Allocations(w.job, false, (&nomadapi.QueryOptions{}).WithContext(ctx))
		if failing++; err == nil {
			failing = 0
		} else if ctx.Err() == nil && failing == patience {
			w.note("list allocations: %v", err)
			return
		} else {
			pause(ctx, time.Second)
		}
		for _, stub := range stubs {
			if known[stub.ID] || stub.ClientStatus != nomadapi.AllocClientStatusRunning {
				continue
			}
			info, _, err := w.cluster.Nomad.Allocations().Info(stub.ID, nil)
			if err != nil {
				continue
			}
			for _, port := range info.AllocatedResources.Shared.Ports {
				if port.Label == "http" {
					known[stub.ID] = true
					asking.Go(func() { w.ask(ctx, stub.ID, fmt.Sprintf("http://%s:%d/", port.HostIP, port.Value)) })
				}
			}
		}
		pause(ctx, 10*askEvery)
	}
}

// ask asks one application until the watch ends. An answer of somebody who has
// its address by now is no answer.
func (w *watch) ask(ctx context.Context, alloc, url string) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	var current *reign
	for ; ctx.Err() == nil; pause(ctx, askEvery) {
		sent := time.Now()
		token := askOnce(ctx, client, alloc, url)
		if current != nil && current.token != token {
			current = nil
		}
		if token == 0 {
			continue
		}
		w.mu.Lock()
		if current == nil {
			current = &reign{alloc: alloc, token: token, first: time.Now()}
			w.reigns = append(w.reigns, current)
		}
		current.last = sent
		w.mu.Unlock()
	}
}

func askOnce(ctx context.Context, client *http.Client, alloc, url string) uint64 {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return 0
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	var status struct {
		ID    string `json:"id"`
		Token uint64 `json:"token"`
	}
	if json.NewDecoder(resp.Body).Decode(&status) != nil || status.ID != alloc {
		return 0
	}
	return status.Token
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// now are copies of what was seen, the reigns in the order of their beginning.
func (w *watch) now() ([]tenure, []reign) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var reigns []reign
	for _, r := range w.reigns {
		reigns = append(reigns, *r)
	}
	slices.SortStableFunc(reigns, func(a, b reign) int { return a.first.Compare(b.first) })
	return slices.Clone(w.tenures), reigns
}

// since sums up what was seen since a moment. The first tenure is the one of that moment.
func (w *watch) since(begin time.Time) passage {
	tenures, reigns := w.now()
	var p passage
	for i, tn := range tenures {
		if !tn.until.IsZero() && tn.until.Before(begin) {
			continue
		}
		p.tenures = append(p.tenures, tn)
		if i == 0 || tn.from.Before(begin) {
			continue
		}
		if p.moved == 0 {
			p.moved = tn.from.Sub(begin)
		}
		p.unlocked = max(p.unlocked, tn.from.Sub(tenures[i-1].until))
	}
	var acted time.Time
	for _, r := range reigns {
		if !acted.IsZero() && r.first.After(begin) {
			p.unled = max(p.unled, r.first.Sub(acted))
		}
		if r.last.After(acted) {
			acted = r.last
		}
	}
	return p
}

// judge holds everything that was seen against the contract: one leader at a
// time, tokens that rise and are nobody else's.
func (w *watch) judge(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	errs := w.errs
	w.mu.Unlock()
	for _, err := range errs {
		t.Errorf("watch: %s", err)
	}
	tenures, reigns := w.now()
	for _, problem := range violations(tenures, reigns) {
		t.Error(problem)
	}
	if t.Failed() {
		t.Logf("locks and reigns:\n%s", story(tenures, reigns))
	}
}

func violations(tenures []tenure, reigns []reign) []string {
	var out []string
	holder := map[uint64]string{}
	for i, tn := range tenures {
		if i > 0 && tn.token != 0 && tn.token <= tenures[i-1].token {
			out = append(out, fmt.Sprintf("the token falls from %d to %d", tenures[i-1].token, tn.token))
		}
		holder[tn.token] = tn.alloc
	}
	for i, a := range reigns {
		if alloc, seen := holder[a.token]; seen && alloc != a.alloc {
			out = append(out, fmt.Sprintf("%s acts under token %d of %s", a.alloc, a.token, alloc))
		}
		for _, b := range reigns[i+1:] {
			if b.first.Before(a.last) {
				out = append(out, fmt.Sprintf("two lead: %s until %d ms after %s began (tokens %d, %d)", a.alloc, a.last.Sub(b.first).Milliseconds(), b.alloc, a.token, b.token))
			}
			if b.token < a.token {
				out = append(out, fmt.Sprintf("%s acts under token %d after %d", b.alloc, b.token, a.token))
			}
		}
	}
	return out
}

func story(tenures []tenure, reigns []reign) string {
	var b strings.Builder
	clock := func(t time.Time) string { return t.Format("05.000") }
	for _, tn := range tenures {
		fmt.Fprintf(&b, "lock  %s to %s token %d %s\n", clock(tn.from), clock(tn.until), tn.token, tn.alloc)
	}
	for _, r := range reigns {
		fmt.Fprintf(&b, "reign %s to %s token %d %s\n", clock(r.first), clock(r.last), r.token, r.alloc)
	}
	return b.String()
}
