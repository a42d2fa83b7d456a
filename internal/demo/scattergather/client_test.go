package scattergather

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestWrongAnswersAreSeen(t *testing.T) {
	want := []hit{{"man2/dup.2", 11.5}, {"man2/open.2", 3.25}}
	for what, c := range map[string]struct {
		body, coverage string
		wrong          bool
	}{
		"the right answer":         {`{"hits":[{"id":"man2/dup.2","score":11.5,"title":"x"},{"id":"man2/open.2","score":3.25}]}`, "1", false},
		"a document is lacking":    {`{"hits":[{"id":"man2/dup.2","score":11.5}]}`, "1", true},
		"another order":            {`{"hits":[{"id":"man2/open.2","score":3.25},{"id":"man2/dup.2","score":11.5}]}`, "1", true},
		"another score":            {`{"hits":[{"id":"man2/dup.2","score":11.500000000000002},{"id":"man2/open.2","score":3.25}]}`, "1", true},
		"right, but not whole":     {`{"hits":[{"id":"man2/dup.2","score":11.5},{"id":"man2/open.2","score":3.25}]}`, "0.9375", true},
		"right, but without proof": {`{"hits":[{"id":"man2/dup.2","score":11.5},{"id":"man2/open.2","score":3.25}]}`, "", true},
		"no answer":                {`<html>`, "1", true},
	} {
		if got := compare(want, []byte(c.body), c.coverage); (got != "") != c.wrong {
			t.Errorf("%s: %q", what, got)
		}
	}
}

// The client asks at its pace while an answer is outstanding, and loses none.
func TestClientIsOpenLoop(t *testing.T) {
	var asked atomic.Int32
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 3 {
			close(release)
		}
		<-release
		w.Header().Set("Retinue-Coverage", "1")
		w.Header().Set("Retinue-Hedges", "2/1")
		if r.URL.Query().Get("q") == "b" {
			w.WriteHeader(http.StatusGatewayTimeout)
			fmt.Fprint(w, `{"cause":"timeout","detail":"1 of 16 shards"}`)
			return
		}
		fmt.Fprint(w, `{"hits":[{"id":"x","score":1}]}`)
	}))
	defer srv.Close()
	c := newClient(srv.URL, []question{{"a", []hit{{"x", 1}}}, {"b", nil}, {"c", []hit{{"y", 1}}}})
	began := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-release
		cancel()
	}()
	c.run(ctx, time.Millisecond)
	s := c.between(began, time.Now())
	if s.requests < 3 || s.requests != int(asked.Load()) || s.failed == 0 || s.wrong == 0 || s.sent != 2*s.requests || s.won != s.requests {
		t.Errorf("%+v of %d", s, asked.Load())
	}
	if !strings.Contains(s.failure, "504") || !strings.Contains(s.failure, "1 of 16 shards") {
		t.Errorf("failure %q", s.failure)
	}
	if none := c.between(time.Now(), time.Now().Add(time.Hour)); none.requests != 0 || none.quantile(0.99) != 0 {
		t.Errorf("%+v", none)
	}
}

func TestQuantile(t *testing.T) {
	var s summary
	for ms := range 100 {
		s.latencies = append(s.latencies, float64(ms))
	}
	if s.quantile(0.5) != 50 || s.quantile(0.99) != 99 || s.quantile(1) != 99 {
		t.Errorf("%v %v %v", s.quantile(0.5), s.quantile(0.99), s.quantile(1))
	}
}

// The lines of all shards of the demo leaf are those of one.
func TestDemoLeaf(t *testing.T) {
	ask := func(l Leaf, path string) (int, []line) {
		lines, err := l.lines()
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		l.handler(lines).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		var hits []line
		if w.Code == http.StatusOK && path != "/health" {
			if err := json.Unmarshal(w.Body.Bytes(), &hits); err != nil {
				t.Fatal(err)
			}
		}
		return w.Code, hits
	}
	order := func(a, b line) int { return strings.Compare(fmt.Sprint(a.File, a.Line), fmt.Sprint(b.File, b.Line)) }
	_, whole := ask(Leaf{Shards: 1}, "/q?q=driver+docker")
	var parts []line
	for shard := range 4 {
		_, hits := ask(Leaf{Shard: shard, Shards: 4}, "/q?q=driver+docker")
		if len(hits) == 0 {
			t.Errorf("shard %d has nothing", shard)
		}
		parts = append(parts, hits...)
	}
	slices.SortFunc(whole, order)
	slices.SortFunc(parts, order)
	if len(whole) < 10 || !slices.Equal(whole, parts) {
		t.Errorf("%d lines in one, %d in four shards", len(whole), len(parts))
	}
	if !slices.ContainsFunc(whole, func(l line) bool { return l.Score == 2 }) {
		t.Error("no line has both words")
	}
	if code, _ := ask(Leaf{Shards: 1}, "/q?q=zzzz"); code != http.StatusNoContent {
		t.Errorf("nothing found: %d", code)
	}
	if code, _ := ask(Leaf{Shards: 1}, "/health"); code != http.StatusOK {
		t.Errorf("health: %d", code)
	}
}
