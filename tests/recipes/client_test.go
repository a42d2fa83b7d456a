package recipes_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/elector/electorclient"
	"retinue/tests/harness"
)

// replica is an elector and the Go client of the application beside it.
type replica struct {
	*electorclient.Client
	*elector
	election string
}

func newReplica(t *testing.T, e *elector, transport, election string) *replica {
	t.Helper()
	t.Setenv("RETINUE_ELECTOR_ADDR", transports(e)[transport])
	c, err := electorclient.FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	return &replica{c, e, election}
}

// goTerm is one leadership of one replica, as the function under Lead saw it.
type goTerm struct {
	of         *replica
	leadership *electorclient.Leadership
	leave      func(error)
	left       chan error     // what Lead returned
	told       chan time.Time // when the context of the function ended, if it did
}

// campaign makes a replica lead whenever it can. Terms come out of the channel, and last until leave is called.
func (r *replica) campaign(ctx context.Context, terms chan<- goTerm) {
	for ctx.Err() == nil {
		left, told := make(chan error, 1), make(chan time.Time, 1)
		left <- r.Lead(ctx, r.election, func(ctx context.Context, l *electorclient.Leadership) error {
			leave := make(chan error, 1)
			select {
			case terms <- goTerm{r, l, func(err error) { leave <- err }, left, told}:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case err := <-leave:
				return err
			case <-ctx.Done():
				told <- time.Now()
				return ctx.Err()
			}
		})
	}
}

func nextTerm(t *testing.T, terms <-chan goTerm, after uint64) goTerm {
	t.Helper()
	select {
	case got := <-terms:
		if got.leadership.Token() <= after || !got.leadership.Valid() {
			t.Fatalf("token %d after %d, valid %v", got.leadership.Token(), after, got.leadership.Valid())
		}
		return got
	case <-time.After(60 * time.Second):
		t.Fatal("nobody was elected")
	}
	return goTerm{}
}

// wait waits until Lead has returned.
func (g goTerm) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-g.left:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("Lead does not return")
	}
	return nil
}

func TestGoClient(t *testing.T) {
	for _, transport := range []string{"unix", "tcp"} {
		t.Run(transport, func(t *testing.T) { testGoClient(t, transport) })
	}
}

func testGoClient(t *testing.T, transport string) {
	electors := [2]*elector{startElector(t, transport+"-c"), startElector(t, transport+"-d")}
	election := "go-" + transport
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	terms := make(chan goTerm)
	c, d := newReplica(t, electors[0], transport, election), newReplica(t, electors[1], transport, election)

	if _, err := c.Leader(ctx, election); !errors.Is(err, electorclient.ErrVacant) {
		t.Errorf("before anybody campaigns: %v", err)
	}
	if err := c.Lead(ctx, "no-such", nil); !errors.Is(err, electorclient.ErrUnknownElection) {
		t.Errorf("an election that the elector does not have: %v", err)
	}
	go c.campaign(ctx, terms)
	first := nextTerm(t, terms, 0)
	seen := watchLeaders(ctx, t, d)
	if got := <-seen; got.Address != first.of.elector.address || got.Token != first.leadership.Token() {
		t.Errorf("the follower sees %+v", got)
	}
	go d.campaign(ctx, terms)
	waitForCandidate(t, d.elector, election)
	if err := first.leadership.Publish(ctx, map[string]int{"shard": 3}); err != nil {
		t.Error(err)
	}
	if got := <-seen; string(got.Value) != `{"shard":3}` {
		t.Errorf("the follower sees the value %s", got.Value)
	}
	// More than a lease: it is by renewals that it leads.
	if sleep(ctx, lease+lease/2); !first.leadership.Valid() || first.leadership.Verify(ctx) != nil {
		t.Fatal("leadership was not kept")
	}

	done := errors.New("done")
	first.leave(done)
	if err := first.wait(t); !errors.Is(err, done) || errors.Is(err, electorclient.ErrLost) {
		t.Errorf("Lead returned %v", err)
	}
	second := nextTerm(t, terms, first.leadership.Token())
	if err := first.leadership.Verify(ctx); first.leadership.Valid() || !errors.Is(err, electorclient.ErrLost) {
		t.Errorf("the former leadership: valid %v, %v", first.leadership.Valid(), err)
	}

	// An elector that is told to stop asks its application to end, and the other replica leads.
	second.of.Signal(sigterm)
	if err := second.wait(t); !errors.Is(err, electorclient.ErrStepDown) {
		t.Errorf("Lead returned %v after its elector was told to stop", err)
	}
	third := nextTerm(t, terms, second.leadership.Token())
	if third.of == second.of {
		t.Error("leads beside an elector that has stopped")
	}
	cancel()
	if err := third.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("Lead returned %v after its context was cancelled", err)
	}
	if _, err := third.of.Leader(t.Context(), election); !errors.Is(err, electorclient.ErrVacant) {
		t.Errorf("after everybody has left: %v", err)
	}
}

// TestGoClientOutlivesElectors: one that is restarted is not noticed; one that is gone, or hangs, ends leadership before its deadline.
func TestGoClientOutlivesElectors(t *testing.T) {
	const election = "go-broken"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	terms := make(chan goTerm)
	state := filepath.Join(harness.Dir(t, "state"), "elector.json")
	r := newReplica(t, startElector(t, "restarted", "--state", state), "unix", election)
	go r.campaign(ctx, terms)
	term := nextTerm(t, terms, 0)
	harness.Eventually(t, 5*time.Second, "the elector has noted what it leads", func(context.Context) error {
		data, err := os.ReadFile(state)
		if err != nil || !strings.Contains(string(data), fmt.Sprint(term.leadership.Token())) {
			return fmt.Errorf("%s, %v", data, err)
		}
		return nil
	})
	for _, end := range []func(){r.Kill, func() { r.Stop(10 * time.Second) }} {
		end()
		r.Run()
		r.ready(t)
		if sleep(ctx, lease+lease/2); !term.leadership.Valid() || term.leadership.Verify(ctx) != nil {
			t.Fatalf("leadership did not outlive a restart of the elector: valid %v", term.leadership.Valid())
		}
	}
	for name, end := range map[string]func(){"killed": r.Kill, "hung": r.Pause} {
		end()
		sleep(ctx, 100*time.Millisecond) // an answer to the last renewal is still to be read
		deadline := term.leadership.Deadline()
		if err := term.wait(t); !errors.Is(err, electorclient.ErrLost) {
			t.Errorf("%s: Lead returned %v", name, err)
		}
		if late := (<-term.told).Sub(deadline); late > 0 {
			t.Errorf("%s: the function was told %v after the deadline", name, late)
		}
		r.Kill()
		r.Run()
		term = nextTerm(t, terms, term.leadership.Token())
	}
}

func watchLeaders(ctx context.Context, t *testing.T, r *replica) <-chan *electorclient.Leader {
	seen := make(chan *electorclient.Leader, 100)
	go func() {
		for leader, err := range r.Watch(ctx, r.election) {
			if err == nil && leader != nil {
				seen <- leader
			}
		}
	}()
	return seen
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
