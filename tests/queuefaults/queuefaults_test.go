package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/item"
	"retinue/tests/brokers"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) {
	brokers.Main()
	workerMain()
	harness.Main(m)
}

// programs are built once for all campaigns.
var programs = harness.Share(func(t harness.T) map[string]string {
	root, dir := harness.RepoRoot(t), harness.Dir(t, "queuefaults")
	out := map[string]string{}
	for _, name := range []string{"retinue-coordinator", "retinue-broker"} {
		out[name] = filepath.Join(dir, name)
		if err := build(context.Background(), root, out[name], "./cmd/"+name); err != nil {
			t.Fatalf("%v", err)
		}
	}
	return out
})

func prepare(t *testing.T, kind string) settings {
	t.Helper()
	harness.Need(t, harness.NewFeature(kind, true, func() error { return brokers.Installed(kind) }))
	built := programs.Get(t)
	return settings{Broker: kind, Seed: 42, Lease: 2 * time.Second, LongShare: 2, Dir: harness.Dir(t, "queuefaults-"+kind),
		Coordinator: built["retinue-coordinator"], Queue: built["retinue-broker"], Log: func(format string, args ...any) { t.Logf(format, args...) }}
}

// The short campaign: some seconds of everything on each broker.
func TestCampaign(t *testing.T) {
	for _, kind := range brokers.Kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := prepare(t, kind)
			s.Items, s.Kills, s.Backlog, s.Limit = 500, 6, 300, time.Minute
			r, err := run(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s", r.markdown())
			for _, f := range r.Findings {
				t.Errorf("seed %d: %s", s.Seed, f)
			}
			if r.Items < 200 || r.Kills() < 1 {
				t.Errorf("only %d items and %d kills", r.Items, r.Kills())
			}
		})
	}
}

// The short campaign with partitions: the order of keys over three coordinators, while they, the brokers and Consul are killed and stopped. One broker
// that has leases, and one that has none.
func TestPartitions(t *testing.T) {
	for _, kind := range []string{"redis", "rabbitmq"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := prepare(t, kind)
			s.Items, s.Kills, s.Backlog, s.Limit, s.Partitions = 200, 6, 60, 30*time.Second, 6 // one coordinator is slow, and has a third of the partitions
			r, err := run(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s", r.markdown())
			for _, f := range r.Findings {
				t.Errorf("seed %d: %s", s.Seed, f)
			}
			if r.Items < 200 || r.Kills() < 1 {
				t.Errorf("only %d items and %d kills", r.Items, r.Kills())
			}
		})
	}
}

// A canary is a coordinator with one mistake in it, under the faults that should bring the mistake to light. A campaign that does not
// see it would not see it in a sound coordinator either.
var canaries = []struct {
	name           string
	file, old, new string
	faults         []weight // of the coordinators
	until, items   int
	long           int    // of a thousand items
	promise        string // that is broken
}{
	{"an ack before the commit", "schedule.go", "	m.emit(fxCall{c.id, tasks})\n", "	for _, it := range items {\n		m.emit(fxAck{[]uint64{it.handle}})\n	}\n	m.emit(fxCall{c.id, tasks})\n",
		[]weight{{coordKill, 1, span{0, 0.3}}}, 10, 2000, 0, noLoss},
	{"no fence: the last one wins", "commit/rename.go", "	if won, err := r.read(target); won != nil || err != nil {", "	os.RemoveAll(target)\n	if won, err := r.read(target); won != nil || err != nil {",
		[]weight{{coordStop, 1, span{1.8, 2.5}}}, 6, 500, 100, oneEffect},
	{"leases that are not extended", "machine.go", "		m.emit(fxExtend{handles})\n", "		m.extending = false\n", nil, 0, 250, 300, noRerun},
}

func TestCanaries(t *testing.T) {
	for _, c := range canaries {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := prepare(t, "redis")
			s.Coordinator = broken(t, c.file, c.old, c.new)
			s.Lease, s.LongShare, s.Only = time.Second, c.long, &kindOf{span{0.3, 1}, c.faults}
			// As often as it takes to see it.
			for round := range 8 {
				s.Seed, s.Items, s.Faults, s.Limit, s.Patience = uint64(round), c.items, c.until, 20*time.Second, 8*time.Second
				s.Dir = harness.Dir(t, "canary")
				r, err := run(t.Context(), s)
				if err != nil {
					t.Fatal(err)
				}
				if r.Broken[c.promise] > 0 {
					t.Logf("round %d: %d times, as in %s", round, r.Broken[c.promise], r.first(c.promise))
					return
				}
			}
			t.Errorf("the campaign did not notice")
		})
	}
}

// broken builds the coordinator with a mistake.
func broken(t *testing.T, file, old, new string) string {
	t.Helper()
	root, dir := harness.RepoRoot(t), harness.Dir(t, "canary")
	original := filepath.Join(root, "coordinator", file)
	source, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), old); n != 1 {
		t.Fatalf("%s has %d places to break, want 1: the canary has to follow the code", file, n)
	}
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{changed: []byte(strings.Replace(string(source), old, new, 1)), overlay: replace} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "retinue-coordinator")
	if err := build(t.Context(), root, out, "./cmd/retinue-coordinator", "-overlay", overlay); err != nil {
		t.Fatal(err)
	}
	return out
}

// The plan is a function of the seed, and of nothing else.
func TestPlan(t *testing.T) {
	plan := func(seed uint64) (out string) {
		for name, kind := range map[string]kindOf{"broker": brokerLane} {
			l := newLane(seed, name, kind, 1)
			for range 100 {
				out += fmt.Sprintln(l.next())
			}
		}
		for n := range 500 {
			out += string(encode(taskOf(seed, n, 2, time.Second)))
		}
		return out
	}
	if again := plan(7); plan(7) != again {
		t.Error("one seed, two plans")
	}
	if plan(7) == plan(8) {
		t.Error("two seeds, one plan")
	}
	for _, want := range []string{string(brokerKill), string(brokerStop), `"fail":2`, `"end":"dead"`} {
		if !strings.Contains(plan(7), want) {
			t.Errorf("%s is not in the plan", want)
		}
	}
}

// The judge finds what is wrong with an item, and nothing where nothing is.
func TestJudge(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(1e12).Add(time.Duration(ms) * time.Millisecond) }
	of := func(change func(*history)) *history {
		h := &history{offered: at(0), confirmed: true, outs: map[string]int{"aa": 1}}
		if change != nil {
			change(h)
		}
		return h
	}
	rec := func(state item.State, n int, nonce string) *item.Record {
		r := &item.Record{State: state, N: n}
		if nonce != "" {
			r.Next = []item.Message{{Body: []byte(nonce)}}
		}
		return r
	}
	ran := func(members ...string) (out []*execution) {
		for i, m := range members {
			out = append(out, &execution{member: m, nonce: "aa", attempt: 1, from: at(1000 * (i + 1)), end: done})
		}
		return out
	}
	for name, c := range map[string]struct {
		h    *history
		rec  *item.Record
		ran  []*execution
		f    []event
		late []event
		want string
	}{
		"sound":                   {of(nil), rec(item.Done, 1, "aa"), ran("a"), nil, nil, ""},
		"sound, from a batch":     {of(nil), rec(item.Done, 1, `"aa"`), ran("a"), nil, nil, ""},
		"never promised":          {of(func(h *history) { h.confirmed, h.outs = false, nil }), nil, nil, nil, nil, ""},
		"no record":               {of(nil), nil, ran("a"), nil, nil, noLoss},
		"never came out":          {of(func(h *history) { h.outs = nil }), rec(item.Done, 1, "aa"), ran("a"), nil, nil, noLoss},
		"two outputs":             {of(func(h *history) { h.outs["bb"] = 1 }), rec(item.Done, 1, "aa"), ran("a"), nil, nil, oneEffect},
		"the record was replaced": {of(nil), rec(item.Done, 1, "bb"), ran("a"), nil, nil, oneEffect},
		"done and dead":           {of(func(h *history) { h.dead = 1 }), rec(item.Done, 1, "aa"), ran("a"), nil, nil, oneEffect},
		"out of nowhere":          {of(func(h *history) { h.offered = time.Time{} }), rec(item.Done, 1, "aa"), ran("a"), nil, nil, oneEffect},
		"nobody's output":         {of(func(h *history) { h.outs = map[string]int{"cc": 1} }), rec(item.Done, 1, "cc"), ran("a"), nil, nil, rightOutput},
		"a failure not counted":   {of(func(h *history) { h.task.Fail = 2 }), rec(item.Done, 2, "aa"), ran("a", "a"), []event{{member: "a", from: at(0), to: at(1)}}, nil, attempts},
		"more attempts than runs": {of(nil), rec(item.Done, 2, "aa"), ran("a"), nil, nil, attempts},
		"an attempt that was struck before it began": {of(func(h *history) { h.latest = at(5000) }), rec(item.Done, 2, "aa"), ran("a"), []event{{class: workerKill, member: "a", from: at(500), to: at(501)}}, nil, ""},
		"dead instead of done":                       {of(func(h *history) { h.outs, h.dead = nil, 1 }), rec(item.Dead, 1, ""), ran("a"), nil, nil, attempts},
		"run again":                                  {of(nil), rec(item.Done, 1, "aa"), ran("a", "b"), nil, nil, noRerun},
		"run again, fault of another":                {of(nil), rec(item.Done, 1, "aa"), ran("a", "b"), []event{{member: "c", from: at(1200), to: at(1300)}}, nil, noRerun},
		"run again, fault long ago":                  {of(func(h *history) { h.offered = at(-9000) }), rec(item.Done, 1, "aa"), ran("a", "b"), []event{{member: "a", from: at(-9000), to: at(-8000)}}, nil, noRerun},
		"run again after a fault":                    {of(nil), rec(item.Done, 1, "aa"), ran("a", "b"), []event{{member: "a", from: at(1200), to: at(1300)}}, nil, ""},
		"run again, broker's fault":                  {of(nil), rec(item.Done, 1, "aa"), ran("a", "b"), []event{{from: at(1200)}}, nil, ""},
		"run again, machine asleep":                  {of(nil), rec(item.Done, 1, "aa"), ran("a", "b"), nil, []event{{from: at(1200), to: at(1900)}}, ""},
		"published twice":                            {of(func(h *history) { h.again = true }), rec(item.Done, 1, "aa"), ran("a", "b"), nil, nil, ""},
	} {
		found := judgeItem("i", c.h, c.rec, c.ran, scope{lease: time.Second}, c.f, c.late)
		switch {
		case c.want == "" && len(found) > 0:
			t.Errorf("%s: %v", name, found)
		case c.want != "" && (len(found) == 0 || found[0].Promise != c.want):
			t.Errorf("%s: %v, want %s", name, found, c.want)
		}
	}
}

func TestSplice(t *testing.T) {
	one := splice("", "redis", "## redis\n")
	two := splice(one, "nats", "## nats\n")
	if got := splice(two, "redis", "## redis, newer\n"); strings.Count(got, "## redis") != 1 || !strings.Contains(got, "newer") || !strings.Contains(got, "## nats") || !strings.HasPrefix(got, "# Work queue under faults") {
		t.Errorf("%s", got)
	}
}

// A machine without a broker skips, and says why.
func TestMissing(t *testing.T) {
	t.Setenv("PATH", "")
	if err := brokers.Installed("activemq"); err == nil {
		t.Skip("skip: java is where no PATH is needed")
	} else if !errors.Is(err, brokers.ErrMissing) {
		t.Error(err)
	}
}

// The order is judged over all executions of an item, by the end of every one of its key before it.
func TestJudgeOrder(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(1e12).Add(time.Duration(ms) * time.Millisecond) }
	items := map[string]*history{}
	for id, key := range map[string]string{"1": "k", "2": "k", "3": "", "4": "other", "5": "k", "6": "k"} {
		items[id] = &history{key: key, confirmed: id != "6"}
	}
	records, ran := map[string]*item.Record{}, map[string][]*execution{}
	for i, id := range []string{"1", "2", "3", "4", "5", "6"} {
		records[id] = &item.Record{Ended: at(100*i + 50)}
		ran[id] = []*execution{{member: "a", from: at(100 * i)}}
	}
	if found := judgeOrder(items, records, ran); len(found) > 0 {
		t.Errorf("sound: %v", found)
	}
	ran["5"] = append(ran["5"], &execution{member: "b", from: at(149)})
	ran["6"][0].from = at(0)
	if found := judgeOrder(items, records, ran); len(found) != 1 || found[0].Promise != inOrder || found[0].Item != "5" {
		t.Errorf("one that began a millisecond before the one before it had ended, and one that nobody was promised: %v", found)
	}
	records["1"].Ended = at(500)
	if found := judgeOrder(items, records, ran); len(found) != 2 {
		t.Errorf("the first of three ended last: %v", found)
	}
}
