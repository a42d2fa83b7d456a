package scale

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
)

// VirtualNode carries the sessions of all scalers: the session of a leader must not end with the node of a Consul agent that has nothing
// to do with it.
const VirtualNode = "retinue-scalers"

// seatTTL is the lease of the seat: Consul takes no shorter session without being configured to, and keeps one for up to twice as long.
const seatTTL = 10 * time.Second

// seat is the one leading scaler's: a key in Consul that is locked by a session. Its value is the leader's status.
type seat struct {
	client *consulkit.Client
	key    string
	name   string
	ttl    time.Duration
	clock  clock.Clock

	session string
	sent    clock.Instant // start of the last request that proved the session
	leads   bool
}

// until is when the seat must be left if nothing more is heard of Consul: some time before the session can end.
func (s *seat) until() clock.Instant { return s.sent.Add(s.ttl * 4 / 5) }

func (s *seat) write(ctx context.Context) (*api.WriteOptions, error) {
	token, err := s.client.Token()
	return (&api.WriteOptions{Token: token}).WithContext(ctx), err
}

// hold keeps the seat, or takes it when it is free. value is what the key says from then on. leads is false when somebody else leads,
// and with an error; other is then what the key says.
func (s *seat) hold(ctx context.Context, value []byte) (leads bool, other []byte, err error) {
	now := s.clock.Now()
	if s.session != "" && now.Sub(s.sent) >= s.ttl/3 {
		if err := s.renew(ctx); err != nil {
			return s.stillLeads(), nil, err
		}
	}
	if s.leads && s.session != "" {
		return s.stillLeads(), nil, nil
	}
	pair, err := s.read(ctx)
	if err != nil {
		return false, nil, err
	}
	if pair != nil && pair.Session != "" && pair.Session != s.session {
		return false, pair.Value, nil
	}
	if s.session == "" {
		if err := s.open(ctx); err != nil {
			return false, nil, err
		}
	}
	if pair != nil && len(pair.Value) > 0 {
		other = pair.Value
	}
	taken, err := s.put(ctx, value)
	return taken, other, err
}

func (s *seat) stillLeads() bool {
	s.leads = s.leads && s.session != "" && s.clock.Now() < s.until()
	return s.leads
}

func (s *seat) read(ctx context.Context) (*api.KVPair, error) {
	token, err := s.client.Token()
	if err != nil {
		return nil, err
	}
	pair, _, err := s.client.KV().Get(s.key, (&api.QueryOptions{Token: token}).WithContext(ctx))
	if err != nil {
		return nil, s.advice(fmt.Errorf("read who leads: %w", err))
	}
	return pair, nil
}

// put writes the leader's status under its lock; false: it is not ours.
func (s *seat) put(ctx context.Context, value []byte) (bool, error) {
	opts, err := s.write(ctx)
	if err != nil {
		return false, err
	}
	ok, _, err := s.client.KV().Acquire(&api.KVPair{Key: s.key, Session: s.session, Value: value}, opts)
	switch {
	case err != nil && strings.Contains(err.Error(), "invalid session"):
		s.session, s.leads = "", false
		return false, nil
	case err != nil:
		return s.stillLeads(), s.advice(fmt.Errorf("take the lead: %w", err))
	}
	s.leads = ok
	return s.stillLeads(), nil
}

func (s *seat) renew(ctx context.Context) error {
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	sent := s.clock.Now()
	_, err = s.client.Raw().Write("/v1/session/renew/"+s.session, nil, nil, opts)
	var status api.StatusError
	switch {
	case errors.As(err, &status) && status.Code == http.StatusNotFound:
		s.session, s.leads = "", false
		return nil
	case err != nil:
		return s.advice(fmt.Errorf("renew the session: %w", err))
	}
	// An answer that came when the lease was over proves nothing: the session's end may have been decided. Taking the lock anew does.
	if s.leads && s.clock.Now() >= s.until() {
		s.leads = false
	}
	s.sent = sent
	return nil
}

// open makes the session. The API library cannot say that it has no checks, so the request is written by hand.
func (s *seat) open(ctx context.Context) error {
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	_, err = s.client.Catalog().Register(&api.CatalogRegistration{Node: VirtualNode, Address: "127.0.0.1",
		NodeMeta: map[string]string{"external-node": "true", "external-probe": "false", "retinue": "sessions of scalers; no agent runs here"}}, opts)
	if err != nil {
		return s.advice(fmt.Errorf("register the node of the sessions: %w", err))
	}
	var out struct{ ID string }
	sent := s.clock.Now()
	body := map[string]any{"Name": s.name, "Node": VirtualNode, "TTL": s.ttl.String(), "LockDelay": "1s", "Behavior": api.SessionBehaviorRelease, "NodeChecks": []string{}}
	if _, err := s.client.Raw().Write("/v1/session/create", body, &out, opts); err != nil {
		return s.advice(fmt.Errorf("create a session: %w", err))
	}
	s.session, s.sent = out.ID, sent
	return nil
}

// leave gives the seat back at once, and its session with it.
func (s *seat) leave(ctx context.Context, value []byte) error {
	if s.session == "" {
		return nil
	}
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	if s.leads {
		_, _, err = s.client.KV().Release(&api.KVPair{Key: s.key, Session: s.session, Value: value}, opts)
	}
	_, destroyErr := s.client.Session().Destroy(s.session, opts)
	s.session, s.leads = "", false
	return errors.Join(err, destroyErr)
}

func (s *seat) advice(err error) error {
	if consulkit.Denied(err) {
		return hint.Wrap(err, "the Consul token lacks a permission: `retinue acl print scaler` lists what a scaler needs")
	}
	return s.client.Advice(err)
}
