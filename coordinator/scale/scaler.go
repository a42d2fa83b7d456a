package scale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/source"
	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
)

// Status is what a scaler says of itself, and of the one who leads.
type Status struct {
	Queue  string `json:"queue"`
	Job    string `json:"job"`
	Group  string `json:"group"`
	Scaler string `json:"scaler"`           // who says this
	Leader string `json:"leader,omitempty"` // "": nobody, or not known
	// Rules are the leader's.
	Rules Rules `json:"rules"`
	// At is when the decision was made, by the leader's clock.
	At       time.Time `json:"at"`
	Decision *Decision `json:"decision,omitempty"` // the last one
	Last     *Change   `json:"last,omitempty"`     // change of the count, or the last attempt at one
	Trouble  string    `json:"trouble,omitempty"`  // what keeps the scaler from working now
	Hint     string    `json:"hint,omitempty"`
	Changes  Changes   `json:"changes"`
}

// Rules are the settings that a decision follows.
type Rules struct {
	Min       int     `json:"min"`
	Max       int     `json:"max"`
	Slots     int     `json:"slots"`
	TargetS   float64 `json:"target_s"`
	CooldownS float64 `json:"cooldown_s"`
	DrainS    float64 `json:"drain_s"`
}

// Change is one change of the count.
type Change struct {
	At    time.Time `json:"at"`
	From  int       `json:"from"`
	To    int       `json:"to"`
	Why   string    `json:"why"`
	Error string    `json:"error,omitempty"` // it did not come to it
}

// Changes count since this scaler's start.
type Changes struct {
	Up      uint64 `json:"up"`
	Down    uint64 `json:"down"`
	Blocked uint64 `json:"blocked"` // by a deployment
	Failed  uint64 `json:"failed"`
}

// Parts are what a scaler works with.
type Parts struct {
	Queue   source.Source
	Cluster Cluster
	Consul  *consulkit.Client
	Place   Place
	Clock   clock.Clock
	Log     hclog.Logger
}

// Scaler leads or follows.
type Scaler struct {
	cfg     Config
	parts   Parts
	seat    *seat
	reports *reports

	policy  *policy       // of the leader; owner only
	retryAt clock.Instant // no change before; owner only
	fails   int           // changes that failed in a row; owner only
	late    int           // changes in a row that met another one; owner only
	told    clock.Instant // when the seat's value was written; owner only
	dirty   bool          // it says something else by now; owner only

	mu     sync.Mutex
	status Status
	at     clock.Instant // of the last step
	until  clock.Instant // when the lead ends without a further step
}

// New returns a scaler.
func New(cfg Config, parts Parts) (*Scaler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Scaler{cfg: cfg, parts: parts, reports: &reports{client: parts.Consul, place: parts.Place, clock: parts.Clock},
		seat: &seat{client: parts.Consul, key: parts.Place.seat(), name: "scaler " + cfg.ID + " of " + cfg.Queue, ttl: seatTTL, clock: parts.Clock}}
	s.status = s.fresh()
	s.at = parts.Clock.Now()
	return s, nil
}

func (s *Scaler) fresh() Status {
	c := s.cfg
	return Status{Queue: c.Queue, Job: c.Job, Group: c.Group, Scaler: c.ID,
		Rules: Rules{c.Min, c.Max, c.Slots, c.Target.Seconds(), c.Cooldown.Seconds(), c.Drain.Seconds()}}
}

// Status is what is known now.
func (s *Scaler) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	if st.Leader == s.cfg.ID && s.parts.Clock.Now() >= s.until {
		st.Leader = "" // this process was stopped, or waits for Consul
	}
	return st
}

func (s *Scaler) set(change func(*Status)) Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
	s.status.Scaler = s.cfg.ID
	return s.status
}

// Run works until ctx ends, and then gives the lead to another.
func (s *Scaler) Run(ctx context.Context) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for ctx.Err() == nil {
		began := s.parts.Clock.Now()
		s.step(ctx)
		pause.Reset(max(0, s.interval()-s.parts.Clock.Now().Sub(began)))
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := s.seat.leave(bye, s.value("")); err != nil {
		s.parts.Log.Warn("the lead was not given back; it ends with its session", "error", err)
	}
	return nil
}

// interval is the time until the next step: less while nobody works, because whoever publishes then waits for it.
func (s *Scaler) interval() time.Duration {
	if d := s.Status().Decision; s.policy != nil && d != nil && d.Seen.Count == 0 {
		return s.cfg.Interval / 4
	}
	return s.cfg.Interval
}

// requestTimeout bounds one look or change. It is shorter than what is left of a lease when it has to be renewed.
const requestTimeout = 3 * time.Second

// step is one interval.
func (s *Scaler) step(ctx context.Context) {
	s.mu.Lock()
	s.at = s.parts.Clock.Now()
	s.mu.Unlock()
	led := s.seat.leads
	hold, cancel := context.WithTimeout(ctx, requestTimeout)
	leads, other, err := s.seat.hold(hold, s.value(s.cfg.ID))
	cancel()
	s.mu.Lock()
	s.until = s.seat.until()
	s.mu.Unlock()
	switch {
	case leads && !led:
		s.take(other)
	case !leads && led:
		s.parts.Log.Warn("another scaler may lead now", "error", err)
		s.policy = nil
		s.set(func(st *Status) { st.Leader = "" })
	}
	if !leads {
		s.follow(other, err)
		return
	}
	s.lead(ctx)
}

// take begins to lead, with what the leader before had measured.
func (s *Scaler) take(before []byte) {
	now := s.parts.Clock.Now()
	s.policy = newPolicy(s.cfg, now)
	s.retryAt, s.fails, s.told, s.dirty = now, 0, now, true
	var was Status
	if json.Unmarshal(before, &was) == nil && was.Decision != nil && was.Decision.ServiceFrom != FromAssumed {
		s.policy.service.seed(time.Duration(was.Decision.ServiceS * float64(time.Second)))
	}
	s.set(func(st *Status) {
		changes := st.Changes
		*st = s.fresh()
		st.Leader, st.Changes, st.Last = s.cfg.ID, changes, was.Last
	})
	s.parts.Log.Info("this scaler leads", "queue", s.cfg.Queue, "group", s.cfg.Group)
}

// follow shows what the leader says.
func (s *Scaler) follow(value []byte, err error) {
	var of Status
	if err == nil && value != nil {
		if jsonErr := json.Unmarshal(value, &of); jsonErr != nil {
			err = fmt.Errorf("read what the leader says: %w", jsonErr)
		}
	}
	s.set(func(st *Status) {
		changes := st.Changes
		if err == nil && value != nil {
			*st = of
			st.Changes = changes
		}
		if err != nil {
			st.Leader = "" // not known
			s.trouble(st, err)
		}
	})
}

// trouble notes what keeps the scaler from working; once in the log for each that is new.
func (s *Scaler) trouble(st *Status, err error) {
	if err == nil {
		if st.Trouble != "" {
			s.parts.Log.Info("it works again", "before", st.Trouble)
		}
		st.Trouble, st.Hint = "", ""
		return
	}
	if st.Trouble != err.Error() {
		s.parts.Log.Warn("the scaler changes nothing", "error", err, "hint", hint.Of(err))
	}
	st.Trouble, st.Hint = err.Error(), hint.Of(err)
}

// lead looks, decides and acts.
func (s *Scaler) lead(ctx context.Context) {
	seen, index, err := s.look(ctx)
	if err != nil {
		s.policy.lost()
		s.set(func(st *Status) { s.trouble(st, err) })
		s.dirty = true
		s.tell(ctx)
		return
	}
	d := s.policy.decide(s.parts.Clock.Now(), seen)
	before := s.Status().Decision
	s.dirty = s.dirty || before == nil || before.Count != d.Count || before.Wanted != d.Wanted || before.Seen.Running != d.Seen.Running
	s.set(func(st *Status) { st.Decision, st.At = &d, time.Now().UTC() })
	s.act(ctx, d, index)
	s.tell(ctx)
}

// look asks broker, Nomad and coordinators. Reports that cannot be read are no reason to stop: the time of an item is known from before.
func (s *Scaler) look(ctx context.Context) (Seen, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	depth, err := s.parts.Queue.Depth(ctx)
	if err != nil {
		return Seen{}, 0, fmt.Errorf("how much there is to do is not known: %w", err)
	}
	group, err := s.parts.Cluster.Group(ctx, s.cfg.Job, s.cfg.Group)
	if err != nil {
		return Seen{}, 0, err
	}
	if group.Stopped {
		return Seen{}, 0, hint.Wrap(fmt.Errorf("job %s is stopped", s.cfg.Job), "a scaler does not start it again: nomad job run does")
	}
	loads, err := s.reports.read(ctx)
	if err != nil {
		s.parts.Log.Debug("reports", "error", err)
	}
	return Seen{Ready: depth.Ready, Delayed: depth.Delayed, InFlight: depth.InFlight, Count: group.Count, Placed: group.Placed, Running: group.Running, Loads: loads}, group.Index, nil
}

// The delays after a change that failed: twice as long with each, up to the longest.
const (
	firstRetry = time.Second
	lastRetry  = 15 * time.Second
)

// act changes the count, when there is something to change and nothing stands in the way.
func (s *Scaler) act(ctx context.Context, d Decision, index uint64) {
	now := s.parts.Clock.Now()
	left := s.seat.until().Sub(now)
	if !d.Change() {
		s.fails = 0
		s.set(func(st *Status) { s.trouble(st, nil) })
		return
	}
	if now < s.retryAt || left <= 0 {
		return
	}
	why := Why(d, s.cfg)
	act, cancel := context.WithTimeout(ctx, min(requestTimeout, left))
	err := s.parts.Cluster.Scale(act, s.cfg.Job, s.cfg.Group, d.Count, index, "retinue: "+why)
	cancel()
	if errors.Is(err, errChanged) {
		if s.late++; s.late < 5 { // seen at the next look
			s.parts.Log.Debug("not scaled", "error", err)
			return
		}
	} else {
		s.late = 0
	}
	change := Change{At: time.Now().UTC(), From: d.Seen.Count, To: d.Count, Why: why}
	if err != nil {
		change.Error = err.Error()
		s.fails++
		s.retryAt = now.Add(min(firstRetry<<min(s.fails-1, 10), lastRetry))
	} else {
		s.fails = 0
		s.parts.Log.Info("scaled", "group", s.cfg.Group, "from", change.From, "to", change.To, "why", why)
	}
	s.dirty = true
	s.set(func(st *Status) {
		st.Last = &change
		s.trouble(st, err)
		switch {
		case errors.Is(err, errBlocked):
			st.Changes.Blocked++
		case err != nil:
			st.Changes.Failed++
		case change.To > change.From:
			st.Changes.Up++
		default:
			st.Changes.Down++
		}
	})
}

// tellEvery bounds how old what followers show may be.
const tellEvery = 10 * time.Second

// tell writes the status into the seat's key, when it says something new.
func (s *Scaler) tell(ctx context.Context) {
	now := s.parts.Clock.Now()
	if !s.dirty && now.Sub(s.told) < tellEvery {
		return
	}
	put, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := s.seat.put(put, s.value(s.cfg.ID)); err != nil {
		s.parts.Log.Debug("the status was not written", "error", err)
		return
	}
	s.told, s.dirty = now, false
}

// value is the status as the seat's key has it, without every coordinator's report. Only who leads writes it.
func (s *Scaler) value(leader string) []byte {
	st := s.Status()
	st.Leader = leader
	if st.Decision != nil {
		d := *st.Decision
		d.Seen.Loads = nil
		st.Decision = &d
	}
	data, err := json.Marshal(st)
	if err != nil {
		return nil // numbers and text: it does not happen
	}
	return data
}

// healthy says that the owner makes its steps.
func (s *Scaler) healthy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parts.Clock.Now().Sub(s.at) < 30*time.Second+s.cfg.Interval
}
