package elector

import (
	"net/http"

	"retinue/internal/clock"
)

// request handles what applications ask.
func (m *machine) request(now clock.Instant, ev any) reply {
	switch ev := ev.(type) {
	case evCampaign:
		return m.campaign(now, m.elections[ev.election], ev)
	case evWithdraw:
		return m.withdraw(now, m.elections[ev.election], ev.id)
	case evClaim:
		return m.claim(now, m.elections[ev.election], ev.id)
	case evRenew:
		return m.renew(now, m.elections[ev.election], ev.token)
	case evTether:
		return m.tether(now, m.elections[ev.election], ev)
	case evResign:
		return m.resign(now, m.elections[ev.election], ev)
	case evStepdown:
		e := m.elections[ev.election]
		if e.holder == nil {
			return reply{refusal: m.notLeader(e, 0)}
		}
		if ev.to != "" && m.successor(e, ev.to) == nil {
			return reply{refusal: m.noSuccessor(e, ev.to)}
		}
		m.stepdown(now, e, ev.to)
		return reply{grant: m.view(e).grant(now)}
	case evRebalance:
		return reply{moves: m.rebalance(now)}
	case evPublish:
		return m.publish(now, m.elections[ev.election], ev)
	}
	panic("elector: unknown event")
}

func (m *machine) campaign(now clock.Instant, e *election, ev evCampaign) reply {
	if m.stopping {
		return reply{refusal: refuse(http.StatusServiceUnavailable, "stopping", "this elector is shutting down")}
	}
	c := e.candidate(ev.id)
	if c == nil {
		c = &candidate{id: ev.id, until: clock.Never}
		e.candidates = append(e.candidates, c)
	}
	c.waiters++
	e.viewed = false
	if c != e.holder {
		c.lease, c.explicit, c.priority, c.value = ev.lease, ev.lease > 0, ev.priority, ev.value
		if c.lease == 0 {
			c.lease = m.cfg.Lease
		}
		m.candDirty = true
		m.settle(now, e)
	}
	return reply{}
}

// withdraw ends one request's interest. Leadership that nobody was told of ends with the last one.
func (m *machine) withdraw(now clock.Instant, e *election, id string) reply {
	c := e.candidate(id)
	if c == nil {
		return reply{}
	}
	c.waiters--
	e.viewed = false
	switch {
	case c.waiters > 0:
	case c != e.holder:
		e.drop(c)
		m.candDirty = true
		m.arm(now, e)
	case !c.claimed:
		m.endLeadership(now, e, "abandoned", &release{})
	}
	return reply{}
}

// claim tells the candidate that it leads. The application's lease begins here.
func (m *machine) claim(now clock.Instant, e *election, id string) reply {
	c := e.holder
	if c == nil || c.id != id || !e.proven {
		return reply{refusal: m.notLeader(e, 0)}
	}
	c.waiters--
	c.claimed = true
	m.heard(now, e)
	return reply{grant: m.view(e).grant(now)}
}

// heard prolongs the application's lease.
func (m *machine) heard(now clock.Instant, e *election) {
	c := e.holder
	e.viewed = false
	switch {
	case c.frozen:
	case c.tethers > 0 && !c.explicit:
		c.until = clock.Never
	default:
		c.until = now.Add(c.lease)
	}
}

func (m *machine) renew(now clock.Instant, e *election, token uint64) reply {
	if e.holder == nil || e.token != token {
		return reply{refusal: m.notLeader(e, token)}
	}
	e.holder.claimed = true
	m.heard(now, e)
	if !e.proven {
		r := refuse(http.StatusServiceUnavailable, "suspended", "Consul does not answer: do not act; leadership may resume under the same token")
		r.Token = token
		return reply{refusal: r}
	}
	return reply{grant: m.view(e).grant(now)}
}

// tether opens or closes one hold stream. The end of the last one is the end of the application, as certified by the kernel.
func (m *machine) tether(now clock.Instant, e *election, ev evTether) reply {
	c := e.holder
	if c == nil || e.token != ev.token {
		return reply{refusal: m.notLeader(e, ev.token)}
	}
	if !ev.closed {
		c.tethers++
		c.claimed = true
		m.heard(now, e)
		return reply{grant: m.view(e).grant(now)}
	}
	if c.tethers--; c.tethers > 0 {
		return reply{}
	}
	if ev.stuck {
		// It may be paused, with our last beat unread. That beat promises at most one lease from now.
		m.heard(now, e)
		return reply{}
	}
	m.endLeadership(now, e, "tether_closed", &release{to: c.stepTo})
	return reply{}
}

func (m *machine) resign(now clock.Instant, e *election, ev evResign) reply {
	if e.release != nil && e.release.token == ev.token {
		e.release.reqs = append(e.release.reqs, ev.req)
		return reply{}
	}
	if e.holder == nil || e.token != ev.token {
		if past := e.ended(ev.token); past != nil && past.out.Released {
			m.emit(fxAnswer{ev.req, past.out})
			return reply{}
		}
		return reply{refusal: m.notLeader(e, ev.token)}
	}
	to := ev.to
	if to == "" {
		to = e.holder.stepTo
	}
	if ev.to != "" && m.successor(e, to) == nil {
		return reply{refusal: m.noSuccessor(e, to)}
	}
	m.endLeadership(now, e, "resigned", &release{to: to, reqs: []uint64{ev.req}})
	return reply{}
}

func (m *machine) noSuccessor(e *election, to string) *Refusal {
	r := refuse(http.StatusConflict, "no_successor", "no elector "+to+" campaigns for "+e.name+"; the candidates are listed in the election's state")
	for _, c := range ranking(e.name, m.candidates) {
		if c.Elector != m.cfg.ID {
			r.Known = append(r.Known, c.Elector)
		}
	}
	return r
}

// stepdown asks the application to resign, and prolongs its lease no more.
func (m *machine) stepdown(now clock.Instant, e *election, to string) {
	c := e.holder
	if to != "" {
		c.stepTo = to
	}
	if c.frozen {
		return
	}
	c.frozen = true
	c.until = clock.Min(c.until, now.Add(c.lease))
	m.candDirty = true
	m.event(e, EventStepdown, "")
}

// rebalance asks every leader here to hand over that another elector outranks. It returns where each election goes.
func (m *machine) rebalance(now clock.Instant) map[string]string {
	moves := map[string]string{}
	for _, e := range m.list {
		order := ranking(e.name, m.candidates)
		if e.holder == nil || e.holder.frozen || len(order) == 0 || order[0].Elector == m.cfg.ID {
			continue
		}
		moves[e.name] = order[0].Elector
		m.stepdown(now, e, order[0].Elector)
	}
	return moves
}

func (m *machine) publish(now clock.Instant, e *election, ev evPublish) reply {
	if e.holder == nil || e.token != ev.token || !e.proven {
		return reply{refusal: m.notLeader(e, ev.token)}
	}
	e.holder.claimed = true
	e.record.Value = ev.value
	e.dirty = true
	e.viewed = false
	m.heard(now, e)
	return reply{grant: m.view(e).grant(now)}
}

// notLeader says why token is not, or no longer, leadership.
func (m *machine) notLeader(e *election, token uint64) *Refusal {
	r := refuse(http.StatusConflict, "lost", "")
	r.Token, r.Current = token, m.leaderInfo(e)
	if past := e.ended(token); past != nil {
		r.Reason = past.reason
	} else if token != 0 {
		r.Reason = "unknown_token"
	} else {
		r.Reason = "not_leader"
	}
	return r
}
