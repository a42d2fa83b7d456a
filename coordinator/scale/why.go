package scale

import (
	"fmt"
	"strings"
	"time"
)

// Why is a decision in a line.
func Why(d Decision, cfg Config) string {
	why := fmt.Sprintf("%d items (%d ready, %s in flight) of %s each are to be done in %s by %d slots a worker: %d workers", d.Items, max(0, d.Seen.Ready), number(d.Seen.InFlight),
		seconds(d.ServiceS), cfg.Target, cfg.Slots, d.Wanted)
	if len(d.Limits) > 0 {
		why += "; " + strings.Join(d.Limits, "; ")
	}
	return why
}

// Explain is the status for people: what was seen, what follows, what limited it, what was done, who leads.
func (st Status) Explain(now time.Time) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s "+format+"\n", append([]any{name}, args...)...)
	}
	leader := st.Leader
	switch {
	case leader == "":
		leader = "nobody leads"
	case leader == st.Scaler:
		leader += " leads (asked)"
	default:
		leader += " leads (asked: " + st.Scaler + ")"
	}
	line("leader", "%s", leader)
	if d := st.Decision; d != nil {
		line("seen", "%s ready, %s delayed, %s in flight; group %s has %d, %d placed, %d running; %s ago", number(d.Seen.Ready), number(d.Seen.Delayed), number(d.Seen.InFlight),
			st.Group, d.Seen.Count, d.Seen.Placed, d.Seen.Running, now.Sub(st.At).Round(100*time.Millisecond))
		line("item", "%s in a slot (%s)", seconds(d.ServiceS), from(d.ServiceFrom))
		line("formula", "ceil(%d items x %s / (%s x %d slots)) = %d", d.Items, seconds(d.ServiceS), seconds(st.Rules.TargetS), st.Rules.Slots, d.Wanted)
		for i, limit := range d.Limits {
			name := ""
			if i == 0 {
				name = "limits"
			}
			line(name, "%s", limit)
		}
		what := "as it is"
		if d.Change() {
			what = fmt.Sprintf("from %d", d.Seen.Count)
		}
		line("decision", "%d, %s", d.Count, what)
	}
	if c := st.Last; c != nil {
		line("last", "%d -> %d, %s ago: %s", c.From, c.To, now.Sub(c.At).Round(time.Second), c.Why)
		if c.Error != "" {
			line("", "did not come to it: %s", c.Error)
		}
	}
	if st.Trouble != "" {
		line("trouble", "%s", st.Trouble)
	}
	if st.Hint != "" {
		line("hint", "%s", st.Hint)
	}
	line("rules", "%d to %d workers; a step down after %s; up to twice of what runs", st.Rules.Min, st.Rules.Max, seconds(st.Rules.CooldownS))
	return b.String()
}

func from(where string) string {
	switch where {
	case FromRunning:
		return "those that run have taken so long already"
	case FromAssumed:
		return "assumed: nothing was measured yet"
	}
	return where
}

func number(n int64) string {
	if n < 0 {
		return "unknown"
	}
	return fmt.Sprint(n)
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(100 * time.Microsecond).String()
}
