package electorclient

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Lead campaigns until this process is elected, and then calls f. The context of f ends
//
//   - when leadership is lost, or is not confirmed in time: f must return before the deadline (Cause is ErrLost);
//   - when leadership is asked back: f still leads, until Deadline, which moves no more (Cause is ErrStepDown);
//   - when ctx ends: f still leads, and may take its time (Cause is that of ctx); Valid says whether it goes on.
//
// Once f has returned, leadership is given back. Lead returns nil when f returned nil by itself; otherwise the error of f, or why
// its context ended, or both. An elector that does not answer is waited for. So an endless loop around Lead is right, and only
// ErrUnknownElection, or an address that is no elector's, is final.
func (c *Client) Lead(ctx context.Context, election string, f func(context.Context, *Leadership) error) error {
	cand := &candidate{client: c, election: election, id: c.Name + "-" + rand.Text()[:6]}
	for {
		t, err := cand.campaign(ctx)
		if err != nil {
			return fmt.Errorf("campaign for %s: %w", election, err)
		}
		if err = t.begin(); err == nil && ctx.Err() == nil {
			return t.serve(ctx, f)
		}
		t.close()
		if ctx.Err() != nil {
			return fmt.Errorf("campaign for %s: %w", election, context.Cause(ctx))
		}
		c.log().Warn("elected, but lost at once", "election", election, "token", t.Token(), "error", err)
		if !cand.pace.wait(ctx) {
			return fmt.Errorf("campaign for %s: %w", election, context.Cause(ctx))
		}
	}
}

// candidate is one call of Lead. Its id is its own: a second candidate of the same id would be granted the same leadership.
type candidate struct {
	client   *Client
	election string
	id       string
	pace     patience
}

// campaign waits until elected. It gives up only when ctx ends or the request is wrong.
func (c *candidate) campaign(ctx context.Context) (*term, error) {
	for {
		t, err := c.become(ctx)
		switch {
		case err == nil:
			return t, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case hopeless(err):
			return nil, err
		}
		c.client.log().Warn("the elector does not answer", "election", c.election, "error", err)
		if !c.pace.wait(ctx) {
			return nil, context.Cause(ctx)
		}
	}
}

// become asks to be elected. It names the elector's own lease explicitly: then the elector lets go of a process that hangs,
// although its tether is open.
func (c *candidate) become(ctx context.Context) (*term, error) {
	var state struct {
		LeaseMS int64 `json:"lease_ms"`
	}
	if err := c.client.call(ctx, http.MethodGet, c.election, "", nil, &state); err != nil {
		return nil, err
	}
	c.pace.pause = 0
	var g grant
	if err := c.client.call(ctx, http.MethodPost, c.election, "/become", map[string]any{"id": c.id, "lease_ms": state.LeaseMS}, &g); err != nil {
		return nil, err
	}
	t := &term{Leadership: &Leadership{client: c.client, election: c.election, grant: g}, lease: time.Duration(state.LeaseMS) * time.Millisecond}
	// What holds leadership must outlive the caller's context: f may need it for cleaning up.
	t.held, t.release = context.WithCancelCause(context.WithoutCancel(ctx))
	return t, nil
}

// term is a leadership and what keeps it.
type term struct {
	*Leadership
	lease   time.Duration
	margin  time.Duration           // how long before the deadline f is told
	held    context.Context         // ends when nothing is to be kept any more
	release context.CancelCauseFunc // ends held
	tether  *http.Response          // open as long as this process leads
	cancel  context.CancelCauseFunc // ends the context of f
	keepers sync.WaitGroup
}

// begin makes a grant safe to act upon: it ties the tether, and renews at once, because what become granted counts from before its
// request, and that may have waited for hours.
func (t *term) begin() error {
	ctx, cancel := context.WithTimeout(t.held, t.lease)
	defer cancel()
	tied := context.AfterFunc(ctx, func() { t.release(ctx.Err()) })
	defer tied()
	if err := t.tie(); err != nil {
		return fmt.Errorf("tie the tether: %w", err)
	}
	g, err := t.renew(ctx)
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	if g.Stepdown {
		return ErrStepDown
	}
	t.margin = min(t.remaining()/10, time.Second)
	if t.remaining() <= t.margin {
		return ErrLost
	}
	return nil
}

func (t *term) tie() (err error) {
	t.tether, err = t.client.request(t.held, http.MethodGet, t.election, fmt.Sprintf("/hold?token=%d", t.Token()), nil)
	return err
}

// serve runs f in the caller's goroutine, and keeps leadership meanwhile.
func (t *term) serve(ctx context.Context, f func(context.Context, *Leadership) error) error {
	ctx, t.cancel = context.WithCancelCause(ctx)
	t.client.log().Info("leading", "election", t.election, "token", t.Token())
	t.keepers.Go(t.holdOn)
	t.keepers.Go(t.renewOn)
	t.keepers.Go(t.guard)
	defer t.close() // also when f panics

	err := f(ctx, t.Leadership)
	cause := context.Cause(ctx)
	t.client.log().Info("leading no more", "election", t.election, "token", t.Token(), "cause", cause, "error", err)
	switch {
	case err == nil, cause != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, cause)):
		err = cause
	case cause != nil:
		err = errors.Join(cause, err)
	}
	if err != nil {
		return fmt.Errorf("lead %s: %w", t.election, err)
	}
	return nil
}

// farewell bounds the wait for an elector that is slow to confirm. It has understood long before: closing the tether says the same.
const farewell = 2 * time.Second

// close ends the term: f has returned, so a successor may start.
func (t *term) close() {
	t.end()
	if t.held.Err() == nil {
		ctx, done := context.WithTimeout(t.held, farewell)
		_ = t.client.call(ctx, http.MethodPost, t.election, "/resign", map[string]any{"token": t.Token()}, nil)
		done()
	}
	t.release(nil)
	if t.cancel != nil {
		t.cancel(nil)
	}
	t.keepers.Wait()
	if t.tether != nil {
		t.tether.Body.Close()
	}
}

// lose tells f that it leads no more.
func (t *term) lose(why string) {
	t.end()
	t.cancel(fmt.Errorf("%w: %s", ErrLost, why))
}

// holdOn reads the tether, and ties it anew when the elector was restarted: within the lease it may take its session up again.
func (t *term) holdOn() {
	var pace patience
	for {
		lost := ""
		// Why a stream ended does not matter: either the elector has said "lost", or tying it anew tells.
		_ = readEvents(t.tether.Body, func(ev event) bool {
			switch ev.Type {
			case "stepdown":
				t.cancel(ErrStepDown)
			case "lost":
				lost = ev.Reason
			}
			return ev.Type != "lost"
		})
		t.tether.Body.Close()
		if lost != "" {
			t.lose(lost)
			return
		}
		for {
			if !pace.wait(t.held) {
				return
			}
			err := t.tie()
			if err == nil {
				pace.pause = 0
				break
			}
			if errors.Is(err, ErrLost) {
				t.lose(err.Error())
				return
			}
		}
	}
}

// renewOn moves the deadline, several times a lease. It goes on until f has returned or leadership is lost.
func (t *term) renewOn() {
	for left := t.remaining(); sleep(t.held, max(left/3, 20*time.Millisecond)) && t.Valid(); {
		left = t.remaining()
		ctx, cancel := context.WithTimeout(t.held, max(left/3, 20*time.Millisecond))
		g, err := t.renew(ctx)
		cancel()
		switch {
		case err == nil && g.Stepdown:
			t.cancel(ErrStepDown)
		case errors.Is(err, ErrLost):
			t.lose(err.Error())
			return
		}
		if err == nil {
			left = t.remaining()
		} else {
			left /= 2 // sooner
		}
	}
}

// guard ends leadership by the clock alone, whatever hangs.
func (t *term) guard() {
	for {
		left := t.remaining() - t.margin
		if left <= 0 {
			t.lose("it could not be confirmed before its deadline")
			return
		}
		if !sleep(t.held, left) {
			return
		}
	}
}
