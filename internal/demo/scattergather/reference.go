package scattergather

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// reference is the same search engine over the whole corpus in one index: what
// it answers is right, whatever is gathered.
type reference struct {
	base  string
	dir   string
	cmd   *exec.Cmd
	stats []byte
}

// hit is what counts of a document found.
type hit struct {
	ID    string  `json:"id"`
	Score float64 `json:"score"`
}

var listening = regexp.MustCompile(`listening on (http://\S+)`)

// startReference indexes the corpus in one piece, which also makes the
// statistics that the shards score by.
func startReference(ctx context.Context, leaf string, c corpus) (_ *reference, err error) {
	dir, err := os.MkdirTemp("", "retinue-demo-*")
	if err != nil {
		return nil, fmt.Errorf("make the reference index: %w", err)
	}
	r := &reference{dir: dir}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	if err := c.copyTo(filepath.Join(dir, "text")); err != nil {
		return nil, err
	}
	stats := filepath.Join(dir, "stats.json")
	r.cmd = exec.CommandContext(ctx, leaf, "--corpus", filepath.Join(dir, "text"), "--stats", stats, "--index", dir, "--listen", "127.0.0.1:0")
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start the reference index: %w", err)
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the reference index: %w", err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(log); r.base == "" && lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if found := listening.FindStringSubmatch(lines.Text()); found != nil {
			r.base = found[1]
		}
	}
	if r.base == "" {
		return nil, fmt.Errorf("the reference index ended: %s", strings.TrimSpace(said.String()))
	}
	go func() { _, _ = io.Copy(io.Discard, log) }()
	if r.stats, err = os.ReadFile(stats); err != nil {
		return nil, fmt.Errorf("read the statistics of the corpus: %w", err)
	}
	return r, nil
}

func (r *reference) stop() {
	if r.cmd != nil && r.cmd.Process != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
	_ = os.RemoveAll(r.dir)
}

// question is a query and the right answer to it.
type question struct {
	query string
	hits  []hit
}

// questions makes queries of one to three words of the corpus, neither in every
// document nor in a few alone, always the same ones for the same corpus.
func (r *reference) questions(ctx context.Context, n int) ([]question, error) {
	var stats struct{ Holding map[string]int }
	if err := json.Unmarshal(r.stats, &stats); err != nil {
		return nil, fmt.Errorf("read the statistics of the corpus: %w", err)
	}
	plain := regexp.MustCompile(`^[a-z]{4,12}$`)
	var words []string
	for word, holding := range stats.Holding {
		if holding >= 5 && holding <= 300 && plain.MatchString(word) {
			words = append(words, word)
		}
	}
	slices.Sort(words)
	if len(words) < 100 {
		return nil, fmt.Errorf("the corpus has only %d common words", len(words))
	}
	choice := rand.New(rand.NewPCG(5, 3))
	var all []question
	for len(all) < n {
		var query []string
		for range 1 + choice.IntN(3) {
			query = append(query, words[choice.IntN(len(words))])
		}
		q := question{query: strings.Join(query, " ")}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, searchURL(r.base, q.query), nil)
		if err != nil {
			return nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, fmt.Errorf("ask the reference index: %w", err)
		}
		var answer struct{ Hits []hit }
		if resp.StatusCode == http.StatusOK {
			err = json.NewDecoder(resp.Body).Decode(&answer)
		}
		resp.Body.Close()
		if err != nil || len(answer.Hits) == 0 {
			continue // words that analysis changes may find nothing
		}
		q.hits = answer.Hits
		all = append(all, q)
	}
	return all, nil
}

func searchURL(base, query string) string { return base + "/q?k=10&q=" + url.QueryEscape(query) }

// took is for people: whole milliseconds.
func took(since time.Time) time.Duration { return time.Since(since).Round(time.Millisecond) }
