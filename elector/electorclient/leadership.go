package electorclient

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Leadership is one term in office. It is safe for concurrent use.
type Leadership struct {
	client   *Client
	election string
	grant    grant

	mu       sync.Mutex
	deadline time.Duration // on the boot clock
	over     bool
}

// grant is what the elector says about leadership.
type grant struct {
	Token       uint64 `json:"token"`
	Term        uint64 `json:"term"`
	ID          string `json:"id"`
	RemainingMS int64  `json:"remaining_ms"`
	Stepdown    bool   `json:"stepdown"`
}

// Token is the fencing token: higher than that of every leader before. A store that refuses lower tokens than it has seen is safe
// from a former leader's late writes.
func (l *Leadership) Token() uint64 { return l.grant.Token }

// Term counts the leaders of this election, for people. Only Token is safe to compare.
func (l *Leadership) Term() uint64 { return l.grant.Term }

// ID is the candidate id that others see as the leader's.
func (l *Leadership) ID() string { return l.grant.ID }

// Valid says whether this process leads right now, by the boot clock alone. Ask it right before an act that must not be repeated
// by another leader.
func (l *Leadership) Valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.over && l.client.now() < l.deadline
}

// Deadline is until when this process leads unless a renewal moves it, which one does every third of a lease. It suits the
// timeout of a single act. Across a sleep of the machine it is too late: Valid is not.
func (l *Leadership) Deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.over {
		return now
	}
	return now.Add(l.deadline - l.client.now())
}

// Verify asks Consul, through the elector, whether this is still the leadership that counts; the error is ErrLost when it is not.
// It costs a round trip to Consul's leader, and by the time it returns the answer is already the past: it does not replace a
// fencing token.
func (l *Leadership) Verify(ctx context.Context) error {
	err := l.client.call(ctx, http.MethodPost, l.election, "/verify", map[string]any{"token": l.Token()}, nil)
	if err != nil {
		return fmt.Errorf("verify leadership of %s: %w", l.election, err)
	}
	return nil
}

// Publish shows value, anything that encodes to JSON, to the followers: it is the Value of their Leader.
func (l *Leadership) Publish(ctx context.Context, value any) error {
	err := l.client.call(ctx, http.MethodPut, l.election, "/value", map[string]any{"token": l.Token(), "value": value}, nil)
	if err != nil {
		return fmt.Errorf("publish the value of %s: %w", l.election, err)
	}
	return nil
}

func (l *Leadership) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

// renew asks for a later deadline. It counts from before the request: the elector may have answered long ago.
func (l *Leadership) renew(ctx context.Context) (grant, error) {
	asked := l.client.now()
	var g grant
	if err := l.client.call(ctx, http.MethodPost, l.election, "/renew", map[string]any{"token": l.Token()}, &g); err != nil {
		return grant{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = asked + time.Duration(g.RemainingMS)*time.Millisecond
	return g, nil
}

func (l *Leadership) remaining() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline - l.client.now()
}
