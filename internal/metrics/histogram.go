package metrics

import (
	"sort"
	"strconv"
	"sync"
	"time"
)

// Histograms are a histogram of seconds for each combination of the values of its labels.
type Histograms struct {
	cells[counts]
	bounds []float64
}

// counts are how many observations fell between two bounds.
type counts struct {
	mu  sync.Mutex
	n   []uint64 // one more than there are bounds
	sum float64
}

// Histogram is one of them.
type Histogram struct {
	of *Histograms
	c  *counts
}

// Exponential returns bounds of which each is factor times the one before.
func Exponential(first, factor float64, n int) []float64 {
	bounds := make([]float64, n)
	for i := range bounds {
		bounds[i] = first
		first *= factor
	}
	return bounds
}

// Histograms adds a histogram to the set that is told apart by labels. The bounds are in seconds and grow.
func (s *Set) Histograms(name, help string, bounds []float64, by ...string) *Histograms {
	h := &Histograms{cells: cells[counts]{by: by}, bounds: bounds}
	s.Scrape(func(p *Page) {
		h.each(func(labels string, c *counts) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if labels != "" {
				labels += ","
			}
			total := uint64(0)
			for i, n := range c.n {
				total += n
				bound := "+Inf"
				if i < len(bounds) {
					bound = strconv.FormatFloat(bounds[i], 'g', -1, 64)
				}
				p.add(name, help, "histogram", name+"_bucket", labels+`le="`+bound+`"`, float64(total))
			}
			if labels != "" {
				labels = labels[:len(labels)-1]
			}
			p.add(name, help, "histogram", name+"_sum", labels, c.sum)
			p.add(name, help, "histogram", name+"_count", labels, float64(total))
		})
	})
	return h
}

// Histogram adds a histogram to the set.
func (s *Set) Histogram(name, help string, bounds []float64) Histogram {
	return s.Histograms(name, help, bounds).With()
}

// With returns the histogram of these values, in the order of the labels.
func (h *Histograms) With(values ...string) Histogram {
	c := h.cells.With(values...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make([]uint64, len(h.bounds)+1)
	}
	return Histogram{h, c}
}

// Observe counts how long something took.
func (h Histogram) Observe(took time.Duration) {
	seconds := took.Seconds()
	at := sort.SearchFloat64s(h.of.bounds, seconds)
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.c.n[at]++
	h.c.sum += seconds
}
