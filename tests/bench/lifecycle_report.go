package main

import (
	"fmt"
	"strings"
	"time"
)

// taskLatencies are all runs of all contenders.
type taskLatencies struct {
	contenders []*taskContender
	drivers    []string
}

func startOf(r taskRun) time.Duration { return r.start }
func stopOf(r taskRun) time.Duration  { return r.stop }

// beyond is a stop without what its hooks took.
func beyond(r taskRun) time.Duration { return r.stop - r.hooked() }

// medianOf is the median of one contender's runs, in nanoseconds.
func medianOf(c *taskContender, drawn []int, of func(taskRun) time.Duration) float64 {
	values := make([]float64, len(drawn))
	for i, n := range drawn {
		values[i] = float64(of(c.runs[n]))
	}
	return median(values)
}

// against compares a contender with another one: the median, the ratio of the medians, and the median of the differences in the same rounds.
func (c *taskContender) against(base *taskContender, of func(taskRun) time.Duration) (p50, ratio, added interval) {
	rounds := len(c.runs)
	p50 = bootstrap(rounds, func(drawn []int) float64 { return medianOf(c, drawn, of) })
	ratio = bootstrap(rounds, func(drawn []int) float64 { return medianOf(c, drawn, of) / medianOf(base, drawn, of) })
	added = bootstrap(rounds, func(drawn []int) float64 {
		values := make([]float64, len(drawn))
		for i, n := range drawn {
			values[i] = float64(of(c.runs[n]) - of(base.runs[n]))
		}
		return median(values)
	})
	return p50, ratio, added
}

func (i interval) times() string { return human(time.Duration(i.point)) }
func (i interval) timesAround() string {
	return human(time.Duration(i.low)) + " – " + human(time.Duration(i.high))
}
func (i interval) signed() string { return signed(time.Duration(i.point)) }
func (i interval) signedAround() string {
	return signed(time.Duration(i.low)) + " – " + signed(time.Duration(i.high))
}
func (i interval) factor() string       { return fmt.Sprintf("%.3f×", i.point) }
func (i interval) factorAround() string { return fmt.Sprintf("%.3f – %.3f", i.low, i.high) }

// report writes the tables, figures and targets.
func (m *taskLatencies) report(report *Report, quick bool) {
	for _, t := range []struct {
		part, title, explain string
		of                   func(taskRun) time.Duration
	}{
		{"start", "Start of a task", "From `Task Setup` to `Started`. None of the contenders has a hook in its start.", startOf},
		{"stop", "Stop of a task", "From `Killing` to `Killed`; it holds what the application itself takes to end.", stopOf},
	} {
		table := Table{Title: t.title, Explain: t.explain, Head: []string{"driver", "contender", "n", "p50", "95 %", "ratio", "95 %", "added", "95 %"}}
		for _, c := range m.contenders {
			base := m.find(c.driver, builtInName)
			p50, ratio, added := c.against(base, t.of)
			row := []string{c.driver, c.name, fmt.Sprint(len(c.runs)), p50.times(), p50.timesAround(), "1×", "–", "–", "–"}
			figure := Figure{Part: t.part, Contender: c.name, Config: c.driver, Took: summarizeRuns(c, t.of), Values: map[string]float64{"p50_low_ns": p50.low, "p50_high_ns": p50.high}}
			if c != base {
				copy(row[5:], []string{ratio.factor(), ratio.factorAround(), added.signed(), added.signedAround()})
				figure.Values["ratio"], figure.Values["ratio_low"], figure.Values["ratio_high"] = ratio.point, ratio.low, ratio.high
				figure.Values["added_ns"], figure.Values["added_low_ns"], figure.Values["added_high_ns"] = added.point, added.low, added.high
			}
			table.Rows, report.Figures = append(table.Rows, row), append(report.Figures, figure)
		}
		report.Tables = append(report.Tables, table)
	}
	m.hooks(report)
	rounds := len(m.contenders[0].runs)
	for _, driver := range m.drivers {
		base := m.find(driver, builtInName)
		_, ratio, _ := m.find(driver, plainName).against(base, startOf)
		report.Targets = append(report.Targets, Target{What: "start, decorated over built-in, " + driver, Want: "≤ 1.03× (medians)",
			Measured: fmt.Sprintf("%s (95 %%: %s, n=%d)", ratio.factor(), ratio.factorAround(), rounds), Met: ratio.point <= 1.03})
	}
	for _, driver := range m.drivers {
		_, _, added := m.find(driver, hookedName).against(m.find(driver, builtInName), beyond)
		report.Targets = append(report.Targets, Target{What: "stop beyond its hooks, over built-in, " + driver, Want: "≤ 25 ms",
			Measured: fmt.Sprintf("%s (95 %%: %s, n=%d)", added.signed(), added.signedAround(), rounds), Met: added.point <= 25e6})
	}
	for _, driver := range m.drivers {
		each := m.hook(driver)
		report.Targets = append(report.Targets, Target{What: "http hook, " + driver, Want: "p50 ≤ 10 ms", Measured: fmt.Sprintf("p50 %s, p99 %s (n=%d)", human(each.P50), human(each.P99), each.N), Met: each.P50 <= 10*time.Millisecond})
	}
	report.Quotes = append(report.Quotes, Quote{"plugins/README.md", "lifecycle-cost", m.words(report.Load)})
	if rounds < leastRounds && !quick {
		report.Missing = append(report.Missing, fmt.Sprintf("%d runs of each contender: time was up after %d", leastRounds, rounds))
	}
}

// leastRounds is what a full run wants of each contender.
const leastRounds = 30

// words are what the room's README quotes of a run.
func (m *taskLatencies) words(load float64) string {
	var starts, stops []string
	for _, driver := range m.drivers {
		base := m.find(driver, builtInName)
		p50, ratio, _ := m.find(driver, plainName).against(base, startOf)
		starts = append(starts, fmt.Sprintf("%s %s, %s that of the built-in driver (%s)", driver, p50.times(), ratio.factor(), ratio.factorAround()))
		_, _, added := m.find(driver, hookedName).against(base, beyond)
		stops = append(stops, fmt.Sprintf("%s %s (%s)", driver, added.signed(), added.signedAround()))
	}
	return fmt.Sprintf("Measured here, beside the built-in drivers in the same rounds (n=%d, load %.1f before; in brackets what holds 95 %%). A start takes in the median: %s. A stop takes longer, without what its hooks take, by: %s. An http hook takes %s.\n",
		len(m.contenders[0].runs), load, strings.Join(starts, "; "), strings.Join(stops, "; "), human(m.hook(m.drivers[0]).P50))
}

// hooks tells what the http hooks took, by the driver's own clock and by what they added to the stop.
func (m *taskLatencies) hooks(report *Report) {
	table := Table{Title: "An http hook", Explain: "`pre_drain` and `pre_stop` on the application's Unix socket, as the driver's own events say; and what a stop with the two takes longer than the decorated driver's without, halved.",
		Head: []string{"driver", "n", "min", "p50", "p99", "added to the stop, each", "95 %"}}
	for _, driver := range m.drivers {
		each := m.hook(driver)
		_, _, added := m.find(driver, hookedName).against(m.find(driver, plainName), stopOf)
		half := interval{added.point / 2, added.low / 2, added.high / 2}
		table.Rows = append(table.Rows, []string{driver, fmt.Sprint(each.N), human(each.Min), human(each.P50), human(each.P99), half.signed(), half.signedAround()})
		report.Figures = append(report.Figures, Figure{Part: "http hook", Contender: plainName, Config: driver, Took: each, Values: map[string]float64{"added_ns": half.point, "added_low_ns": half.low, "added_high_ns": half.high}})
	}
	report.Tables = append(report.Tables, table)
}

func (m *taskLatencies) hook(driver string) Summary {
	var all []time.Duration
	for _, r := range m.find(driver, hookedName).runs {
		all = append(all, r.hooks...)
	}
	return summarize(all)
}

func (m *taskLatencies) find(driver, name string) *taskContender {
	for _, c := range m.contenders {
		if c.driver == driver && c.name == name {
			return c
		}
	}
	return nil
}

func summarizeRuns(c *taskContender, of func(taskRun) time.Duration) Summary {
	var all []time.Duration
	for _, r := range c.runs {
		all = append(all, of(r))
	}
	return summarize(all)
}
