package main

import (
	"fmt"
	"slices"
	"strings"
)

// plotGather draws what was measured, and says it in the words that the room's README quotes.
func plotGather(report *Report) {
	where := fmt.Sprintf("%d CPUs, load %.1f before and %.1f after", report.CPUs, report.Load, loadAverage())
	if len(report.overheads) > 0 {
		report.Plots = append(report.Plots, Plot{"gather-overhead.svg", overheadPlot(report.overheads, where)})
	}
	if len(report.tails) == 0 {
		return
	}
	one, without, with := report.tails[0], unhedged(report.tails), hedgedRoot(report.tails)
	n := with.leaves
	report.Plots = append(report.Plots, Plot{"gather-tail.svg", exceedance("A request is as slow as its slowest leaf", fmt.Sprintf("Share of requests slower than …; 1 %% of leaf calls take %s longer in the mean; %s", human(slowAdd), where), []curve{
		{"one leaf", one.front.took()}, {fmt.Sprintf("%d leaves", n), without.front.took()}, {fmt.Sprintf("%d leaves, hedged", n), with.front.took()}})})
	words := fmt.Sprintf("Measured here, with 1 %% of leaf calls slower by %s in the mean, 50 ms at least (n=%d; %s): one leaf takes %s in the median and %s at the p99. A request to %d leaves without hedging takes %s in the median, "+
		"p99 %s. Hedged, as the root comes, it takes %s, p90 %s, p99 %s, for %.1f %% more calls. In %.1f %% of the requests both replicas of some leaf were slow, which no second copy makes fast; the p99 of the others is %s.",
		human(slowAdd), with.took.N, where, human(one.took.P50), human(one.took.P99), n, human(without.took.P50), human(without.took.P99),
		human(with.took.P50), human(with.p90), human(with.took.P99), with.extra*100, 100*float64(with.hopeless)/float64(max(1, with.took.N)), human(with.hopeful))
	report.Quotes = append(report.Quotes, Quote{"gather/README.md", "gather-tail", words + "\n"})
	if added := addedWords(report.overheads); added != "" {
		report.Quotes = append(report.Quotes, Quote{"gather/README.md", "gather-overhead", "Measured here (" + where + "), beside a bare fan-out in Go of the same run: " + added + ".\n"})
	}
}

// overheadPlot shows the medians of all but the bare fan-out, as a share of its.
func overheadPlot(all []overhead, where string) string {
	var names []string
	var groups []group
	for _, o := range all {
		if o.name == "bare" {
			name := fmt.Sprintf("%d leaves", o.leaves)
			if o.leaves == 1 {
				name = "1 leaf"
			}
			groups = append(groups, group{name: name, note: "bare: " + human(o.took.P50)})
			continue
		}
		if !slices.Contains(names, o.name) {
			names = append(names, o.name)
		}
		g := &groups[len(groups)-1]
		g.bars = append(g.bars, bar{share(o.p50(), o.bare.P50), signed(o.p50())})
	}
	return bars("What is added to a bare fan-out in Go", "Median of a request over the bare one's, same rounds; "+where, " %", names, groups)
}

// addedWords is what the root adds, for each number of leaves.
func addedWords(all []overhead) string {
	var words []string
	for _, o := range all {
		if o.name == rootName {
			words = append(words, fmt.Sprintf("%s with %d (%s in all; p99 %s)", signed(o.p50()), o.leaves, human(o.took.P50), signed(o.p99())))
		}
	}
	return strings.Join(words, ", ")
}
