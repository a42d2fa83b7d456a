package main

import (
	"math/rand/v2"
	"slices"
)

// interval is a figure with the 95 % that lie around it when the rounds are drawn again.
type interval struct{ point, low, high float64 }

// bootstrap draws the rounds again, with replacement, and computes the figure of each draw. rounds is how many there are;
// figure gets the indices of those that were drawn. The same rounds give the same interval.
func bootstrap(rounds int, figure func(drawn []int) float64) interval {
	const draws = 2000
	drawn := make([]int, rounds)
	for i := range drawn {
		drawn[i] = i
	}
	out := interval{point: figure(drawn)}
	source := rand.New(rand.NewPCG(1, uint64(rounds)))
	figures := make([]float64, draws)
	for n := range figures {
		for i := range drawn {
			drawn[i] = source.IntN(rounds)
		}
		figures[n] = figure(drawn)
	}
	slices.Sort(figures)
	out.low, out.high = figures[draws*25/1000], figures[draws-1-draws*25/1000]
	return out
}

// median of values; it changes their order. The mean of the two in the middle for an even number.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}
