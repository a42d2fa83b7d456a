package main

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sampleReport has every kind of row that a run can produce.
func sampleReport() Report {
	ms := func(ns ...time.Duration) *outcome {
		o := &outcome{}
		for _, n := range ns {
			o.add(sample{took: n * time.Millisecond, vacancy: n * time.Millisecond / 2})
		}
		return o
	}
	unwatched := &outcome{samples: []sample{{took: 30 * time.Millisecond, vacancy: -1}}, failures: 2}
	never := &outcome{open: 50 * time.Second}
	ours, peer := elector(10*time.Second, "safe"), consulLock()
	return Report{
		Section: "leader-election", Title: "Leader election", Setup: electionSetup, FactsOf: electionFacts, FactsHead: "retinue elector",
		Tables:   []Table{{Title: "Figures", Explain: "Of contenders.", Head: []string{"contender", "p50", "note"}, Rows: [][]string{{"retinue", "1.00 ms", "First."}, {"bare", "2.00 ms", ""}}}},
		Versions: []Version{{"retinue", "0.1.0"}, {"consul", "1.22.5"}},
		CPUs:     2, Load: 2.5, LoadAfter: 3.5, Command: "make bench", Quick: true,
		Scenarios: []Scenario{
			{"Resign", "What was done.", compare([]Row{row(ours, ms(4, 2, 3), ""), row(peer, ms(9), "Another."), row(peer, unwatched, "Poor."), row(peer, never, "")})},
			{"Kill", "Not watched.", compare([]Row{row(ours, unwatched, ""), row(peer, never, "Slow.")})},
		},
		Facts:   []Fact{{"memory", "15.0 MB", "consul lock 100.0 MB"}, {What: "connections", Value: "2"}},
		Targets: []Target{{"memory", "≤ 25 MB", "15.0 MB", true}, {"speed", "≤ 1 ms", "2.00 ms", false}},
		Missing: []string{"a peer: why"},
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	const golden = "testdata/report.md"
	var got strings.Builder
	sampleReport().markdown(&got)
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the report differs from %s (run with -update if it should):\n%s", golden, got.String())
	}
}

// A table whose rows have not as many cells as its head is not shown as a table.
func TestTablesAreEven(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	sampleReport().markdown(&out)
	columns, tables := 0, 0
	for line := range strings.Lines(out.String()) {
		n := strings.Count(line, "|")
		switch {
		case n == 0:
			columns = 0
		case columns == 0:
			columns = n
			tables++
		case n != columns:
			t.Errorf("%d bars instead of %d: %s", n, columns, line)
		}
	}
	if tables != 5 {
		t.Errorf("%d tables, want 5", tables)
	}
}

func TestSplice(t *testing.T) {
	t.Parallel()
	const section = "new\n"
	beginMark, endMark := marks("leader-election")
	other, otherEnd := marks("scatter-gather")
	marked := beginMark + "\n" + section + endMark
	for name, test := range map[string]struct{ document, want string }{
		"empty":          {"", "# Benchmarks\n\nEvery figure stands beside a peer's of the same run, and is written by the program that measured it.\n\n" + marked + "\n"},
		"other rooms":    {"# B\n\nother\n", "# B\n\nother\n\n" + marked + "\n"},
		"replaced":       {"a\n" + beginMark + "\nold\n" + endMark + "\nb\n", "a\n" + marked + "\nb\n"},
		"another's stay": {other + "\nx\n" + otherEnd + "\n" + beginMark + "\nold\n" + endMark + "\n", other + "\nx\n" + otherEnd + "\n" + marked + "\n"},
		"no end mark":    {"a\n" + beginMark + "\nold\n", "a\n" + beginMark + "\nold\n\n" + marked + "\n"},
	} {
		if got := splice(test.document, "leader-election", section); got != test.want {
			t.Errorf("%s:\n%q, want\n%q", name, got, test.want)
		}
	}
}

func TestVacancy(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		changes []keyChange
		want    time.Duration
		known   bool
	}{
		"nothing seen yet":         {[]keyChange{{5, true}}, 0, false},
		"handed over":              {[]keyChange{{5, true}, {12, true}}, 0, true},
		"vacant":                   {[]keyChange{{5, true}, {12, false}, {15, true}}, 3, true},
		"vacant twice":             {[]keyChange{{12, false}, {15, true}, {20, false}, {24, true}}, 7, true},
		"deleted, then absent":     {[]keyChange{{12, false}, {13, false}, {15, true}}, 3, true},
		"still vacant":             {[]keyChange{{12, false}}, 0, false},
		"before it does not count": {[]keyChange{{1, false}, {9, true}, {12, true}}, 0, true},
	} {
		if got, known := vacancy(test.changes, 10); known != test.known || known && got != test.want {
			t.Errorf("%s: %v, %v, want %v, %v", name, got, known, test.want, test.known)
		}
	}
}

func TestHexAddr(t *testing.T) {
	t.Parallel()
	if got, err := hexAddr("127.0.0.1:8500"); err != nil || got != "0100007F:2134" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := hexAddr("localhost:8500"); err == nil {
		t.Error("a name is taken for an address")
	}
}
