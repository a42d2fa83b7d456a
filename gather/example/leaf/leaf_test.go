package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// corpus writes documents of random words, some words rare and some common.
func corpus(t *testing.T, documents int) string {
	t.Helper()
	dir := t.TempDir()
	words := rand.New(rand.NewPCG(1, 2))
	for i := range documents {
		var text strings.Builder
		for range 20 + words.IntN(200) {
			fmt.Fprintf(&text, "w%d ", int(words.ExpFloat64()*40))
		}
		name := filepath.Join(dir, fmt.Sprintf("part%d", i%7), fmt.Sprintf("doc-%d", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func indexed(t *testing.T, corpus, stats string, shard, shards int) *leaf {
	t.Helper()
	ix, err := build(corpus, t.TempDir(), shard, shards)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ix.bleve.Close() })
	if err := ix.global(stats, shards); err != nil {
		t.Fatal(err)
	}
	l := &leaf{}
	l.index.Store(ix)
	return l
}

func ask(t *testing.T, l *leaf, query string, k int) []hit {
	t.Helper()
	w := httptest.NewRecorder()
	l.ServeHTTP(w, httptest.NewRequest("GET", fmt.Sprintf("/q?q=%s&k=%d", url.QueryEscape(query), k), nil))
	if w.Code == http.StatusNoContent {
		return nil
	}
	var answer struct{ Hits []hit }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); w.Code != http.StatusOK || err != nil || len(answer.Hits) == 0 {
		t.Fatalf("%q: %d %s %v", query, w.Code, w.Body, err)
	}
	return answer.Hits
}

// The best of all shards together are the best of one index, with the same scores to the last bit.
func TestShardsAnswerAsOneIndex(t *testing.T) {
	dir, stats := corpus(t, 700), filepath.Join(t.TempDir(), "stats.json")
	whole := indexed(t, dir, stats, 0, 1)
	var shards []*leaf
	documents := 0
	for i := range 5 {
		shards = append(shards, indexed(t, dir, stats, i, 5))
		documents += shards[i].index.Load().documents
	}
	if documents != 700 || whole.index.Load().documents != 700 {
		t.Fatalf("%d documents in the shards, %d in one index", documents, whole.index.Load().documents)
	}
	answered := 0
	for n := range 300 {
		query := fmt.Sprintf("w%d w%d w%d", n, n/2, n%17)
		want := ask(t, whole, query, 10)
		var got []hit
		for _, s := range shards {
			got = append(got, ask(t, s, query, 10)...)
		}
		slices.SortFunc(got, better)
		if got = got[:min(10, len(got))]; !slices.Equal(got, want) {
			t.Fatalf("%q:\nshards %v\nwhole  %v", query, got, want)
		}
		answered += len(want)
	}
	if answered < 1000 {
		t.Errorf("only %d hits: the queries find nothing", answered)
	}
}

func TestLeafContract(t *testing.T) {
	dir := corpus(t, 20)
	if err := os.WriteFile(filepath.Join(dir, "broken.gz"), []byte("no gzip"), 0o644); err != nil {
		t.Fatal(err)
	}
	ready := indexed(t, dir, "", 0, 1)
	for what, c := range map[string]struct {
		leaf     *leaf
		path     string
		deadline string
		status   int
		header   string
	}{
		"before the index is there":  {&leaf{}, "/q?q=w1", "", 503, "Retry-After"},
		"the health check before":    {&leaf{}, "/health", "", 503, ""},
		"the health check after":     {ready, "/health", "", 200, ""},
		"nothing in this shard":      {ready, "/q?q=nowhere", "", 204, ""},
		"a partial shard says so":    {ready, "/q?q=w1", "", 200, "Retinue-Coverage"},
		"no time left":               {ready, "/q?q=w1", "0", 504, ""},
		"time enough":                {ready, "/q?q=w1", "5000", 200, ""},
		"what a leaf does not serve": {ready, "/other", "", 404, ""},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		if c.deadline != "" {
			r.Header.Set("Retinue-Deadline-Ms", c.deadline)
		}
		w := httptest.NewRecorder()
		c.leaf.ServeHTTP(w, r)
		if w.Code != c.status || c.header != "" && w.Header().Get(c.header) == "" {
			t.Errorf("%s: %d %v", what, w.Code, w.Header())
		}
	}
}

func TestManualPagesLoseTheirMarkup(t *testing.T) {
	name := filepath.Join(t.TempDir(), "dup.2")
	page := ".\\\" a comment\n.TH DUP 2\n.SH NAME\ndup, dup2 \\- duplicate a \\fBfile descriptor\\fP\n.PP\nThe \\fIoldfd\\fR.\n"
	if err := os.WriteFile(name, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	text, err := readText(name)
	if err != nil || strings.ContainsAny(text, `\`) || strings.Contains(text, "comment") || !strings.Contains(text, "The oldfd.") {
		t.Errorf("%q %v", text, err)
	}
	if got := title(text, "dup.2"); got != "dup, dup2 - duplicate a file descriptor" {
		t.Errorf("title %q", got)
	}
}
