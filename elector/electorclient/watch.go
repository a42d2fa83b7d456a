package electorclient

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"reflect"
	"time"
)

// Leader is who leads, as followers see it.
type Leader struct {
	ID      string          `json:"id"`      // the candidate id
	Address string          `json:"address"` // host:port of the leading application, if its elector was told
	Alloc   string          `json:"alloc"`
	Host    string          `json:"host"`
	Elector string          `json:"elector"`
	Token   uint64          `json:"token"`
	Term    uint64          `json:"term"`
	Since   time.Time       `json:"since"`
	Value   json.RawMessage `json:"value"` // what the leader has published
	Self    bool            `json:"self"`  // it is led beside this very elector
}

// Leader returns who leads, as far as the elector knows; ErrVacant when nobody does.
func (c *Client) Leader(ctx context.Context, election string) (*Leader, error) {
	var l Leader
	if err := c.call(ctx, http.MethodGet, election, "/leader", nil, &l); err != nil {
		return nil, fmt.Errorf("leader of %s: %w", election, err)
	}
	return &l, nil
}

// Watch yields who leads, at once and then at every change; nil is nobody. It outlives restarts of the elector: in the meantime the
// last leader known stands. It ends with an error when ctx does, or when asking again cannot help (ErrUnknownElection).
//
//	for leader, err := range c.Watch(ctx, "leader") { ... }
func (c *Client) Watch(ctx context.Context, election string) iter.Seq2[*Leader, error] {
	return func(yield func(*Leader, error) bool) {
		w := &watch{client: c, election: election, yield: yield}
		var pace patience
		for {
			err := w.follow(ctx, &pace)
			switch {
			case w.stopped:
				return
			case ctx.Err() != nil:
				err = ctx.Err()
			case !hopeless(err):
				c.log().Warn("the elector does not answer; the leader may be out of date", "election", election, "error", err)
				if pace.wait(ctx) {
					continue
				}
				err = ctx.Err()
			}
			yield(nil, fmt.Errorf("watch %s: %w", election, err))
			return
		}
	}
}

// watch is one loop over Watch.
type watch struct {
	client   *Client
	election string
	yield    func(*Leader, error) bool
	last     *Leader
	begun    bool // last has been yielded
	stopped  bool // the caller has seen enough
}

// follow reads one stream to its end. A silence of two leases, where six beats should have come, ends it too.
func (w *watch) follow(ctx context.Context, pace *patience) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := 10 * time.Second // for the answer and the state that comes first
	dead := time.AfterFunc(silence, func() { cancel(fmt.Errorf("no sign of life for %s", silence)) })
	defer dead.Stop()
	resp, err := w.client.request(ctx, http.MethodGet, w.election, "/events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	err = readEvents(resp.Body, func(ev event) bool {
		pace.pause = 0
		if ev.LeaseMS > 0 {
			silence = max(2*time.Duration(ev.LeaseMS)*time.Millisecond, time.Second)
		}
		dead.Reset(silence)
		return ev.Type == "beat" || w.see(ev)
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// see yields what has changed. It returns false when the caller has seen enough.
func (w *watch) see(ev event) bool {
	leader := ev.Leader
	if leader != nil && leader.Self && ev.Role != "leader" {
		leader = nil // suspended: the application beside us must not act, so nobody leads
	}
	if w.begun && reflect.DeepEqual(leader, w.last) {
		return true
	}
	w.last, w.begun = leader, true
	w.stopped = !w.yield(leader, nil)
	return !w.stopped
}
