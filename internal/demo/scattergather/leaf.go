package scattergather

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"strings"
	"time"

	"retinue/jobspecs"
)

// Leaf is the leaf that the job specification runs when it is given none: a
// search in the lines of Retinue's own job specifications. The demonstration
// uses a real search engine instead, gather/example.
type Leaf struct {
	Listen        string // HOST:PORT
	Shard, Shards int
}

// line is a hit of the demo leaf. What a built-in merge needs of it is a score.
type line struct {
	Score int    `json:"score"` // how many of the words the line has
	File  string `json:"file"`
	Line  int    `json:"line"`
	Text  string `json:"text"`
}

// Run answers GET /q?q=WORDS and GET /health until the context ends.
func (l Leaf) Run(ctx context.Context) error {
	lines, err := l.lines()
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", l.Listen)
	if err != nil {
		return fmt.Errorf("listen for the leaf: %w", err)
	}
	srv := &http.Server{Handler: l.handler(lines), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(grace)
	}()
	if err := srv.Serve(ln); err != http.ErrServerClosed {
		return fmt.Errorf("serve the leaf: %w", err)
	}
	return nil
}

// lines are the lines of this shard: a line belongs to one by its place.
func (l Leaf) lines() ([]line, error) {
	var mine []line
	for _, name := range jobspecs.Patterns() {
		text, err := jobspecs.Pattern(name)
		if err != nil {
			return nil, err
		}
		for i, words := range strings.Split(text, "\n") {
			h := fnv.New32a()
			fmt.Fprintf(h, "%s:%d", name, i)
			if int(h.Sum32()%uint32(l.Shards)) == l.Shard && strings.TrimSpace(words) != "" {
				mine = append(mine, line{File: name, Line: i + 1, Text: strings.TrimSpace(words)})
			}
		}
	}
	return mine, nil
}

func (l Leaf) handler(lines []line) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "%d lines\n", len(lines)) })
	mux.HandleFunc("GET /q", func(w http.ResponseWriter, r *http.Request) {
		hits := find(lines, strings.Fields(strings.ToLower(r.URL.Query().Get("q"))))
		if len(hits) == 0 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(hits)
	})
	return mux
}

func find(lines []line, words []string) []line {
	var hits []line
	for _, l := range lines {
		text := strings.ToLower(l.Text)
		for _, word := range words {
			if strings.Contains(text, word) {
				l.Score++
			}
		}
		if l.Score > 0 {
			hits = append(hits, l)
		}
	}
	return hits
}
