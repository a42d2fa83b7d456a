package gather

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func failedChecks(list []Finding) (names []string) {
	for _, f := range list {
		if f.Result == CheckFail {
			names = append(names, f.Check)
		}
	}
	return names
}

func TestCheckLeaf(t *testing.T) {
	var n atomic.Int64
	for name, c := range map[string]struct {
		leaf http.HandlerFunc
		want []string
	}{
		"good":     {sayJSON(`{"a":1}`), nil},
		"empty":    {status(204), nil},
		"206":      {status(206), []string{"answers"}},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, []string{"answers"}},
		"coverage": {share("93%"), []string{"coverage header"}},
		"HEAD": {func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "HEAD" {
				w.WriteHeader(500)
			}
		}, []string{"HEAD"}},
		"deadline": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Retinue-Deadline-Ms") == "1" {
				time.Sleep(1200 * time.Millisecond)
			}
		}, []string{"deadline"}},
		"hedge": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Retinue-Hedge") == "1" {
				w.WriteHeader(409)
			}
		}, []string{"asked twice"}},
		"one at a time": {func(w http.ResponseWriter, r *http.Request) {
			defer n.Add(-1)
			if n.Add(1) > 1 {
				w.WriteHeader(500)
			}
			time.Sleep(20 * time.Millisecond)
		}, []string{"in parallel"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLeaf(t, c.leaf)
			list, _, _ := CheckLeaf(context.Background(), l.URL+"/q?x=1")
			if got := failedChecks(list); len(c.want) == 0 && len(got) > 0 || len(c.want) > 0 && !slices.Contains(got, c.want[0]) {
				t.Errorf("%v, want %v: %+v", got, c.want, list)
			}
		})
	}
	if list, _, _ := CheckLeaf(context.Background(), "http://127.0.0.1:1/"); !slices.Equal(failedChecks(list), []string{"answers"}) {
		t.Errorf("a leaf that is not there: %+v", list)
	}
}

// badMerge is a merge with one mistake.
func badMerge(mistake string) http.HandlerFunc {
	var state atomic.Bool
	return func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		rec, err := readRecord(r)
		switch {
		case mistake == "no end line" && err == nil:
		case err != nil || rec.end == nil:
			w.WriteHeader(400)
			return
		}
		bodies := rec.bodies
		if mistake != "order of leaves" {
			slices.Sort(bodies)
		}
		fail := false
		switch mistake {
		case "no leaf":
			fail = len(rec.leaves) == 0
		case "one leaf":
			fail = true
		case "204":
			fail = slices.ContainsFunc(rec.leaves, func(l LeafLine) bool { return l.Status == 204 })
		case "the same body twice":
			fail = len(slices.Compact(slices.Clone(bodies))) < len(bodies) && len(bodies) == 2
		case "partial coverage":
			fail = rec.end.Coverage.Fraction < 1
		case "slow leaves":
			fail = time.Since(started) > 300*time.Millisecond
		case "many leaves":
			fail = len(bodies) > 100
		case "after a bad body":
			fail = state.Load()
			if slices.ContainsFunc(bodies, func(b string) bool { return strings.Contains(b, "\x00") }) {
				state.Store(true)
			}
		}
		if fail {
			w.WriteHeader(500)
			return
		}
		b, _ := json.Marshal(bodies)
		w.Write(b)
	}
}

func TestCheckMerge(t *testing.T) {
	for _, mistake := range []string{"", "no leaf", "one leaf", "204", "order of leaves", "the same body twice", "partial coverage", "slow leaves", "many leaves", "no end line", "after a bad body"} {
		t.Run("mistake "+mistake, func(t *testing.T) {
			t.Parallel()
			m := newLeaf(t, badMerge(mistake))
			list, err := CheckMerge(context.Background(), m.URL, "ndjson", nil, "")
			if err != nil {
				t.Fatal(err)
			}
			got := failedChecks(list)
			if mistake == "" && len(got) > 0 || mistake != "" && !slices.Contains(got, mistake) {
				t.Errorf("%v: %+v", got, list)
			}
		})
	}
}

func TestCheckMergeFormats(t *testing.T) {
	for _, format := range []string{"multipart", "batch"} {
		m := newLeaf(t, badMerge(""))
		list, err := CheckMerge(context.Background(), m.URL, format, [][]byte{[]byte("a\x00"), []byte("b")}, "application/octet-stream")
		if got := failedChecks(list); err != nil || len(got) > 0 {
			t.Errorf("%s: %v %v: %+v", format, err, got, list)
		}
	}
}

// TestCheckMergeMixes: a merge that keeps the state of one request in a global.
func TestCheckMergeMixes(t *testing.T) {
	var shared atomic.Pointer[[]string]
	m := newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		var mine []string
		shared.Store(&mine)
		s := bufio.NewScanner(r.Body)
		for s.Scan() {
			if strings.Contains(s.Text(), `"shard"`) && !strings.Contains(s.Text(), `"end"`) {
				time.Sleep(time.Millisecond)
				all := append(slices.Clone(*shared.Load()), "x")
				shared.Store(&all)
			}
		}
		fmt.Fprint(w, len(*shared.Load()))
	})
	list, err := CheckMerge(context.Background(), m.URL, "ndjson", nil, "")
	if got := failedChecks(list); err != nil || !slices.Contains(got, "in parallel") {
		t.Errorf("%v %v", err, got)
	}
}
