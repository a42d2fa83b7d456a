// Package doctor looks at a machine and at the Consul and Nomad it can reach,
// and says what retinue would miss: one line for a check, and for each that is
// not well a hint what to do. It only looks; it changes nothing.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"retinue/internal/hint"
)

// Level is how a check came out.
type Level string

const (
	OK      Level = "ok"
	Warning Level = "warning" // works, but not everything or not for long
	Failed  Level = "failed"
	Skipped Level = "skipped" // cannot be known because of another failure
)

// Check is one question to the machine. Run returns what it found; an error is a
// failure, or a warning when it was made by warn.
type Check struct {
	Category string
	Name     string
	Run      func(ctx context.Context) (detail string, err error)
}

// Result is one line of the report.
type Result struct {
	Category string `json:"category"`
	Name     string `json:"name"`
	Level    Level  `json:"level"`
	Detail   string `json:"detail"`
	Hint     string `json:"hint,omitempty"`
}

// Report is everything that was found.
type Report struct {
	OK      bool     `json:"ok"` // nothing failed
	Results []Result `json:"results"`
}

// warning is an error that is none.
type warning struct{ error }

func (w warning) Unwrap() error { return w.error }

func warn(err error) error { return warning{err} }

// errSkip marks a check that another failure makes pointless.
var errSkip = errors.New("not checked")

// checkLimit bounds one check.
const checkLimit = 20 * time.Second

// Run makes the checks in their order; each is told to done as it is there.
func Run(ctx context.Context, checks []Check, done func(Result)) Report {
	report := Report{OK: true, Results: []Result{}}
	for _, c := range checks {
		if ctx.Err() != nil {
			report.OK = false
			break
		}
		r := c.result(ctx)
		if r.Level == Failed {
			report.OK = false
		}
		report.Results = append(report.Results, r)
		if done != nil {
			done(r)
		}
	}
	return report
}

func (c Check) result(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	detail, err := c.Run(ctx)
	r := Result{Category: c.Category, Name: c.Name, Level: OK, Detail: detail}
	if err == nil {
		return r
	}
	r.Level, r.Hint = Failed, hint.Of(err)
	if errors.As(err, new(warning)) {
		r.Level = Warning
	}
	if errors.Is(err, errSkip) {
		r.Level = Skipped
	}
	switch {
	case detail == "":
		r.Detail = err.Error()
	default:
		r.Detail = detail + ": " + err.Error()
	}
	return r
}

// Printer writes results as lines under the headings of their categories.
type Printer struct {
	w        io.Writer
	colour   bool
	category string
	counts   map[Level]int
}

// NewPrinter prints to w, in colour if asked to.
func NewPrinter(w io.Writer, colour bool) *Printer {
	return &Printer{w: w, colour: colour, counts: map[Level]int{}}
}

// Print writes one result.
func (p *Printer) Print(r Result) {
	if r.Category != p.category {
		if p.category != "" {
			fmt.Fprintln(p.w)
		}
		p.category = r.Category
		fmt.Fprintln(p.w, r.Category)
	}
	p.counts[r.Level]++
	fmt.Fprintf(p.w, "%s %s: %s\n", p.mark(r.Level), r.Name, r.Detail)
	if r.Hint != "" {
		fmt.Fprintf(p.w, "    Hint: %s\n", r.Hint)
	}
}

// Sum writes the last line.
func (p *Printer) Sum() {
	fmt.Fprintf(p.w, "\n%d ok, %d warnings, %d failed", p.counts[OK], p.counts[Warning], p.counts[Failed])
	if n := p.counts[Skipped]; n > 0 {
		fmt.Fprintf(p.w, ", %d not checked", n)
	}
	fmt.Fprintln(p.w)
}

func (p *Printer) mark(l Level) string {
	mark, code := "√", "32"
	switch l {
	case Warning:
		mark, code = "‼", "33"
	case Failed:
		mark, code = "×", "31"
	case Skipped:
		mark, code = "-", "90"
	}
	if !p.colour {
		return mark
	}
	return "\x1b[" + code + "m" + mark + "\x1b[0m"
}
