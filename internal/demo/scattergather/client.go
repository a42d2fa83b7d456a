package scattergather

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// client asks one root, at a fixed pace whether earlier answers are there or
// not, as many independent people do, and judges every answer.
type client struct {
	base      string
	questions []question
	http      *http.Client

	mu      sync.Mutex
	samples []sample
}

// sample is one request and what became of it.
type sample struct {
	began    time.Time
	ms       float64
	failure  string // "" for an answer
	wrong    string // how an answer differs from the right one
	coverage string
	sent     int // hedges
	won      int
}

func newClient(base string, questions []question) *client {
	return &client{base: base, questions: questions, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 5 * time.Second}}
}

// run asks until the context ends, and returns when every answer is in.
func (c *client) run(ctx context.Context, pace time.Duration) {
	var asked sync.WaitGroup
	defer asked.Wait()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked.Go(func() {
			s := c.ask(context.WithoutCancel(ctx), c.questions[n%len(c.questions)])
			c.mu.Lock()
			c.samples = append(c.samples, s)
			c.mu.Unlock()
		})
	}
}

func (c *client) ask(ctx context.Context, q question) (s sample) {
	s.began = time.Now()
	defer func() { s.ms = float64(time.Since(s.began).Microseconds()) / 1000 }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, searchURL(c.base, q.query), nil)
	if err != nil {
		s.failure = err.Error()
		return s
	}
	resp, err := c.http.Do(req)
	if err != nil {
		s.failure = err.Error()
		return s
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		s.failure = err.Error()
		return s
	}
	s.coverage = resp.Header.Get("Retinue-Coverage")
	_, _ = fmt.Sscanf(resp.Header.Get("Retinue-Hedges"), "%d/%d", &s.sent, &s.won) // none in an error
	if resp.StatusCode != http.StatusOK {
		s.failure = failure(resp.StatusCode, body)
		return s
	}
	s.wrong = compare(q.hits, body, s.coverage)
	return s
}

// failure says in a line what the root's problem is.
func failure(status int, body []byte) string {
	var problem struct{ Detail, Cause string }
	if json.Unmarshal(body, &problem) != nil || problem.Detail == "" {
		return fmt.Sprintf("status %d", status)
	}
	return fmt.Sprintf("status %d, %s: %s", status, problem.Cause, problem.Detail)
}

// compare says how an answer that claims to be whole differs from the right
// one: the same documents, in the same order, with the same scores to the last bit.
func compare(want []hit, body []byte, coverage string) string {
	var answer struct{ Hits []hit }
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Sprintf("no JSON: %v", err)
	}
	switch {
	case coverage != "1":
		return fmt.Sprintf("coverage %q where only whole answers are allowed", coverage)
	case !slices.Equal(answer.Hits, want):
		return fmt.Sprintf("%v instead of %v", answer.Hits, want)
	}
	return ""
}

// between returns the requests that began in a span of time.
func (c *client) between(from, to time.Time) summary {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s summary
	for _, x := range c.samples {
		if x.began.Before(from) || !x.began.Before(to) {
			continue
		}
		s.requests++
		s.latencies = append(s.latencies, x.ms)
		s.sent += x.sent
		s.won += x.won
		if x.failure != "" {
			s.failed++
			s.failure = x.failure
		}
		if x.wrong != "" {
			s.wrong++
			s.difference = x.wrong
		}
	}
	slices.Sort(s.latencies)
	return s
}

// summary is what a span of time looked like to a client.
type summary struct {
	requests, failed, wrong, sent, won int
	failure, difference                string // an example
	latencies                          []float64
}

// quantile is the nearest rank; 0 of nothing.
func (s summary) quantile(q float64) float64 {
	if len(s.latencies) == 0 {
		return 0
	}
	return s.latencies[min(len(s.latencies)-1, int(q*float64(len(s.latencies))))]
}

// slower counts the answers that took longer.
func (s summary) slower(ms float64) int {
	i, _ := slices.BinarySearch(s.latencies, ms)
	return len(s.latencies) - i
}

func (s summary) String() string {
	return fmt.Sprintf("%d requests, p50 %.0f ms, p99 %.0f ms, %d failed", s.requests, s.quantile(0.5), s.quantile(0.99), s.failed)
}
