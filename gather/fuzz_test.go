package gather

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

func FuzzConfig(f *testing.F) {
	f.Add("scatter \"a\" {\n leaf { static = [\"0=http://a:1\"] }\n}", "quorum(1)", "top-k(a.b,3,asc)", "3%", "0..0.3", "1MiB", "0=http://a:1;1=http://b:2")
	f.Fuzz(func(t *testing.T, file, policy, merge, share, wait, size, leaf string) {
		s := DefaultSettings()
		_ = s.Decode("x", []byte(file))
		s.Partial.Policy, s.Merge.URL, s.Hedge.Budget, s.Partial.WaitAfter, s.Limits.Request = policy, merge, share, wait, size
		s.Leaf.Static = append(s.Leaf.Static, leaf)
		c, err := s.Config()
		if err != nil {
			return
		}
		if c.Shards < 1 || c.MaxRequest < 0 || c.Hedge.Quantile <= 0 || c.Hedge.Quantile > 1 || c.WaitMin > c.WaitMax {
			t.Errorf("%+v", c)
		}
		if back, err := ParseMerge(c.Merge.String(), "ndjson"); err != nil || back.Kind != c.Merge.Kind || back.Limit != c.Merge.Limit {
			t.Errorf("%s is not read back: %v", c.Merge, err)
		}
		if c.Merge.Kind != MergeFirst {
			if back, err := ParsePolicy(c.Policy.String()); err != nil || back != c.Policy {
				t.Errorf("%s is not read back: %v", c.Policy, err)
			}
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("retinue-partial=0.95, x", "180", "0.93", "total=1 ok=1", "2", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "id-1")
	f.Fuzz(func(t *testing.T, prefer, deadline, coverage, shards, hop, trace, id string) {
		if c, ok, err := ParsePrefer([]string{prefer}); err == nil && ok && !(c >= 0 && c <= 1) {
			t.Errorf("Prefer %q: %g", prefer, c)
		}
		if d, err := ParseDeadline(deadline); err == nil {
			if back, err := ParseDeadline(FormatDeadline(d)); err != nil || back > max(d, 1e6) {
				t.Errorf("deadline %q: %s, %s", deadline, d, back)
			}
		}
		if c, err := ParseCoverage(coverage); err == nil {
			back, err := ParseCoverage(FormatFraction(c))
			if err != nil || back > c || (back == 1) != (c == 1) {
				t.Errorf("coverage %q: %g, %g, %v", coverage, c, back, err)
			}
		}
		if c, err := ParseShards(shards); err == nil {
			if back, err := ParseShards(c.String()); err != nil || back != c {
				t.Errorf("shards %q: %v, %v", shards, c, back)
			}
		}
		if n, err := ParseHop(hop); err == nil && n < 0 {
			t.Errorf("hop %q: %d", hop, n)
		}
		if tr := ParseTrace(trace); ParseTrace(tr.Span()).id != tr.id || len(tr.Span()) != 55 {
			t.Errorf("trace %q: %q", trace, tr.Span())
		}
		if got := requestID(id); got == "" || len(got) > 64 || strings.ContainsAny(got, " \r\n\"<>/") {
			t.Errorf("id %q: %q", id, got)
		}
	})
}

func FuzzBodies(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1},"n":1e9}`), "application/json")
	f.Add([]byte("[1,2]\n{}"), "text/plain")
	f.Add([]byte{0xff}, "x/y")
	f.Fuzz(func(t *testing.T, body []byte, kind string) {
		for _, m := range []merger{&concatMerge{}, &arrayMerge{}, &sumMerge{}, &topKMerge{spec: MergeSpec{Field: "a.b", Limit: 3}}} {
			a := &answer{status: 200, header: http.Header{"Content-Type": {kind}}, body: append([]byte(nil), body...)}
			if m.prepare(a) != nil {
				continue
			}
			m.add(a)
			rep, err := m.finish(t.Context(), ending{})
			if err != nil {
				continue
			}
			if _, lines := m.(*concatMerge); !lines {
				var out []byte
				for _, p := range rep.parts {
					out = append(out, p...)
				}
				if !json.Valid(out) {
					t.Errorf("%T makes %q of %q", m, out, body)
				}
			}
		}
		line, err := leafLine(&answer{status: 200, header: http.Header{"Content-Type": {kind}}, body: body}, true)
		if err != nil || strings.Contains(string(line), "\n") || !json.Valid(line) {
			t.Errorf("line %q of %q: %v", line, body, err)
		}
	})
}

func FuzzRoute(f *testing.F) {
	f.Add([]byte(`{"shards":[0,3,3]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := ParseRoute(body, 4)
		if err != nil {
			return
		}
		last := -1
		for _, s := range list {
			if s <= last || s > 3 {
				t.Errorf("%v of %q", list, body)
			}
			last = s
		}
	})
}

// FuzzEnd reads what a root says to a merge at the end, as a merge would.
func FuzzEnd(f *testing.F) {
	f.Add(3, 1, 2, "timeout <&> \n")
	f.Fuzz(func(t *testing.T, ok, failed, timeout int, detail string) {
		var c Coverage
		for range ok & 15 {
			c.Add(OK, 1, 0)
		}
		for range failed & 15 {
			c.Add(Failed, 2, 0)
		}
		for range timeout & 15 {
			c.Add(Timeout, 3, 0)
		}
		b := endLine(&ending{reason: reasonPolicy, coverage: c, shards: []ShardProblem{{State: Failed, Error: detail}}})
		var end EndLine
		if err := json.Unmarshal(b, &end); err != nil || !end.End || strings.Contains(string(b), "\n") || end.Coverage.Total != c.Total || end.Coverage.Fraction != c.Fraction() {
			t.Errorf("%q: %v", b, err)
		}
	})
}
