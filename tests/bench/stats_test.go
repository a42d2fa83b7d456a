package main

import (
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	t.Parallel()
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100-i) * time.Millisecond // falling: the input need not be sorted
	}
	ms := time.Millisecond
	for name, test := range map[string]struct {
		samples []time.Duration
		want    Summary
	}{
		"none":    {nil, Summary{}},
		"one":     {[]time.Duration{7}, Summary{1, 7, 7, 7, 7}},
		"two":     {[]time.Duration{9, 3}, Summary{2, 3, 3, 9, 9}},
		"three":   {[]time.Duration{9, 1, 5}, Summary{3, 1, 5, 9, 9}},
		"hundred": {hundred, Summary{100, 1 * ms, 50 * ms, 99 * ms, 100 * ms}},
	} {
		if got := summarize(test.samples); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
	if hundred[0] != 100*ms {
		t.Error("summarize changed its input")
	}
}

func TestRatio(t *testing.T) {
	t.Parallel()
	base := Summary{N: 1, P50: 2}
	for _, test := range []struct {
		other Summary
		base  Summary
		want  float64
	}{
		{Summary{N: 1, P50: 5}, base, 2.5},
		{Summary{}, base, 0},
		{base, Summary{}, 0},
		{base, Summary{N: 3}, 0},
	} {
		if got := ratio(test.other, test.base); got != test.want {
			t.Errorf("ratio(%+v, %+v) = %v, want %v", test.other, test.base, got, test.want)
		}
	}
}

func TestHuman(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0", 1500: "2 µs", 999 * time.Microsecond: "999 µs", 2345 * time.Microsecond: "2.35 ms", 23456 * time.Microsecond: "23.5 ms",
		234 * time.Millisecond: "234 ms", 2034 * time.Millisecond: "2.03 s", 45 * time.Second: "45.0 s",
	} {
		if got := human(d); got != want {
			t.Errorf("human(%d) = %q, want %q", d, got, want)
		}
	}
	for r, want := range map[float64]string{0: "–", 1: "1×", 2.345: "2.3×", 45.6: "46×", 4321: "4321×"} {
		if got := humanRatio(r); got != want {
			t.Errorf("humanRatio(%v) = %q, want %q", r, got, want)
		}
	}
}
