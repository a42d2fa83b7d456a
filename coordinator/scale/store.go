package scale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
)

// Place is where in Consul the scalers and coordinators of a queue meet: PREFIX/scaler/QUEUE is the leader's, PREFIX/load/QUEUE/ID a
// coordinator's.
type Place struct {
	Prefix string // retinue/queues/NAME/
	Queue  string
}

func (p Place) seat() string          { return p.Prefix + "scaler/" + p.Queue }
func (p Place) loads() string         { return p.Prefix + "load/" + p.Queue + "/" }
func (p Place) load(id string) string { return p.loads() + id }

// How often a coordinator reports, when something has changed and when not, and when a report is no longer believed. The leader
// removes it then: a coordinator that lives writes it again.
const (
	reportEvery = 2 * time.Second
	reportIdle  = 20 * time.Second
	reportStale = time.Minute
)

// shareEvery is how often a coordinator with a rate looks who shares it.
const shareEvery = time.Second

// Reporter tells the scalers how a coordinator does.
type Reporter struct {
	Client *consulkit.Client
	Place  Place
	Load   func(context.Context) (Load, error)
	// Share is told which part of a rate that all coordinators have together is this one's, above 0 and at most 1. While Consul does not answer the
	// last one stays. nil: there is no rate.
	Share func(float64)
	Log   hclog.Logger
	Clock clock.Clock
}

// Run reports until ctx ends, and then removes the report. A report that cannot be written is no reason to stop working.
func (r Reporter) Run(ctx context.Context) {
	every := reportEvery
	if r.Share != nil {
		every = shareEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	others := reports{client: r.Client, place: r.Place, clock: r.Clock}
	var last Load
	var at clock.Instant
	failing := false
	for {
		if load, err := r.Load(ctx); err == nil {
			// Who has a share must be known to have items before it takes another.
			if now := r.Clock.Now(); load.busy() != last.busy() || load != last && now.Sub(at) >= reportEvery-every/2 || now.Sub(at) >= reportIdle {
				err := r.write(ctx, load)
				switch {
				case err == nil:
					last, at, failing = load, now, false
				case !failing && ctx.Err() == nil:
					failing = true
					r.Log.Warn("the load was not reported; the scaler counts without it", "error", err, "hint", hint.Of(err))
				}
			}
			last.ID = load.ID
			if r.Share != nil {
				r.share(ctx, &others, load)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.remove(last.ID)
			return
		}
	}
}

// share tells this coordinator's part of a rate.
func (r Reporter) share(ctx context.Context, others *reports, own Load) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	loads, err := others.read(ctx)
	if err != nil && loads == nil { // one that cannot be read does not hide the rest
		r.Log.Debug("the coordinators that share the rate are not known", "error", err)
		return
	}
	r.Share(share(loads, own))
}

// share is what is due to one of the coordinators that have items. Who has none may get some together with all others that have none.
func share(loads []Load, own Load) float64 {
	n := 1
	for _, l := range loads {
		if l.ID != own.ID && (l.busy() || !own.busy()) {
			n++
		}
	}
	return 1 / float64(n)
}

func (r Reporter) write(ctx context.Context, load Load) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	token, err := r.Client.Token()
	if err != nil {
		return err
	}
	value, err := json.Marshal(load)
	if err != nil {
		return err
	}
	_, err = r.Client.KV().Put(&api.KVPair{Key: r.Place.load(load.ID), Value: value}, (&api.WriteOptions{Token: token}).WithContext(ctx))
	return r.Client.Advice(err)
}

func (r Reporter) remove(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	token, err := r.Client.Token()
	if err == nil && id != "" {
		_, err = r.Client.KV().Delete(r.Place.load(id), (&api.WriteOptions{Token: token}).WithContext(ctx))
	}
	if err != nil {
		r.Log.Debug("the last report was not removed", "error", err) // the leader does it
	}
}

// reports are what the coordinators tell, as the leader reads them.
type reports struct {
	client *consulkit.Client
	place  Place
	clock  clock.Clock
	seen   map[string]seenReport // by key
}

type seenReport struct {
	index uint64
	at    clock.Instant
}

// read returns the reports that are believed. A coordinator's age is measured with the clock of the reader.
func (r *reports) read(ctx context.Context) ([]Load, error) {
	token, err := r.client.Token()
	if err != nil {
		return nil, err
	}
	pairs, _, err := r.client.KV().List(r.place.loads(), (&api.QueryOptions{Token: token}).WithContext(ctx))
	if err != nil {
		return nil, r.client.Advice(fmt.Errorf("read the coordinators' reports: %w", err))
	}
	now := r.clock.Now()
	next := make(map[string]seenReport, len(pairs))
	var loads []Load
	var errs []error
	for _, pair := range pairs {
		was, ok := r.seen[pair.Key]
		if !ok || was.index != pair.ModifyIndex {
			was = seenReport{pair.ModifyIndex, now}
		}
		if now.Sub(was.at) >= reportStale {
			_, _, err := r.client.KV().DeleteCAS(pair, (&api.WriteOptions{Token: token}).WithContext(ctx))
			errs = append(errs, err)
			continue
		}
		next[pair.Key] = was
		load, err := decodeLoad(pair.Value)
		if err != nil {
			errs = append(errs, fmt.Errorf("the report %s: %w", strings.TrimPrefix(pair.Key, r.place.loads()), err))
			continue
		}
		loads = append(loads, load)
	}
	r.seen = next
	return loads, errors.Join(errs...)
}

// decodeLoad reads a report, and refuses what cannot be one.
func decodeLoad(data []byte) (Load, error) {
	var l Load
	if err := json.Unmarshal(data, &l); err != nil {
		return l, err
	}
	const longest = 1e9 // seconds
	if l.ID == "" || !(l.BusyS >= 0 && l.BusyS < longest) || !(l.RunningS >= 0 && l.RunningS < longest) || l.Running < 0 || l.InHand < 0 || l.Index < -1 || l.Index > 1<<20 {
		return l, fmt.Errorf("%.100q is no report of a coordinator", data)
	}
	return l, nil
}
