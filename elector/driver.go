package elector

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/hint"
)

// trouble logs what goes wrong with Consul when it begins, changes and ends, not every time it is met.
type trouble struct {
	mu   sync.Mutex
	last map[string]string // by kind of request
}

func (t *trouble) note(log hclog.Logger, kind string, err error) {
	text := ""
	if err != nil && !gone(err) { // a session that is gone is told as an event
		text = err.Error()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last[kind] == text {
		return
	}
	if t.last == nil {
		t.last = map[string]string{}
	}
	t.last[kind] = text
	switch h := hint.Of(err); {
	case text == "":
		log.Info("Consul answers again", "request", kind)
	case h != "":
		log.Warn("Consul does not do what is asked", "request", kind, "error", text, "hint", h)
	default:
		log.Warn("Consul does not do what is asked", "request", kind, "error", text)
	}
}

// The driver's goroutines talk to the store, one request each, and post what came of it. None of them touches the machine.

// renewAgain is how long a renewal may go unanswered before another is sent beside it: the first may hang, or Consul may be slow.
func (c Config) renewAgain() time.Duration { return c.Lease / 4 }

// maxRenewals of one session are under way at once.
const maxRenewals = 3

// renewTimeout bounds one renewal. A later answer would be worth less than a quarter of a lease: a leader by that would be suspended
// before the next.
func (c Config) renewTimeout() time.Duration { return maxRenewals * c.renewAgain() }

// commitTimeout bounds one transaction, which has to go through Raft.
func (c Config) commitTimeout() time.Duration { return max(c.renewTimeout(), 500*time.Millisecond) }

func (el *Elector) open(ctx context.Context, spec SessionSpec) {
	req, cancel := context.WithTimeout(ctx, max(2*el.cfg.Lease, 5*time.Second))
	defer cancel()
	sent := el.clock.Now()
	session, err := el.store.Open(req, spec)
	switch {
	case err != nil && ctx.Err() == nil:
		el.trouble.note(el.log, "session", err)
	case err == nil:
		el.trouble.note(el.log, "session", nil)
		sent = max(sent, session.Sent)
		el.log.Info("session opened", "session", session.ID, "node", session.Node, "profile", el.cfg.profile(session), "ttl", session.TTL.String(), "lease", el.cfg.Lease.String(),
			"revocation", el.cfg.Revocation, "worst_case_failover", el.cfg.worstFailover(session.TTL).String())
		if session.Warning != "" {
			el.log.Warn(session.Warning)
		}
	}
	el.post(ctx, evOpened{session: session, sent: sent, err: err})
}

func (el *Elector) renew(ctx context.Context, session string) {
	req, cancel := context.WithTimeout(ctx, el.cfg.renewTimeout())
	defer cancel()
	sent := el.clock.Now() // before the request: the lease begins here
	err := el.store.Renew(req, session)
	received := el.clock.Now()
	el.metrics.renewed(received.Sub(sent), err)
	if ctx.Err() == nil {
		el.trouble.note(el.log, "renewal", err)
	}
	el.post(ctx, evRenewed{session: session, sent: sent, received: received, err: err})
}

func (el *Elector) commit(ctx context.Context, b Batch) {
	req, cancel := context.WithTimeout(ctx, el.cfg.commitTimeout())
	defer cancel()
	start := el.clock.Now()
	result, err := el.store.Commit(req, b)
	el.metrics.committed(el.clock.Now().Sub(start), err)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		el.trouble.note(el.log, "transaction", err)
	case result.broken():
		el.trouble.note(el.log, "transaction", errors.New(result.Detail))
	default:
		el.trouble.note(el.log, "transaction", nil)
	}
	el.post(ctx, evCommitted{result: result, err: err})
}

func (el *Elector) sweep(ctx context.Context, r Remains) {
	req, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := el.store.Sweep(req, r); err != nil {
		el.log.Debug("cannot take away what a dead elector left", "key", r.Key, "error", err)
	} else {
		el.log.Info("took away what a dead elector left", "key", r.Key)
	}
	el.post(ctx, evSwept{})
}

func (el *Elector) destroy(ctx context.Context, session string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := el.store.Close(ctx, session); err != nil {
		el.log.Warn("cannot close the session; it will expire", "session", session, "error", err)
	}
}

// watch keeps one blocking query open for ever.
func (el *Elector) watch(ctx context.Context) {
	var after uint64
	for failures := 0; ctx.Err() == nil; {
		snapshot, err := el.watchOnce(ctx, after)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, context.Canceled): // told to start anew
			after = 0
		case err != nil:
			el.trouble.note(el.log, "watch", err)
			after = 0
			failures++
			sleep(ctx, min(time.Duration(failures)*100*time.Millisecond, 2*time.Second))
		default:
			failures = 0
			el.trouble.note(el.log, "watch", nil)
			snapshot.First = after == 0
			if snapshot.Index < after {
				after = 0 // the index went backwards: Consul asks clients to start over
			} else {
				after = snapshot.Index
			}
			el.metrics.watched()
			el.post(ctx, evObserved{snapshot})
			if rest := snapshot.rest(); rest > 0 {
				sleep(ctx, rest)
			}
		}
	}
}

// rest is how long the watch waits before it asks again. Every answer holds all elections: where a thousand of them change hands, in a
// score of transactions, each elector would have Consul write all of them as often, and they would come later for it. A few elections
// are asked for at once.
func (s Snapshot) rest() time.Duration {
	if len(s.Elections) <= maxBatchOps {
		return 0
	}
	return time.Duration(len(s.Elections)) * 40 * time.Microsecond
}

func (el *Elector) watchOnce(ctx context.Context, after uint64) (Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-el.rewat:
			cancel()
		case <-done:
		}
	}()
	return el.store.Watch(ctx, after)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
