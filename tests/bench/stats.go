package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Summary is what a set of samples comes to. Durations are in nanoseconds.
type Summary struct {
	N   int           `json:"n"`
	Min time.Duration `json:"min_ns"`
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

// summarize sorts a copy of samples. Percentiles are nearest-rank: each is a
// value that was measured. With fewer than 100 samples the p99 is the maximum.
func summarize(samples []time.Duration) Summary {
	if len(samples) == 0 {
		return Summary{}
	}
	sorted := slices.Clone(samples)
	slices.Sort(sorted)
	return Summary{N: len(sorted), Min: sorted[0], P50: percentile(sorted, 50), P99: percentile(sorted, 99), Max: sorted[len(sorted)-1]}
}

func percentile(sorted []time.Duration, p float64) time.Duration {
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// ratio is how many times longer other's median is than base's; 0 when it cannot be said.
func ratio(other, base Summary) float64 {
	if other.N == 0 || base.N == 0 || base.P50 <= 0 {
		return 0
	}
	return float64(other.P50) / float64(base.P50)
}

// human writes a duration with three significant digits.
func human(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f µs", float64(d)/1e3)
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	case d < 10*time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func humanRatio(r float64) string {
	switch {
	case r == 0:
		return "–"
	case r < 10:
		return fmt.Sprintf("%.2g×", r)
	}
	return fmt.Sprintf("%.0f×", r)
}

// signed writes a difference of durations.
func signed(d time.Duration) string {
	if d < 0 {
		return "−" + human(-d)
	}
	return "+" + human(d)
}
