package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue/tests/bench/script"
)

const milli = time.Millisecond

// steady are shots at a hundred a second, each as long as took says.
func steady(n int, took func(at time.Duration) time.Duration) []shot {
	shots := make([]shot, n)
	for i := range shots {
		at := time.Duration(i) * 10 * milli
		shots[i] = shot{n: uint64(i), sent: at, took: took(at), ok: true}
	}
	return shots
}

func TestJudgeFreeze(t *testing.T) {
	t.Parallel()
	const froze, thawed = 2 * time.Second, 5 * time.Second
	slowUntil := func(end time.Duration) []shot {
		return steady(550, func(at time.Duration) time.Duration {
			if at >= froze && at < end {
				return 30 * milli
			}
			return 2 * milli
		})
	}
	sum := func(all ...[]shot) frozenSum {
		var episodes []episode
		for _, shots := range all {
			episodes = append(episodes, judgeFreeze(shots, froze, thawed))
		}
		return sumEpisodes(episodes)
	}
	e := sum(slowUntil(froze + 500*milli))
	// One of a hundred may be slow: two of the 250 that follow.
	if e.never != 0 || e.back.Max < 470*milli || e.back.Max > 500*milli || e.base != 2*milli || e.worst != 30*milli || e.failed != 0 || e.requests != 550 {
		t.Errorf("slow for half a second: %+v", e)
	}
	if e := sum(slowUntil(froze)); e.never != 0 || e.back.N != 1 || e.back.Max != 0 {
		t.Errorf("never slow: %+v", e)
	}
	if e := sum(slowUntil(thawed)); e.never != 1 {
		t.Errorf("slow to the end: %+v", e)
	}
	failing := slowUntil(froze)
	failing[250].ok, failing[251].ok = false, false
	if e := sum(failing); e.failed != 2 {
		t.Errorf("two failed: %+v", e)
	}
	if e := sum(nil); e.never != 1 {
		t.Errorf("nothing: %+v", e)
	}
	s := sum(slowUntil(froze+500*milli), slowUntil(froze), slowUntil(thawed))
	if s.never != 1 || s.back.N != 2 || s.requests != 1650 || s.worst != 30*milli {
		t.Errorf("sum %+v", s)
	}
	if row := s.row("x", "y"); row[7] != "never in 1" || row[5] == "never" {
		t.Errorf("row %q", row)
	}
	// What is normal is known from all episodes together: a quiet one does not make a normal one slow.
	quiet := steady(550, func(time.Duration) time.Duration { return milli / 2 })
	if e := sum(quiet, slowUntil(froze)); e.never != 0 || e.base != 2*milli {
		t.Errorf("a quiet one beside a normal one: %+v", e)
	}
}

func TestEndedJudge(t *testing.T) {
	t.Parallel()
	var e ended
	e.judge([]script.Call{
		{N: 0, Ended: int64(101 * milli), Cancelled: true},
		{N: 1, Ended: int64(time.Second + 97*milli), Cancelled: true},
		{N: 1, Ended: int64(2 * time.Second)},
		{N: 2, Ended: int64(20 * time.Second)},
	}, []end{{due: int64(100 * milli), late: 3 * milli, ok: true}, {due: int64(1100 * milli), late: -milli, ok: true}, {}})
	if e.wrong != 1 || e.alive != 1 || e.leaf.N != 3 || e.leaf.Min != -3*milli || e.leaf.P50 != milli || e.p999 != 3*milli || e.answer.P50 != -milli {
		t.Errorf("%+v", e)
	}
}

func TestTailOf(t *testing.T) {
	t.Parallel()
	f := &front{name: rootName, leaves: 100, sent: 1000}
	hopeless := 0
	for n := range uint64(1000) {
		took := 5 * milli
		if slownesses[0].script(f, n).Hopeless(100) {
			hopeless, took = hopeless+1, 100*milli
		}
		f.shots = append(f.shots, shot{n: n, took: took, ok: true})
	}
	got := tailOf(f, 103*1010, 10)
	if got.hopeless != hopeless || got.hopeful != 5*milli || got.p90 != 5*milli || got.extra < 0.0299 || got.extra > 0.0301 {
		t.Errorf("hopeless %d of %d, hopeful %v, extra %v", got.hopeless, hopeless, got.hopeful, got.extra)
	}
	if tailOf(&front{leaves: 1}, 0, 0).took.N != 0 {
		t.Error("something came of nothing")
	}
}

func overheads(added time.Duration, ratio float64) (all []overhead) {
	for _, leaves := range []int{1, 10, 100, 1000} {
		bare := Summary{N: 100, P50: time.Duration(leaves) * 100 * time.Microsecond, P99: time.Duration(leaves) * 300 * time.Microsecond}
		ours := Summary{N: 100, P50: bare.P50 + added, P99: bare.P99 + added}
		all = append(all, overhead{leaves: leaves, name: "bare", took: bare, bare: bare, ratio: 1}, overhead{leaves: leaves, name: rootName, took: ours, bare: bare, ratio: ratio, perCall: 50000})
	}
	return all
}

func TestOverheadTargets(t *testing.T) {
	t.Parallel()
	met := func(added time.Duration, ratio float64) (met []bool) {
		ours := slices.DeleteFunc(overheads(added, ratio), func(o overhead) bool { return o.name != rootName })
		for _, target := range overheadTargets(ours) {
			met = append(met, target.Met)
		}
		return met
	}
	for _, test := range []struct {
		added time.Duration
		ratio float64
		want  []bool
	}{
		{150 * time.Microsecond, 1.2, []bool{true, true, true, true}},
		{-milli, 1.31, []bool{true, true, true, false}},
		{500 * time.Microsecond, 1.3, []bool{false, true, true, true}},
		{30 * milli, 0, []bool{false, false, false, false}},
	} {
		if got := met(test.added, test.ratio); !slices.Equal(got, test.want) {
			t.Errorf("+%v, %v×: %v, want %v", test.added, test.ratio, got, test.want)
		}
	}
	if len(overheadTargets(nil)) != 0 {
		t.Error("targets without figures")
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ section, only, want string }{
		{"", "", "leader-election scatter-gather work-queue lifecycle"},
		{"scatter-gather", "", "scatter-gather"},
		{"", "tail,leaves", "scatter-gather"},
		{"", "local,tail", "leader-election scatter-gather"},
		{"leader-election", "tail", "error"},
		{"", "inflight", "work-queue"},
		{"", "partitions", "work-queue"},
		{"", "nothing", "error"},
		{"nothing", "", "error"},
	} {
		chosen, err := choose(test.section, test.only)
		var names []string
		for _, s := range chosen {
			names = append(names, s.name)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = "error"
		}
		if got != test.want {
			t.Errorf("-section %q -only %q: %s, want %s", test.section, test.only, got, test.want)
		}
	}
}

// A plot is well-formed, has a step for what is large enough to see, and no number that is none.
func TestPlots(t *testing.T) {
	t.Parallel()
	var samples []time.Duration
	for i := range 1000 {
		samples = append(samples, time.Duration(i+1)*100*time.Microsecond)
	}
	for name, svg := range map[string]string{
		"exceedance": exceedance("A & B", "c", []curve{{"one", samples}, {"none", nil}, {"same", []time.Duration{5, 5}}}),
		"nothing":    exceedance("", "", nil),
		"bars":       overheadPlot(overheads(150*time.Microsecond, 1), "<here>"),
		"negative":   overheadPlot(overheads(-50*time.Microsecond, 1), ""),
		"no bars":    bars("", "", "", nil, nil),
	} {
		decoder := xml.NewDecoder(strings.NewReader(svg))
		for {
			_, err := decoder.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s has a number that is none:\n%s", name, svg)
		}
	}
	if n := strings.Count(exceedance("", "", []curve{{"", samples}}), "H"); n < 100 {
		t.Errorf("%d steps", n)
	}
}

func TestScale(t *testing.T) {
	t.Parallel()
	log := scale{log: true, min: 1, max: 100, from: 0, to: 200}
	for v, want := range map[float64]float64{1: 0, 10: 100, 100: 200, 1000: 200, 0.1: 0} {
		if got := log.at(v); got < want-0.01 || got > want+0.01 {
			t.Errorf("%v is at %v, want %v", v, got, want)
		}
	}
	for v, want := range map[float64]float64{0.7: 1, 3: 5, 12: 20, 51: 100} {
		if got := niceStep(v); got != want {
			t.Errorf("niceStep(%v) = %v, want %v", v, got, want)
		}
	}
}

func TestListens(t *testing.T) {
	t.Parallel()
	for log, want := range map[string]string{
		"warming\n" + `{"@message":"root started","listen":"127.0.0.1:7"}` + "\n": "127.0.0.1:7",
		`{"@message":"other","listen":"x"}`:                                       "",
		"":                                                                        "",
	} {
		got, err := listens([]byte(log))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", log, got, err)
		}
	}
}

// A tiny run of everything, with real processes: nothing about its speed is judged.
func TestScatterGatherSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r, err := newRig(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if err := r.gatherPrograms(ctx); err != nil {
		t.Fatal(err)
	}
	report := Report{Title: "Scatter/gather", Setup: gatherSetup, FactsOf: "Ends", FactsHead: rootName}
	a := amounts{leaves: []int{1, 3}, requests: map[int]int{1: 10, 3: 10}, limit: time.Minute, tail: 20, tailSize: 8, tree: 4, freezes: 1, flows: 200 * milli, frozen: 300 * milli, cut: 8, clients: 4, flood: 100 * milli}
	if err := r.measureGather(ctx, a, func(string) bool { return true }, &report); err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Figures {
		// The others have deadlines, which a busy machine does not keep.
		if slices.Contains([]string{"leaves", "tail", "tail-fixed", "trees"}, f.Part) && (f.Took.N == 0 || f.Failures > 0) {
			t.Errorf("not measured, or failed: %+v", f)
		}
	}
	if len(report.Targets) != 8 || len(report.Plots) != 2 || len(report.Tables) != 5 || len(report.Facts) != 3 {
		t.Errorf("%d targets, %d plots, %d tables, %d facts", len(report.Targets), len(report.Plots), len(report.Tables), len(report.Facts))
	}
	var out bytes.Buffer
	report.markdown(&out)
	if t.Failed() {
		t.Log(out.String())
	}
}
