package gather

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBuiltInMerges(t *testing.T) {
	for _, c := range []struct {
		merge  string
		leaves []http.HandlerFunc
		want   string
	}{
		{"concat-ndjson", []http.HandlerFunc{sayJSON("[1,\n 2]"), status(204)}, "1\n2\n"},
		{"concat-ndjson", []http.HandlerFunc{sayJSON("{\n \"a\": 1}")}, "{\"a\":1}\n"},
		{"concat-ndjson", []http.HandlerFunc{say("two\nlines")}, "two\nlines\n"},
		{"json-array", []http.HandlerFunc{sayJSON(`[3,4]`), sayJSON(`{"a":1}`), say("5\n6\n"), status(204)}, `[3,4,{"a":1},5,6]` + "\n"},
		{"json-array", []http.HandlerFunc{status(204)}, "[]\n"},
		{"sum", []http.HandlerFunc{say("1"), say("2.5"), say("-4")}, "-0.5\n"},
		{"sum", []http.HandlerFunc{say("9007199254740993"), say("1")}, "9007199254740994\n"},
		{"sum", []http.HandlerFunc{sayJSON(`{"n":1,"by":{"a":1}}`), sayJSON(`{"n":2,"by":{"b":5,"a":1}}`)}, `{"by":{"a":2,"b":5},"n":3}` + "\n"},
		{"sum", []http.HandlerFunc{status(204)}, "0\n"},
		{"top-k(score,2)", []http.HandlerFunc{say(`[{"score":1},{"score":9}]`), say(`{"score":5}`), say(`{"other":1}`)}, `[{"score":9},{"score":5}]` + "\n"},
		{"top-k(a.b,2,asc)", []http.HandlerFunc{say(`[{"a":{"b":3}},{"a":{"b":1}}]`), say(`{"a":{"b":2}}`)}, `[{"a":{"b":1}},{"a":{"b":2}}]` + "\n"},
		{"top-k(n,9)", []http.HandlerFunc{say(`{"n":"b"}{"n":"a"}{"n":1}{}{"n":null}`)}, `[{"n":1},{"n":"b"},{"n":"a"},{},{"n":null}]` + "\n"},
		{"top-k(n,2)", []http.HandlerFunc{say(`{"n":1,"s":0}`), say(`{"n":1,"s":1}`), say(`{"n":1,"s":2}`)}, `[{"n":1,"s":0},{"n":1,"s":1}]` + "\n"},
	} {
		_, static := three(t, c.leaves...)
		r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL = static, c.merge })
		if a := r.get(t, "/"); a.status != 200 || a.body != c.want {
			t.Errorf("%s: %d %q, want %q", c.merge, a.status, a.body, c.want)
		}
	}
}

func TestMalformedBodyIsTheShardsFailure(t *testing.T) {
	for merge, body := range map[string]string{"json-array": "{", "sum": `"x"`, "top-k(a)": "[1]", "concat-ndjson": "no json"} {
		_, static := three(t, sayJSON(body), sayJSON(`{"a":1}`))
		r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL, s.Partial.Policy = static, merge, "best" })
		if a := r.get(t, "/"); a.status != 200 || a.shards(t).Failed != 1 || a.shards(t).OK != 1 {
			t.Errorf("%s: %d %v", merge, a.status, a.header)
		}
	}
}

func TestFirst(t *testing.T) {
	l, static := three(t, hang, status(500), func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/x-one")
		w.WriteHeader(201)
		io.WriteString(w, "one")
	})
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL = static, "first" })
	a := r.get(t, "/")
	if a.status != 201 || a.body != "one" || a.header.Get("Content-Type") != "text/x-one" {
		t.Errorf("%d %q %v", a.status, a.body, a.header)
	}
	eventually(t, "the others are cancelled", func() bool { return l[0].alive.Load() == 0 })
}

// record is what a merge container saw.
type record struct {
	request RequestLine
	leaves  []LeafLine
	bodies  []string
	end     *EndLine
}

// readRecord reads a merge's request in any format.
func readRecord(r *http.Request) (rec record, err error) {
	object := func(raw []byte, body string) error {
		var line struct {
			Request *RequestLine `json:"request"`
			End     bool         `json:"end"`
		}
		if err := json.Unmarshal(raw, &line); err != nil {
			return err
		}
		switch {
		case line.Request != nil:
			rec.request = *line.Request
		case line.End:
			rec.end = &EndLine{}
			return json.Unmarshal(raw, rec.end)
		default:
			var leaf LeafLine
			if err := json.Unmarshal(raw, &leaf); err != nil {
				return err
			}
			if len(leaf.Body) > 0 {
				body = string(leaf.Body)
				var s string
				if leaf.Encoding != "" {
					if err := json.Unmarshal(leaf.Body, &s); err != nil {
						return err
					}
					body = s
				}
				if leaf.Encoding == "base64" {
					b, err := base64.StdEncoding.DecodeString(s)
					if err != nil {
						return err
					}
					body = string(b)
				}
			}
			rec.leaves = append(rec.leaves, leaf)
			rec.bodies = append(rec.bodies, body)
		}
		return nil
	}
	media, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch media {
	case "application/x-ndjson":
		s := bufio.NewScanner(r.Body)
		s.Buffer(nil, 16<<20)
		for s.Scan() {
			if err := object(s.Bytes(), ""); err != nil {
				return rec, err
			}
		}
		return rec, s.Err()
	case "multipart/mixed":
		m := multipart.NewReader(r.Body, params["boundary"])
		for {
			p, err := m.NextPart()
			if err == io.EOF {
				return rec, nil
			}
			if err != nil {
				return rec, err
			}
			body, err := io.ReadAll(p)
			if err != nil {
				return rec, err
			}
			if err := object([]byte(p.Header.Get("Retinue-Part")), string(body)); err != nil {
				return rec, err
			}
		}
	case "application/json":
		var all []json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&all); err != nil {
			return rec, err
		}
		for _, raw := range all {
			if err := object(raw, ""); err != nil {
				return rec, err
			}
		}
		return rec, nil
	}
	return rec, fmt.Errorf("content type %q", media)
}

// mergeServer is a merge container that answers when it has seen the end.
func mergeServer(t testing.TB, seen chan<- record) *leafServer {
	return newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		rec, err := readRecord(r)
		if err != nil || rec.end == nil {
			return // abandoned
		}
		if seen != nil {
			seen <- rec
		}
		slices.Sort(rec.bodies)
		w.Header().Set("X-Merged", "yes")
		w.Header().Set("Retinue-Coverage", "a lie")
		fmt.Fprintf(w, "%q", rec.bodies)
	})
}

func TestMergeContainer(t *testing.T) {
	binary := string([]byte{0xff, 0, 1, '\n'})
	for _, format := range []string{"ndjson", "multipart", "batch"} {
		t.Run(format, func(t *testing.T) {
			_, static := three(t, sayJSON("{\"a\":\n1}"), say("text\n"), say(binary), status(204), status(500))
			seen := make(chan record, 1)
			m := mergeServer(t, seen)
			r := newTestRoot(t, func(s *Settings) {
				s.Leaf.Static, s.Merge.URL, s.Merge.Format, s.Partial.Policy = static, m.URL, format, "best"
			})
			a := r.do(t, "POST", "/q?x=1", `{"find":"it"}`, "Content-Type", "application/json", "Retinue-Request-Id", "abc")
			rec := <-seen
			json1 := `{"a":1}`
			if format == "multipart" {
				json1 = "{\"a\":\n1}" // unchanged
			}
			want := []string{"", "text\n", binary, json1}
			slices.Sort(want)
			if a.status != 200 || a.body != fmt.Sprintf("%q", want) || a.header.Get("X-Merged") != "yes" || a.header.Get("Retinue-Coverage") != "0.8" {
				t.Errorf("%d %s %v", a.status, a.body, a.header)
			}
			if q := rec.request; q.ID != "abc" || q.Method != "POST" || q.Path != "/q" || q.Query != "x=1" || string(q.Body) != `{"find":"it"}` || q.Shards != 5 || q.DeadlineMS == 0 {
				t.Errorf("%+v", q)
			}
			if e := rec.end; e.Reason != "policy" || e.Coverage.Failed != 1 || e.Coverage.OK != 3 || e.Coverage.Empty != 1 || len(e.Shards) != 1 || e.Shards[0].Shard != 4 || e.Shards[0].State != Failed {
				t.Errorf("%+v", e)
			}
			for _, l := range rec.leaves {
				if l.Replica == "" || l.Coverage != 1 || l.MS <= 0 || l.Status == 204 && l.Shard != 3 {
					t.Errorf("%+v", l)
				}
			}
			eventually(t, "the memory is given back", func() bool { return r.root.memory.Used() == 0 })
		})
	}
}

func TestMergeIsAbandonedWithoutAnEnd(t *testing.T) {
	for _, format := range []string{"ndjson", "multipart"} {
		_, static := three(t, say("a"), status(500))
		ended := make(chan bool, 100)
		m := newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
			rec, err := readRecord(r)
			ended <- err == nil && rec.end != nil
		})
		r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL, s.Merge.Format = static, m.URL, format })
		eventually(t, "the merge is asked before the request fails", func() bool {
			if a := r.get(t, "/"); a.status != 503 {
				t.Errorf("%d %s", a.status, a.body)
			}
			select {
			case end := <-ended:
				if end {
					t.Errorf("%s: the merge of a failed request saw an end", format)
				}
				return true
			case <-time.After(200 * time.Millisecond): // it failed before the merge was reached
				return false
			}
		})
		eventually(t, "the memory is given back", func() bool { return r.root.memory.Used() == 0 })
	}
}

func TestMergeFails(t *testing.T) {
	for name, c := range map[string]struct {
		merge  http.HandlerFunc
		status int
		cause  string
	}{
		"500":        {status(500), 502, "merge_failed"},
		"dies":       {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502, "merge_failed"},
		"dies later": {func(_ http.ResponseWriter, r *http.Request) { readRecord(r); panic(http.ErrAbortHandler) }, 502, "merge_failed"},
		"too slow":   {func(w http.ResponseWriter, r *http.Request) { readRecord(r); <-r.Context().Done() }, 504, "merge_timeout"},
		"4xx": {func(w http.ResponseWriter, r *http.Request) {
			readRecord(r)
			w.WriteHeader(400)
			io.WriteString(w, "bad query")
		}, 400, ""},
	} {
		for _, format := range []string{"ndjson", "batch"} {
			t.Run(name+" "+format, func(t *testing.T) {
				_, static := three(t, say("a"), say("b"))
				m := newLeaf(t, c.merge)
				r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL, s.Merge.Format = static, m.URL, format })
				deadline := "5000"
				if c.status == 504 {
					deadline = "300"
				}
				a := r.get(t, "/", "Retinue-Deadline-Ms", deadline)
				if a.status != c.status || c.cause != "" && a.problem(t).Cause != c.cause {
					t.Fatalf("%d %s", a.status, a.body)
				}
				if a.header.Get("Retinue-Shards") == "" {
					t.Errorf("no coverage headers: %v", a.header)
				}
				eventually(t, "the memory is given back", func() bool { return r.root.memory.Used() == 0 })
				if c.status == 504 {
					eventually(t, "the merge sees the cancellation", func() bool { return m.alive.Load() == 0 })
				}
			})
		}
	}
}

func TestMergeNotThere(t *testing.T) {
	_, static := three(t, say("a"))
	m := newLeaf(t, status(200))
	m.Close()
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL = static, m.URL })
	if a := r.get(t, "/"); a.status != 502 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestMergeAnswersEarly(t *testing.T) {
	l, static := three(t, say("a"), hang)
	m := newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex() // otherwise Go's server wants the whole request first
		s := bufio.NewScanner(r.Body)
		for s.Scan() {
			if bytes.Contains(s.Bytes(), []byte(`"shard":0,`)) {
				io.WriteString(w, "enough")
				return
			}
		}
	})
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL = static, m.URL })
	a := r.get(t, "/", "Retinue-Deadline-Ms", "19000")
	if a.status != 200 || a.body != "enough" || a.shards(t).Skipped != 1 || a.header.Get("Retinue-Coverage") != "1" {
		t.Fatalf("%d %q %v", a.status, a.body, a.header)
	}
	eventually(t, "the leaf that is not needed is cancelled", func() bool { return l[1].alive.Load() == 0 })
}

func TestLargeMergedAnswer(t *testing.T) {
	_, static := three(t, say("a"))
	big := strings.Repeat("0123456789", 100<<10)
	m := newLeaf(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); io.WriteString(w, big) })
	r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL = static, m.URL })
	if a := r.get(t, "/"); a.status != 200 || a.body != big {
		t.Errorf("%d, %d bytes", a.status, len(a.body))
	}
	m.set(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, big[:200<<10])
		panic(http.ErrAbortHandler)
	})
	resp, err := r.Client().Get(r.URL)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("an answer that broke off looks whole")
	}
}

func TestStream(t *testing.T) {
	gate := make(chan bool)
	gated := func(w http.ResponseWriter, r *http.Request) {
		select {
		case ok := <-gate:
			if ok {
				io.WriteString(w, "late")
			} else {
				w.WriteHeader(500)
			}
		case <-r.Context().Done():
		}
	}
	_, static := three(t, say("soon"), gated)
	through := newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		s := bufio.NewScanner(r.Body)
		for s.Scan() {
			var l LeafLine
			if json.Unmarshal(s.Bytes(), &l) == nil && len(l.Body) > 0 && l.Status == 200 {
				var text string
				json.Unmarshal(l.Body, &text)
				io.WriteString(w, text+"\n")
				http.NewResponseController(w).Flush()
			}
		}
	})
	for name, merge := range map[string]string{"built in": "concat-ndjson", "container": through.URL} {
		t.Run(name, func(t *testing.T) {
			r := newTestRoot(t, func(s *Settings) { s.Leaf.Static, s.Merge.URL, s.Stream = static, merge, true })
			resp, err := r.Client().Get(r.URL)
			if err != nil {
				t.Fatal(err)
			}
			b := bufio.NewReader(resp.Body)
			if line, err := b.ReadString('\n'); line != "soon\n" || err != nil {
				t.Fatalf("%q %v", line, err)
			}
			gate <- true
			rest, err := io.ReadAll(b)
			if string(rest) != "late\n" || err != nil {
				t.Fatalf("%q %v", rest, err)
			}
			if got := resp.Trailer.Get("Retinue-Coverage"); got != "1" || resp.Trailer.Get("Retinue-Degraded") != "" {
				t.Errorf("trailers %v", resp.Trailer)
			}
			// A policy that is not met cuts the answer off.
			resp, err = r.Client().Get(r.URL)
			if err != nil {
				t.Fatal(err)
			}
			b = bufio.NewReader(resp.Body)
			b.ReadString('\n')
			gate <- false
			if rest, err := io.ReadAll(b); err == nil {
				t.Errorf("the answer of a failed request looks whole: %q %v", rest, resp.Trailer)
			}
			eventually(t, "the memory is given back", func() bool { return r.root.memory.Used() == 0 && r.root.busy.Load() == 0 })
		})
	}
}

// TestMemoryIsBounded: leaves that answer more than may be held wait for each other, and nothing is lost.
func TestMemoryIsBounded(t *testing.T) {
	body := strings.Repeat("x", 60<<10)
	_, static := three(t, say(body), say(body), say(body), say(body))
	m := newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		time.Sleep(5 * time.Millisecond)
		fmt.Fprint(w, n > 4*60<<10)
	})
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Merge.URL, s.Limits.Gathered, s.Limits.LeafResponse = static, m.URL, "260KiB", "64KiB" // four calls, and answers of 100 KiB
	})
	most := int64(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20 {
			if a := r.get(t, "/"); a.status != 200 || a.body != "true" {
				t.Errorf("%d %.200s", a.status, a.body)
			}
		}
	}()
	for {
		select {
		case <-done:
			if most > 325<<10 || most == 0 { // the bound, and one leaf
				t.Errorf("%d bytes were held, the bound is %d", most, 325<<10)
			}
			return
		default:
			most = max(most, r.root.memory.Used())
		}
	}
}

// TestMergeDiesWhileLeavesAreAwaited: a merge that is gone in the middle of its request is noticed then, not when the last leaf answers.
func TestMergeDiesWhileLeavesAreAwaited(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	asked := make(chan struct{})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			line := bufio.NewScanner(c)
			for line.Scan() && !strings.HasPrefix(line.Text(), `{"request"`) {
			}
			<-asked
			c.Close()
		}
	}()
	slow := newLeaf(t, func(w http.ResponseWriter, r *http.Request) { close(asked); <-r.Context().Done() })
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Merge.URL = leaves([]*leafServer{slow}), "http://"+ln.Addr().String()+"/"
	})
	if a := r.get(t, "/"); a.status != 502 || a.problem(t).Cause != "merge_failed" {
		t.Errorf("%d %s", a.status, a.body)
	}
	eventually(t, "the leaf is cancelled", func() bool { return slow.alive.Load() == 0 })
}
