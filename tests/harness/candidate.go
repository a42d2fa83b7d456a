package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// BootTime reads the clock that all processes of the machine share, and that
// goes on while a process is stopped: the judge of who led when.
func BootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // there since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// A Claim is a time in which an application was entitled to act as leader: from
// when it learned of its grant until the grant's deadline, or until it resigned
// or learned of a loss before that.
type Claim struct {
	Who         string
	Token       uint64
	From, Until time.Duration // boot clock
}

func (c Claim) String() string {
	return fmt.Sprintf("%s with token %d from %.3fs to %.3fs", c.Who, c.Token, c.From.Seconds(), c.Until.Seconds())
}

// History collects the claims of all candidates of an election.
type History struct {
	mu     sync.Mutex
	claims []*Claim
}

func (h *History) open(who string, token uint64, until time.Duration) *Claim {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &Claim{Who: who, Token: token, From: BootTime(), Until: until}
	h.claims = append(h.claims, c)
	return c
}

func (h *History) set(c *Claim, until time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.Until = until
}

// Claims returns a copy, in the order of their beginnings.
func (h *History) Claims() []Claim {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Claim
	for _, c := range h.claims {
		if c.Until > c.From { // a grant that arrived after its deadline entitles to nothing
			out = append(out, *c)
		}
	}
	sort.Slice(out, func(a, b int) bool { return out[a].From < out[b].From })
	return out
}

// Leader is whose claim covers the present moment.
func (h *History) Leader() (Claim, bool) {
	now := BootTime()
	for _, c := range h.Claims() {
		if c.From <= now && now < c.Until {
			return c, true
		}
	}
	return Claim{}, false
}

// Violations are the broken promises in a history: claims of two candidates
// that overlap, and tokens that do not rise from leader to leader.
func (h *History) Violations() error {
	var errs []error
	claims := h.Claims()
	for i, a := range claims {
		for _, b := range claims[i+1:] {
			if a.Who != b.Who && b.From < a.Until {
				errs = append(errs, fmt.Errorf("two leaders at once: %v; %v", a, b))
			}
			if b.Token < a.Token {
				errs = append(errs, fmt.Errorf("the token falls: %v; %v", a, b))
			}
			if b.Token == a.Token && a.Who != b.Who {
				errs = append(errs, fmt.Errorf("two leaders share a token: %v; %v", a, b))
			}
		}
	}
	return errors.Join(errs...)
}

// Candidate is an application that campaigns through an elector and leads
// whenever it can, written against the elector's contract.
type Candidate struct {
	Name     string
	Election string
	Elector  *ElectorClient
	History  *History

	mu     sync.Mutex
	claim  *Claim // nil: not leading
	resign chan struct{}
}

// Run campaigns until ctx ends.
func (c *Candidate) Run(ctx context.Context) {
	for ctx.Err() == nil {
		g, err := c.Elector.Become(ctx, c.Election, c.Name, 5*time.Second)
		if err == nil {
			c.lead(ctx, g)
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Candidate) lead(ctx context.Context, g Grant) {
	claim := c.History.open(c.Name, g.Token, time.Duration(g.DeadlineBoottimeNS))
	resign := make(chan struct{})
	c.mu.Lock()
	c.claim, c.resign = claim, resign
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.claim = nil
		c.mu.Unlock()
	}()
	lease := time.Duration(g.LeaseMS) * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return
		case <-resign:
			// First stop acting, then say so.
			c.end(claim)
			_, _ = c.Elector.Resign(ctx, c.Election, g.Token)
			return
		case <-time.After(lease / 4):
		}
		renew, cancel := context.WithTimeout(ctx, lease)
		fresh, err := c.Elector.Renew(renew, c.Election, g.Token)
		cancel()
		var refused *StatusError
		switch {
		case err == nil && BootTime() < claim.Until:
			c.History.set(claim, time.Duration(fresh.DeadlineBoottimeNS))
		case err == nil: // suspended for a while, and resumed under the same token
			claim = c.History.open(c.Name, g.Token, time.Duration(fresh.DeadlineBoottimeNS))
		case errors.As(err, &refused) && refused.Status == http.StatusConflict:
			c.end(claim)
			return
		}
	}
}

// end closes a claim now, if its deadline has not done so before.
func (c *Candidate) end(claim *Claim) {
	if now := BootTime(); now < claim.Until {
		c.History.set(claim, now)
	}
}

// StepDown makes the candidate resign, if it leads.
func (c *Candidate) StepDown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.claim != nil {
		close(c.resign)
		c.claim = nil
	}
}
