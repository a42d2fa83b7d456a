package elector

import (
	"context"
	"net/http"
	"time"

	"retinue/internal/clock"
)

// campaign waits until the candidate leads, its time is up, or the client is gone.
func (el *Elector) campaign(ctx context.Context, election, id string, waitMS *int64) (*Grant, *Refusal) {
	var limit <-chan time.Time
	once := false
	if waitMS != nil {
		wait := time.Duration(*waitMS) * time.Millisecond
		if once = wait == 0; once {
			wait = el.cfg.Lease / 2 // one attempt, as long as that takes
		}
		t := time.NewTimer(wait)
		defer t.Stop()
		limit = t.C
	}
	for {
		changed := el.feed.changed(election)
		v := el.feed.view(election)
		if v.Holder == id && v.Role(el.clock.Now()) == Leader {
			rep, err := el.ask(ctx, evClaim{election, id})
			if err == nil && rep.grant != nil {
				return rep.grant, nil
			}
		}
		if el.feed.info.Load().Stopping {
			return nil, refuse(http.StatusServiceUnavailable, "stopping", "this elector is shutting down")
		}
		if once && (v.Leader != nil && v.Holder != id || v.Blocked == ReasonLockDelay) {
			return nil, el.heldBy(v)
		}
		select {
		case <-changed:
		case <-limit:
			return nil, el.heldBy(el.feed.view(election))
		case <-ctx.Done():
			return nil, el.heldBy(v)
		case <-el.ended:
			return nil, refuse(http.StatusServiceUnavailable, "stopping", "this elector is shutting down")
		}
	}
}

// heldBy says why a campaign did not succeed.
func (el *Elector) heldBy(v *View) *Refusal {
	info := el.feed.info.Load()
	// A Consul that is silent is noticed by the clock: until something is answered, or is given up, nothing tells the owner.
	silent := !v.Connected || !v.Synced || el.clock.Now() >= clock.Instant(info.SessionDeadline)
	ref := refuse(http.StatusConflict, "held", "another candidate leads")
	ref.Leader, ref.Reason, ref.RetryMS = v.Leader, "held", el.cfg.Lease.Milliseconds()/3
	switch {
	case info.denied:
		ref.Status, ref.Error, ref.Reason = http.StatusServiceUnavailable, "unavailable", "token_refused"
		ref.Message = "Consul refuses the elector's token: it is unknown, or lacks what `retinue acl print elector --job " + el.cfg.App + "` lists"
	case silent:
		ref.Status, ref.Error, ref.Message, ref.Reason = http.StatusServiceUnavailable, "unavailable", "Consul does not answer", "no_session"
	case v.Leader == nil && v.Blocked == ReasonStoreError:
		ref.Status, ref.Error, ref.Message, ref.Reason = http.StatusServiceUnavailable, "unavailable", "Consul does not do what it is asked; the elector's log says why", string(v.Blocked)
	case v.Leader == nil && v.Blocked == ReasonLockDelay:
		ref.Reason, ref.Message = string(ReasonLockDelay), "the last leader's lease may still run"
	case v.Leader == nil:
		ref.Reason, ref.Message = "vacant", "nobody has been elected yet"
	}
	return ref
}
