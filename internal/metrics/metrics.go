// Package metrics shows numbers to Prometheus in its text format: counters and
// histograms that are kept here, and values that are read at scrape time.
//
// It is no general client. Prometheus' own links protocol buffers, whose way of
// printing descriptors makes the linker keep every exported method of every
// library (since Go 1.26): the coordinator was 38.8 MB with it, and 5 MiB more of
// its memory were pages of the program.
package metrics

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	vm "github.com/VictoriaMetrics/metrics"
)

// Set is the numbers of one thing, which all have its labels.
type Set struct {
	labels string
	mu     sync.Mutex
	parts  []func(*Page)
}

// New returns an empty set. Labels are names and values in turn.
func New(labels ...string) *Set { return &Set{labels: write(labels)} }

// Scrape adds values that are read whenever somebody looks.
func (s *Set) Scrape(read func(*Page)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = append(s.parts, read)
}

// Gauge adds one such value.
func (s *Set) Gauge(name, help string, read func() float64) {
	s.Scrape(func(p *Page) { p.Gauge(name, help, read()) })
}

// Page is what one look gets to see.
type Page struct {
	families map[string]*family
	labels   string // of the set that is read
}

type family struct {
	help, kind string
	lines      []string
}

// Gauge shows a value that goes up and down. Labels are names and values in turn.
func (p *Page) Gauge(name, help string, value float64, labels ...string) {
	p.add(name, help, "gauge", name, write(labels), value)
}

// Counter shows a value that only goes up.
func (p *Page) Counter(name, help string, value float64, labels ...string) {
	p.add(name, help, "counter", name, write(labels), value)
}

func (p *Page) add(name, help, kind, line, labels string, value float64) {
	f := p.families[name]
	if f == nil {
		f = &family{help: help, kind: kind}
		p.families[name] = f
	}
	switch {
	case p.labels == "" || labels == "":
		labels = p.labels + labels
	default:
		labels = p.labels + "," + labels
	}
	if labels != "" {
		line += "{" + labels + "}"
	}
	f.lines = append(f.lines, line+" "+strconv.FormatFloat(value, 'g', -1, 64)+"\n")
}

var (
	helpText  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelText = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// write writes labels as they stand between braces.
func write(pairs []string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i] + `="` + labelText.Replace(pairs[i+1]) + `"`)
	}
	return b.String()
}

// Handler serves sets, and the numbers of the process and of its Go runtime.
func Handler(sets ...*Set) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		p := &Page{families: map[string]*family{}}
		for _, s := range sets {
			s.mu.Lock()
			parts := slices.Clone(s.parts)
			s.mu.Unlock()
			p.labels = s.labels
			for _, read := range parts {
				read(p)
			}
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		p.writeTo(w)
		vm.WriteProcessMetrics(w)
		vm.WriteFDMetrics(w)
	})
}

func (p *Page) writeTo(w io.Writer) {
	names := make([]string, 0, len(p.families))
	for name := range p.families {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		f := p.families[name]
		b.WriteString("# HELP " + name + " " + helpText.Replace(f.help) + "\n# TYPE " + name + " " + f.kind + "\n")
		for _, line := range f.lines {
			b.WriteString(line)
		}
	}
	_, _ = io.WriteString(w, b.String()) // the client is gone when it fails
}

// Counters are a counter for each combination of the values of its labels.
type Counters struct {
	cells[Counter]
}

// Counter only goes up.
type Counter struct{ n atomic.Uint64 }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Counters adds a counter to the set that is told apart by labels.
func (s *Set) Counters(name, help string, by ...string) *Counters {
	c := &Counters{cells[Counter]{by: by}}
	s.Scrape(func(p *Page) {
		c.each(func(labels string, one *Counter) { p.add(name, help, "counter", name, labels, float64(one.n.Load())) })
	})
	return c
}

// Counter adds a counter to the set.
func (s *Set) Counter(name, help string) *Counter { return s.Counters(name, help).With() }

// cells keeps something for each combination of the values of labels.
type cells[T any] struct {
	by  []string
	mu  sync.Mutex
	all map[string]*T // by its labels, as written
}

// With returns what belongs to these values, in the order of the labels.
func (c *cells[T]) With(values ...string) *T {
	if len(values) != len(c.by) {
		panic("metrics: " + strconv.Itoa(len(values)) + " values for the labels " + strings.Join(c.by, ", "))
	}
	pairs := make([]string, 0, 2*len(values))
	for i, value := range values {
		pairs = append(pairs, c.by[i], value)
	}
	key := write(pairs)
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.all[key]
	if one == nil {
		if c.all == nil {
			c.all = map[string]*T{}
		}
		one = new(T)
		c.all[key] = one
	}
	return one
}

func (c *cells[T]) each(show func(labels string, one *T)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys := make([]string, 0, len(c.all))
	for key := range c.all {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		show(key, c.all[key])
	}
}
