package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // the program runs in images that have no time zones

	"github.com/robfig/cron/v3"

	"retinue/coordinator/commit"
	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// ScheduleSettings are an item that is published again and again.
type ScheduleSettings struct {
	Name        string            `hcl:"name,label"`
	Cron        string            `hcl:"cron"`
	Zone        string            `hcl:"zone,optional"`
	Body        string            `hcl:"body,optional"`
	ContentType string            `hcl:"content_type,optional"`
	Headers     map[string]string `hcl:"headers,optional"`
	Key         string            `hcl:"key,optional"`
	Priority    int               `hcl:"priority,optional"`
	CatchUp     string            `hcl:"catch_up,optional"`
}

// Schedule is a time table: at each tick an item is published, once by all coordinators of a queue.
type Schedule struct {
	Name, Cron string
	Zone       *time.Location
	// CatchUp is how old a tick may be that is still published, after a restart or a pause. Only the last one is.
	CatchUp time.Duration
	line    Line
	times   cron.Schedule
}

var scheduleName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,69}$`)

const maxCatchUp = 31 * 24 * time.Hour

// schedule reads the settings of one.
func (s ScheduleSettings) schedule() (Schedule, error) {
	out := Schedule{Name: s.Name, Cron: s.Cron, Zone: time.UTC, CatchUp: 5 * time.Minute}
	fail := func(err error, text string) (Schedule, error) {
		return out, hint.Wrap(fmt.Errorf("schedule %q: %w", s.Name, err), "%s", text)
	}
	if !scheduleName.MatchString(s.Name) {
		return fail(errors.New("its name"), "use 1 to 70 letters, digits, - or _")
	}
	var err error
	if s.Zone != "" {
		if out.Zone, err = time.LoadLocation(s.Zone); err != nil || s.Zone == "Local" {
			return fail(fmt.Errorf("zone %q is unknown", s.Zone), "write it like Europe/Berlin; without one it is UTC")
		}
	}
	const five = "five fields, minute hour day-of-month month day-of-week, like \"30 3 * * 1-5\", or @daily, @hourly, @weekly, @monthly"
	if strings.HasPrefix(s.Cron, "@every") {
		return fail(fmt.Errorf("cron %q would begin at another moment in each coordinator", s.Cron), "write \"*/5 * * * *\" for every five minutes")
	}
	if strings.Contains(s.Cron, "TZ=") {
		return fail(fmt.Errorf("cron %q has a time zone in it", s.Cron), "write zone = \"...\" beside it")
	}
	if out.times, err = cron.ParseStandard(s.Cron); err != nil {
		return fail(fmt.Errorf("cron %q: %w", s.Cron, err), five)
	}
	if out.times.Next(time.Now()).IsZero() {
		return fail(fmt.Errorf("cron %q never comes", s.Cron), "is there such a day? the 30th of February is none")
	}
	if s.CatchUp != "" {
		if out.CatchUp, err = time.ParseDuration(s.CatchUp); err != nil || out.CatchUp < 0 || out.CatchUp > maxCatchUp {
			return fail(fmt.Errorf("catch_up %q is not a duration between 0 and %s", s.CatchUp, maxCatchUp), "how late an item may still be published, like 1h")
		}
	}
	body := s.Body
	out.line = Line{Body: &body, ContentType: s.ContentType, Headers: s.Headers, Key: s.Key, Priority: s.Priority}
	if _, err := out.at(time.Now()); err != nil {
		return fail(err, "it must be an item that could be published")
	}
	return out, nil
}

// id names the item of a tick: all coordinators find the same one.
func (s Schedule) id(tick time.Time) string {
	return s.Name + "@" + tick.UTC().Format("2006-01-02T15:04:05Z")
}

// at is the message of a tick.
func (s Schedule) at(tick time.Time) (source.Out, error) {
	l := s.line
	l.ID = s.id(tick)
	l.Headers = map[string]string{"Schedule": s.Name, "Schedule-Time": tick.UTC().Format(time.RFC3339)}
	for name, value := range s.line.Headers {
		l.Headers[name] = value
	}
	return l.out()
}

// last is the newest tick after a moment and not after now; zero when there is none.
func (s Schedule) last(after, now time.Time) (tick time.Time) {
	for t := s.times.Next(after.In(s.Zone)); !t.IsZero() && !t.After(now); t = s.times.Next(t) {
		tick = t
	}
	return tick
}

// ScheduleView is a time table for people.
type ScheduleView struct {
	Name   string     `json:"name"`
	Cron   string     `json:"cron"`
	Zone   string     `json:"zone"`
	Next   time.Time  `json:"next"`
	Last   *time.Time `json:"last,omitempty"`    // the newest tick that this coordinator has dealt with
	LastID string     `json:"last_id,omitempty"` // its item
	How    string     `json:"how,omitempty"`     // published here, elsewhere, or failed
	Error  string     `json:"error,omitempty"`   // of the last try
}

// timetable publishes items at their ticks.
type timetable struct {
	c         *Coordinator
	schedules []Schedule
	spread    time.Duration // coordinators come one after the other, so that mostly one publishes
	retry     time.Duration

	mu    sync.Mutex
	views []ScheduleView
}

func newTimetable(c *Coordinator, schedules []Schedule) *timetable {
	t := &timetable{c: c, schedules: schedules, spread: 2 * time.Second, retry: 5 * time.Second, views: make([]ScheduleView, len(schedules))}
	for i, s := range schedules {
		t.views[i] = ScheduleView{Name: s.Name, Cron: s.Cron, Zone: s.Zone.String(), Next: s.times.Next(time.Now().In(s.Zone))}
	}
	return t
}

func (t *timetable) list() []ScheduleView {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]ScheduleView{}, t.views...)
}

func (t *timetable) note(i int, change func(v *ScheduleView)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.views[i])
}

// schedules serves GET /v1/queues/{queue}/schedules.
func (a *handlers) schedules(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, Schedules{a.c.times.list()})
}

// Schedules are the time tables of a queue, as one coordinator sees them.
type Schedules struct {
	Schedules []ScheduleView `json:"schedules"`
}

// run keeps one schedule until ctx ends.
func (t *timetable) run(ctx context.Context, i int) {
	s := t.schedules[i]
	settled := time.Now().Round(0).Add(-s.CatchUp - time.Nanosecond)
	for {
		now := time.Now().Round(0)
		pause := time.Minute // a clock may be set; ids make a tick that comes twice harmless
		if tick := s.last(settled, now); !tick.IsZero() {
			if t.tick(ctx, i, tick, now) {
				settled = tick
			} else {
				pause = t.retry
			}
		} else if next := s.times.Next(now.In(s.Zone)); !next.IsZero() {
			pause = min(pause, next.Sub(now)+time.Millisecond)
		}
		t.note(i, func(v *ScheduleView) { v.Next = s.times.Next(time.Now().In(s.Zone)) })
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// tick deals with one tick; false: try again.
func (t *timetable) tick(ctx context.Context, i int, tick, now time.Time) bool {
	s := t.schedules[i]
	how, err := "missed", error(nil)
	if now.Sub(tick) <= max(s.CatchUp, time.Minute) {
		how, err = t.publish(ctx, s, tick)
	}
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		how = "failed"
		t.c.parts.Log.Warn("a scheduled item was not published", "schedule", s.Name, "id", s.id(tick), "error", err)
	} else {
		t.c.parts.Log.Debug("scheduled item", "schedule", s.Name, "id", s.id(tick), "how", how)
	}
	t.c.metrics.ticks.With(s.Name, how).Inc()
	t.note(i, func(v *ScheduleView) {
		v.How, v.LastID, v.Last, v.Error = how, s.id(tick), &tick, ""
		if err != nil {
			v.Error = err.Error()
		}
	})
	return err == nil
}

// publish publishes the item of a tick unless somebody has. The mark that says so is made after the publication: a death between the two repeats it,
// under the same id, which the broker or the item's record removes; the other way round it would be lost.
func (t *timetable) publish(ctx context.Context, s Schedule, tick time.Time) (how string, err error) {
	select {
	case <-time.After(rand.N(t.spread + 1)):
	case <-ctx.Done():
		return "", ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	marks, _ := t.c.parts.Point.(commit.Forgetter)
	stage, slot := t.c.cfg.Queue+".cron."+s.Name, tick.UTC().Format("20060102T150405Z")
	if marks != nil {
		if done, err := marks.Turned(ctx, stage, slot); err != nil || done {
			return "elsewhere", err
		}
	}
	if rec, err := t.c.find(ctx, s.id(tick)); err != nil || rec != nil {
		return "elsewhere", err
	}
	out, err := s.at(tick)
	if err != nil {
		return "", err
	}
	if err := t.c.publish(ctx, t.c.cfg.Queue, []source.Out{out}); err != nil {
		return "", err
	}
	if marks != nil {
		_, err = marks.Turn(ctx, stage, slot)
	}
	return "published", err
}
