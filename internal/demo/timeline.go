// Package demo is what the demonstrations of all patterns share: a timeline
// that people read and programs parse, and promises that are checked, so that
// a demonstration fails when its pattern does.
package demo

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Event is one line of a timeline.
type Event struct {
	AtMS int64  `json:"at_ms"` // milliseconds since the demonstration began
	Text string `json:"text"`
}

// Check is a promise of the pattern's README and whether it held.
type Check struct {
	Promise string `json:"promise"`
	Held    bool   `json:"held"`
	Detail  string `json:"detail"` // what was measured
}

// Report is the outcome of a demonstration, the form of its --json.
type Report struct {
	Pattern  string             `json:"pattern"`
	Cluster  string             `json:"cluster"`
	Events   []Event            `json:"events"`
	Measured map[string]float64 `json:"measured"` // names carry their unit, such as crash_failover_ms
	Checks   []Check            `json:"checks"`
	OK       bool               `json:"ok"` // every check held
}

// Timeline collects a Report while it prints it. It is safe for concurrent use.
type Timeline struct {
	mu     sync.Mutex
	out    io.Writer
	start  time.Time
	report Report
}

// NewTimeline begins the timeline of a pattern now and prints each event to out.
func NewTimeline(out io.Writer, pattern string) *Timeline {
	return &Timeline{out: out, start: time.Now(), report: Report{Pattern: pattern, Measured: map[string]float64{}}}
}

// Event records and prints what has just happened.
func (t *Timeline) Event(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := time.Since(t.start)
	e := Event{AtMS: at.Milliseconds(), Text: fmt.Sprintf(format, args...)}
	t.report.Events = append(t.report.Events, e)
	fmt.Fprintf(t.out, "%7.2f s  %s\n", at.Seconds(), e.Text)
}

// Note prints an explanation under the last event; it is not part of the report.
func (t *Timeline) Note(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, "           %s\n", fmt.Sprintf(format, args...))
}

// Cluster records what the demonstration runs on.
func (t *Timeline) Cluster(description string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Cluster = description
}

// Measure records a figure; the name carries the unit.
func (t *Timeline) Measure(name string, value float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Measured[name] = value
}

// Check records whether a promise held.
func (t *Timeline) Check(held bool, promise, detail string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Checks = append(t.report.Checks, Check{Promise: promise, Held: held, Detail: fmt.Sprintf(detail, args...)})
}

// Finish prints the checks and returns the report.
func (t *Timeline) Finish() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.OK = len(t.report.Checks) > 0
	fmt.Fprintln(t.out)
	for _, c := range t.report.Checks {
		verdict := "held  "
		if !c.Held {
			verdict = "BROKEN"
			t.report.OK = false
		}
		fmt.Fprintf(t.out, "  %s  %s: %s\n", verdict, c.Promise, c.Detail)
	}
	return t.report
}
