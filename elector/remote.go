package elector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	consul "github.com/hashicorp/consul/api"

	"retinue/internal/clock"
	"retinue/internal/hint"
)

// requestFolder is where an operator's wishes lie, below an application's prefix, one for each election.
const requestFolder = ".requests/"

// Request asks the leader under a token to step down. It is a KV entry, so that it works from any machine that reaches Consul, and
// takes no way around the application: the elector passes it on as the event stepdown.
type Request struct {
	Token uint64    `json:"token"`        // the leadership that shall end; any other is none of its business
	To    string    `json:"to,omitempty"` // elector, allocation or address that shall follow
	By    string    `json:"by,omitempty"`
	At    time.Time `json:"at"`
}

// observeRequest passes a request on to the application it is meant for.
func (m *machine) observeRequest(now clock.Instant, e *election, s Snapshot) {
	entry, ok := s.Requests[e.name]
	if !ok || e.holder == nil || e.holder.frozen {
		return
	}
	var r Request
	if json.Unmarshal(entry.Value, &r) == nil && r.Token != 0 && r.Token == e.token {
		m.stepdown(now, e, r.To)
	}
}

// promptly is how long an operator waits for an answer of Consul that takes milliseconds.
var promptly = 15 * time.Second

// Ask asks the leader of an election to step down and waits until its leadership has ended, which takes at most its application's
// lease. to names the elector, allocation or address that shall follow; "" leaves it open. It returns the election before and after.
// The client's token needs key:write below retinue/elections/APP/.requests/.
func Ask(ctx context.Context, client *consul.Client, app, election, to, by string) (before, after Standing, err error) {
	// Consul answers these two at once, or is in trouble that nobody should have to wait for.
	prompt, cancel := context.WithTimeout(ctx, promptly)
	defer cancel()
	before, index, err := standing(prompt, client, app, election, 0)
	switch {
	case err != nil:
		return before, after, silent(ctx, err)
	case before.Leader == nil:
		return before, after, hint.Wrap(fmt.Errorf("nobody leads %s/%s", app, election), "`retinue leader show %s/%s` lists the candidates", app, election)
	case to != "" && !before.has(to):
		return before, after, hint.Wrap(fmt.Errorf("%q is not a candidate of %s/%s", to, app, election), "`retinue leader show %s/%s` lists the candidates", app, election)
	}
	key := kvRoot + app + "/" + requestFolder + election
	value := encode(Request{Token: before.Leader.Token, To: to, By: by, At: time.Now().UTC()})
	if _, err := client.KV().Put(&consul.KVPair{Key: key, Value: value}, (&consul.WriteOptions{}).WithContext(prompt)); err != nil {
		return before, after, fmt.Errorf("write the request: %w", silent(ctx, err))
	}
	defer func() {
		// Left behind it would do no harm: its token never leads again.
		tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = client.KV().Delete(key, (&consul.WriteOptions{}).WithContext(tidy))
	}()
	for {
		if after, index, err = standing(ctx, client, app, election, index); err != nil {
			return before, after, err
		}
		if after.Leader != nil && after.Leader.Token != before.Leader.Token || after.Leader == nil && len(after.Candidates) == 0 {
			return before, after, nil
		}
	}
}

// silent says what to do when err is that Consul has not answered promptly, with the operator's time not yet over.
func silent(operator context.Context, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) || operator.Err() != nil {
		return err
	}
	return hint.Wrap(fmt.Errorf("no answer of Consul within %s: %w", promptly, err), "`consul operator raft list-peers` shows whether its servers have a leader; CONSUL_HTTP_ADDR names another agent")
}

func standing(ctx context.Context, client *consul.Client, app, election string, after uint64) (Standing, uint64, error) {
	all, index, err := Standings(ctx, client, app, after)
	if err != nil {
		return Standing{}, 0, err
	}
	for _, s := range all {
		if s.Election == election {
			return s, index, nil
		}
	}
	return Standing{}, 0, hint.Wrap(fmt.Errorf("no election %s/%s has ever had a leader", app, election), "`retinue leader list` shows those that had")
}

// has says whether to names one of the candidates.
func (s Standing) has(to string) bool {
	for _, c := range s.Candidates {
		if matches(CandidateRecord{ID: c.Elector, Alloc: c.Alloc, Address: c.Address}, to) {
			return true
		}
	}
	return false
}
