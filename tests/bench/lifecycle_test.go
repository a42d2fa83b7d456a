package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/tests/drivercluster"
)

func TestLifeOfATask(t *testing.T) {
	t.Parallel()
	at := func(kind string, ms int, details map[string]string) *nomad.TaskEvent {
		return &nomad.TaskEvent{Type: kind, Time: int64(ms) * int64(time.Millisecond), Details: details}
	}
	events := []*nomad.TaskEvent{at("Received", 1, nil), at("Task Setup", 10, nil), at("Started", 130, nil), at("Killing", 1000, nil),
		at("Driver", 1001, map[string]string{"pre_drain": "1.5ms"}), at("Driver", 1003, map[string]string{"pre_stop": "asked 2ms"}), at("Terminated", 1030, nil), at("Killed", 1040, nil)}
	got, err := lifeOf(events)
	if err != nil || got.start != 120*time.Millisecond || got.stop != 40*time.Millisecond || got.hooked() != 3500*time.Microsecond || beyond(got) != 36500*time.Microsecond {
		t.Errorf("%+v, %v", got, err)
	}
	events[4].Details["pre_drain"] = "failed after 5s: not done within 5s"
	if _, err := lifeOf(events); err == nil || !strings.Contains(err.Error(), "pre_drain failed") {
		t.Errorf("a hook that failed: %v", err)
	}
	if _, err := lifeOf(events[:3]); err == nil {
		t.Error("a task that was not stopped has a life")
	}
}

func TestBootstrap(t *testing.T) {
	t.Parallel()
	values := []float64{9, 10, 10, 10, 10, 11, 10, 10, 30, 10}
	got := bootstrap(len(values), func(drawn []int) float64 {
		var of []float64
		for _, n := range drawn {
			of = append(of, values[n])
		}
		return median(of)
	})
	if got.point != 10 || got.low > 10 || got.high < 10 || got.high > 11 {
		t.Errorf("%+v", got)
	}
	if values[8] != 30 {
		t.Error("the values have changed")
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("median of an even number: %v", m)
	}
}

// A decorated driver that starts as fast as the built-in one meets the target, one that is 4 % slower does not; with the noise of rounds in both.
func TestLifecycleTargets(t *testing.T) {
	t.Parallel()
	made := func(slower float64) *Report {
		m := &taskLatencies{contenders: taskContenders([]string{"exec"}), drivers: []string{"exec"}}
		for round := range 40 {
			noise := 1 + 0.2*math.Sin(float64(round))
			ms := func(f float64) time.Duration { return time.Duration(f * noise * float64(time.Millisecond)) }
			builtIn := taskRun{start: ms(100), stop: ms(20)}
			hooked := taskRun{start: ms(100 * slower), stop: ms(20*slower) + 4*time.Millisecond, hooks: []time.Duration{time.Millisecond, 3 * time.Millisecond}}
			for i, r := range []taskRun{builtIn, {start: ms(100 * slower), stop: ms(20 * slower)}, hooked} {
				m.contenders[i].runs = append(m.contenders[i].runs, r)
			}
		}
		report := &Report{}
		m.report(report, false)
		return report
	}
	for slower, want := range map[float64][]bool{1: {true, true, true}, 1.04: {false, true, true}, 3: {false, false, true}} {
		report := made(slower)
		var met []bool
		for _, target := range report.Targets {
			met = append(met, target.Met)
		}
		if !slices.Equal(met, want) {
			t.Errorf("%v times slower: %+v", slower, report.Targets)
		}
		if len(report.Missing) > 0 {
			t.Errorf("missing: %q", report.Missing)
		}
		for _, table := range report.Tables {
			for _, row := range table.Rows {
				if len(row) != len(table.Head) {
					t.Errorf("%s: %q", table.Title, row)
				}
			}
		}
		if words, want := report.Quotes[0].Text, fmt.Sprintf("%.3f× that of the built-in driver", slower); !strings.Contains(words, want) {
			t.Errorf("want %q in: %s", want, words)
		}
	}
}

func TestMemoryReport(t *testing.T) {
	t.Parallel()
	m := &memories{drivers: []string{"exec"}, plugin: map[string][2]drivercluster.Memory{"exec": {{RSS: 20e6, PSS: 10e6}, {RSS: 30e6, PSS: 11e6}}},
		decorated: map[string]drivercluster.Memory{"exec": {PSS: 10e6}}, builtIn: map[string]drivercluster.Memory{"exec": {PSS: 15e6}}}
	report := &Report{}
	m.report(report)
	if !report.Targets[0].Met || !slices.Contains(report.Tables[1].Rows[0], "5 tasks") {
		t.Errorf("%+v", report)
	}
	m.builtIn["exec"] = drivercluster.Memory{PSS: 9e6}
	report = &Report{}
	m.report(report)
	if report.Targets[0].Met || !slices.Contains(report.Tables[1].Rows[0], "never") {
		t.Errorf("%+v", report)
	}
}
