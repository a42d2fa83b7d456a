package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The promises.
const (
	ends      = "a task that is asked to end ends"
	survives  = "a task outlives what is not its own"
	oneOfIt   = "no second process of a task beside the first"
	hooksRun  = "the hooks of a stop run at least once, in order, before the signal"
	delivered = "a hook that is repeated has the same delivery"
	nothing   = "nothing is left behind"
	comesBack = "a task runs again when what was killed is back"
	noLoss    = "no acknowledged increment is lost, none counts twice"
)

func promises() []string {
	return []string{ends, survives, comesBack, oneOfIt, hooksRun, delivered, nothing, noLoss}
}

// finding is a promise that was broken.
type finding struct {
	Promise string `json:"promise"`
	Where   string `json:"where"`
	What    string `json:"what"`
}

func (f finding) String() string { return fmt.Sprintf("%s: %s: %s", f.Promise, f.Where, f.What) }

// line is one line of a subject's history.
type line struct {
	at                            time.Time
	run                           string
	what, hook, delivery, attempt string
}

func (l line) String() string {
	return fmt.Sprintf("%s %s %s %s %s", l.at.Format("05.000"), l.run, l.what, l.hook, l.delivery)
}

// readHistory reads what a subject has written; one that never ran has written nothing.
func readHistory(file string) ([]line, error) {
	data, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseHistory(string(data))
}

func parseHistory(text string) (out []line, err error) {
	for text := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(text, "\n"), "\t")
		if len(f) != 6 {
			return nil, fmt.Errorf("line %q", text)
		}
		at, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", text, err)
		}
		out = append(out, line{time.Unix(0, at), f[1], f[2], f[3], f[4], f[5]})
	}
	return out, nil
}

// stopHooks are the hooks of a stop, in order.
var stopHooks = []string{"pre_drain", "drain", "save_state", "pre_stop"}

// outcome is what a salvo made of one task.
type outcome struct {
	driver  string
	point   point
	fault   Fault
	phase   string // when the fault came, as the driver's file says; "" before there was one
	history []line
	ended   bool
	back    bool   // it ran when it was asked to end, or was being stopped
	status  string // of the allocation at the end
	left    []string
	events  []string
}

func (o *outcome) where() string {
	return fmt.Sprintf("%s, %s (%s), %s killed", o.driver, o.point.name, o.phaseWord(), o.fault)
}

func (o *outcome) phaseWord() string {
	if o.phase == "" {
		return "not begun"
	}
	return o.phase
}

// mustSurvive says that the process has to be the same one all the time: the fault was not in it, and it had been started.
func (o *outcome) mustSurvive() bool {
	return o.fault != killHelper && slices.Contains([]string{"running", "paused", "draining", "saving", "stopping"}, o.phase)
}

// judge holds what happened to a task against the promises. repeats is how many hooks were called more than once for one delivery.
func (o *outcome) judge() (findings []finding, repeats int) {
	find := func(promise, format string, args ...any) {
		what := fmt.Sprintf(format, args...)
		if len(o.history) > 0 {
			var all []string
			for _, l := range o.history {
				all = append(all, l.String())
			}
			what += "; history: " + strings.Join(all, " | ")
		}
		if len(o.events) > 0 {
			what += "; events: " + strings.Join(o.events, " | ")
		}
		findings = append(findings, finding{promise, o.where(), what})
	}
	if !o.ended {
		find(ends, "the allocation is still %s", o.status)
	}
	if !o.back {
		find(comesBack, "the allocation was %s", o.status)
	}
	if len(o.left) > 0 {
		find(nothing, "%s", strings.Join(o.left, ", "))
	}
	starts, runs := 0, map[string][]line{}
	var last string
	for _, l := range o.history {
		switch l.what {
		case "twin":
			find(oneOfIt, "two at the same time")
		case "start":
			starts++
			last = l.run
		}
		runs[l.run] = append(runs[l.run], l)
	}
	if o.mustSurvive() && starts != 1 {
		find(survives, "%d starts", starts)
	}
	for _, lines := range runs {
		deliveries, calls := map[string][]string{}, map[string]int{}
		for _, l := range lines {
			if l.what != "begin" || !slices.Contains(stopHooks, l.hook) {
				continue
			}
			if !slices.Contains(deliveries[l.hook], l.delivery) {
				deliveries[l.hook] = append(deliveries[l.hook], l.delivery)
			}
			if calls[l.hook+l.attempt]++; calls[l.hook+l.attempt] > 1 {
				repeats++
			}
		}
		for hook, all := range deliveries {
			if len(all) > 1 {
				find(delivered, "%s came as %q", hook, all)
			}
		}
	}
	// The run that was there to the end has to have been asked all, before the signal. One whose executor or shim was killed in its stop is not there.
	if lines := runs[last]; o.ended && signalled(lines) && !(o.fault == killHelper && o.point.stop) {
		if missing := outOfOrder(lines); missing != "" {
			find(hooksRun, "%s", missing)
		}
	}
	return findings, repeats
}

func signalled(lines []line) bool {
	return slices.ContainsFunc(lines, func(l line) bool { return strings.HasPrefix(l.what, "signal") })
}

// outOfOrder says what is wrong with the hooks of a stop: each has to have ended before the next one, and all before the signal.
func outOfOrder(lines []line) string {
	next := 0
	for _, l := range lines {
		if next < len(stopHooks) && l.what == "end" && l.hook == stopHooks[next] {
			next++
		}
		if strings.HasPrefix(l.what, "signal") {
			if next < len(stopHooks) {
				return "the signal came before the end of " + stopHooks[next]
			}
			return ""
		}
	}
	return ""
}
