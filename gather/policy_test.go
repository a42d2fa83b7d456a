package gather

import (
	"math"
	"math/rand/v2"
	"testing"
	"testing/quick"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
)

func at(d time.Duration) clock.Instant { return clock.Instant(time.Hour + d) }

func TestParsePolicy(t *testing.T) {
	for _, s := range []string{"fail", "best", "coverage(0.95)", "quorum(13)"} {
		p, err := ParsePolicy(s)
		if err != nil || p.String() != s {
			t.Errorf("%s: %v %v", s, p, err)
		}
	}
	for _, s := range []string{"", "fail()", "coverage", "coverage(0)", "coverage(1.1)", "coverage(NaN)", "coverage(0.9", "quorum(0)", "quorum(-1)", "quorum(x)", "best(1)", "all"} {
		if p, err := ParsePolicy(s); err == nil {
			t.Errorf("%q is taken as %v", s, p)
		}
	}
}

func TestCoverageCountsByWeight(t *testing.T) {
	var c Coverage
	c.Add(OK, 1, 0)
	c.Add(Empty, 2, 0)
	c.Add(Partial, 4, 0.5)
	c.Add(Timeout, 8, 0)
	c.Add(Failed, 16, 0)
	c.Add(Missing, 32, 0)
	c.Add(Skipped, 1000, 0)
	if got, want := c.Fraction(), 5.0/63; math.Abs(got-want) > 1e-12 {
		t.Errorf("fraction %g, want %g", got, want)
	}
	if got := c.Degraded(); got != "timeout,failed,missing,partial" {
		t.Errorf("degraded %q", got)
	}
	back, err := ParseShards(c.String())
	if err != nil || back.String() != c.String() {
		t.Errorf("%v %v", back, err)
	}
}

// TestOnlyTheWholeIsOne: whatever the weights, a coverage of 1 is claimed exactly when nothing lacks, and the header never says more
// than there is.
func TestOnlyTheWholeIsOne(t *testing.T) {
	check := func(weights []float64, lack uint8, tiny float64) bool {
		var c Coverage
		c.Add(OK, 1, 0)
		for _, w := range weights {
			c.Add(OK, 1+math.Abs(math.Mod(w, 1e9)), 0)
		}
		whole := lack%2 == 0
		if !whole {
			c.Add(Failed, math.Abs(math.Mod(tiny, 1))*1e-9+1e-300, 0)
		}
		said := FormatFraction(c.Fraction())
		f, err := ParseCoverage(said)
		return err == nil && (c.Fraction() == 1) == whole && (said == "1") == whole && f <= c.Fraction()
	}
	if err := quick.Check(check, nil); err != nil {
		t.Error(err)
	}
}

func TestPolicyMet(t *testing.T) {
	cover := func(ok, failed int) (c Coverage) {
		for range ok {
			c.Add(OK, 1, 0)
		}
		for range failed {
			c.Add(Failed, 1, 0)
		}
		return c
	}
	for _, c := range []struct {
		policy     string
		ok, failed int
		want       bool
	}{
		{"fail", 16, 0, true}, {"fail", 15, 1, false}, {"coverage(0.9)", 9, 1, true}, {"coverage(0.9)", 8, 1, false}, {"coverage(0.3)", 3, 7, true},
		{"quorum(3)", 3, 9, true}, {"quorum(3)", 2, 0, true}, {"quorum(3)", 2, 1, false}, {"best", 0, 3, true}, {"fail", 0, 0, true},
	} {
		p, _ := ParsePolicy(c.policy)
		if got := p.Met(cover(c.ok, c.failed)); got != c.want {
			t.Errorf("%s with %d of %d: %v", c.policy, c.ok, c.ok+c.failed, got)
		}
	}
	best, _ := ParsePolicy("best")
	if best.Tighten(0.9).Met(cover(8, 2)) || !best.Tighten(0.9).Met(cover(9, 1)) {
		t.Error("a client's demand is not kept")
	}
	if p, _ := ParsePolicy("coverage(0.9)"); p.Tighten(0.1).Met(cover(8, 2)) {
		t.Error("a client loosened the policy")
	}
}

func TestQuantile(t *testing.T) {
	var q Quantile
	if _, ok := q.At(0.5); ok {
		t.Error("says something of nothing")
	}
	for i := range 1000 {
		q.Observe(at(0), time.Duration(i+1)*time.Millisecond)
	}
	for _, p := range []float64{0.5, 0.9, 0.985, 0.999} {
		got, ok := q.At(p)
		want := time.Duration(p*1000) * time.Millisecond
		if !ok || float64(got) < float64(want)*0.99 || float64(got) > float64(want)*1.07 {
			t.Errorf("p%g: %s, want about %s", p*100, got, want)
		}
	}
	for s := range slots { // other latencies, and what was before is forgotten
		for range 1000 {
			q.Observe(at(time.Duration(s+1)*time.Second), time.Millisecond)
		}
	}
	if got, _ := q.At(0.985); got > 2*time.Millisecond {
		t.Errorf("still %s after the latency fell to 1 ms", got)
	}
}

// calls observes a second of so many calls, spread over it, as long as next says.
func (q *Quantile) calls(second, rate int, next func() time.Duration) {
	for i := range rate {
		q.Observe(at(time.Duration(second)*time.Second+time.Duration(i)*time.Second/time.Duration(rate)), next())
	}
}

// TestQuantileAfterAStorm: ten seconds in which every call is slow are forgotten soon.
func TestQuantileAfterAStorm(t *testing.T) {
	for _, c := range []struct{ rate, within int }{ // leaf calls a second; seconds
		{10000, 4}, {400, 4}, // 100 requests to 100 and to 4 shards
		{100, 12}, {10, 120}, // too few calls for less
	} {
		rnd := rand.New(rand.NewPCG(1, 2))
		normal := func() time.Duration { return 4*time.Millisecond + time.Duration(rnd.IntN(2000))*time.Microsecond }
		storm := func() time.Duration { return 200 * time.Millisecond }
		var q Quantile
		second := 0
		for ; second < 60; second++ {
			q.calls(second, c.rate, normal)
		}
		usual, _ := q.At(0.985)
		for ; second < 70; second++ {
			q.calls(second, c.rate, storm)
		}
		if high, _ := q.At(0.985); high < 190*time.Millisecond {
			t.Errorf("%d calls a second: %s in the storm", c.rate, high)
		}
		for range c.within {
			q.calls(second, c.rate, normal)
			second++
		}
		if got, _ := q.At(0.985); got > 2*usual {
			t.Errorf("%d calls a second: still %s after %d s, usually %s", c.rate, got, c.within, usual)
		}
	}
}

// TestQuantileIsSteady: one call in a hundred is slow, and a quantile above that stays where the others are, at any rate.
func TestQuantileIsSteady(t *testing.T) {
	for _, rate := range []int{2, 20, 100, 1000} {
		rnd := rand.New(rand.NewPCG(3, 4))
		var q Quantile
		looks, high := 0, 0
		for second := range max(5000, 100_000/rate) {
			q.calls(second, rate, func() time.Duration {
				if rnd.IntN(100) == 0 {
					return 100 * time.Millisecond
				}
				return 4*time.Millisecond + time.Duration(rnd.IntN(2000))*time.Microsecond
			})
			if got, ok := q.At(0.985); ok {
				looks++
				if got > 12*time.Millisecond {
					high++
				}
			}
		}
		t.Logf("%d calls a second: above twice the usual in %.1f %% of seconds", rate, 100*float64(high)/float64(looks))
		if high*10 > looks {
			t.Errorf("%d calls a second: a slow call in a hundred moves the quantile in %d of %d seconds", rate, high, looks)
		}
	}
}

func TestBudget(t *testing.T) {
	b := NewBudget(0.03, fewTokens, false)
	spent := 0
	for s := range 60 { // a minute of 1000 calls a second, everything asks
		for range 10 {
			b.Earn(at(time.Duration(s)*time.Second), 100)
			for range 100 {
				if b.Spend(at(time.Duration(s) * time.Second)) {
					spent++
				}
			}
		}
	}
	if share := float64(spent) / 60000; share > 0.032 || share < 0.028 {
		t.Errorf("%.4f of the calls were hedged, the budget is 0.03", share)
	}
	quiet := NewBudget(0.03, fewTokens, false)
	for i := range fewTokens {
		if !quiet.Spend(at(0)) {
			t.Errorf("no token %d of the reserve", i)
		}
	}
	if quiet.Spend(at(0)) || quiet.Spend(at(9*time.Second)) {
		t.Error("more than the reserve")
	}
	if !quiet.Spend(at(11 * time.Second)) {
		t.Error("the reserve does not come back")
	}
	if NewBudget(0, fewTokens, false).Spend(at(0)) {
		t.Error("a budget of 0 gives tokens")
	}
}

func TestBrake(t *testing.T) {
	b := NewBudget(0.03, fewTokens, true)
	b.Earn(at(0), 10000) // 300 tokens, and the reserve
	spent := 0
	for range 5000 { // half of the calls want a hedge: an outage
		if b.Spend(at(time.Second)) {
			spent++
		}
	}
	if spent > 310 || !b.State(at(time.Second)).Braked {
		t.Errorf("%d spent, %+v", spent, b.State(at(time.Second)))
	}
	b.Earn(at(8*time.Second), 10000)
	if b.Spend(at(8 * time.Second)) {
		t.Error("the brake is off while the outage lasts")
	}
	b.Earn(at(12*time.Second), 1000)
	if !b.Spend(at(12 * time.Second)) {
		t.Error("the brake is still on after the outage")
	}
}

func ejectConfig() *EjectConfig {
	return &EjectConfig{Consecutive: 5, Ratio: 0.5, Max: 0.3, Base: 10 * time.Second, Limit: 5 * time.Minute}
}

func TestEjector(t *testing.T) {
	cfg, e := ejectConfig(), Ejector{}
	for i := range 4 {
		if e.Failure(cfg, at(0)) {
			t.Fatalf("ejected after %d failures", i+1)
		}
	}
	e.Success(cfg, at(0))
	for range 4 {
		if e.Failure(cfg, at(0)) {
			t.Fatal("a success does not start the count anew")
		}
	}
	if !e.Failure(cfg, at(0)) {
		t.Fatal("five failures in a row")
	}
	now := at(0)
	for i, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		until := e.Eject(cfg, now)
		if got := until.Sub(now); got != want*time.Second {
			t.Errorf("ejection %d lasts %s, want %ds", i+1, got, want)
		}
		if e.Failure(cfg, now.Add(time.Second)) {
			t.Error("a late failure prolongs an ejection")
		}
		now = until
		if !e.Failure(cfg, now) {
			t.Fatal("a failed probe does not eject again")
		}
	}
	e.Success(cfg, now)
	for range 4 {
		if e.Failure(cfg, now) {
			t.Fatal("a good probe does not start the count anew")
		}
	}
	e.Success(cfg, now.Add(20*time.Minute))
	if got := e.Eject(cfg, now.Add(20*time.Minute)).Sub(now.Add(20 * time.Minute)); got != 10*time.Second {
		t.Errorf("after good behaviour an ejection lasts %s", got)
	}
}

func TestEjectorByRatio(t *testing.T) {
	cfg, e := ejectConfig(), Ejector{}
	out := false
	for i := range 40 {
		if i%2 == 0 {
			e.Success(cfg, at(0))
		} else {
			out = out || e.Failure(cfg, at(0))
		}
	}
	if !out {
		t.Error("half of its calls fail, and it stays")
	}
	if e = (Ejector{}); e.Failure(&EjectConfig{Ratio: 0.5}, at(0)) {
		t.Error("ejected although that is turned off")
	}
}

func TestMayEject(t *testing.T) {
	cfg := ejectConfig()
	for _, c := range []struct {
		n, out int
		want   bool
	}{{1, 0, false}, {2, 0, true}, {2, 1, false}, {3, 0, true}, {3, 1, false}, {10, 2, true}, {10, 3, false}} {
		if got := mayEject(cfg, c.n, c.out); got != c.want {
			t.Errorf("%d of %d are out, one more: %v", c.out, c.n, got)
		}
	}
}

func TestDivide(t *testing.T) {
	for _, c := range []struct{ total, reserve, level, gather, leaf time.Duration }{
		{500, 20, 5, 480, 475}, {500, 400, 5, 250, 245}, {4, 2, 5, 2, 1}, {100, 0, 0, 100, 100},
	} {
		d := Divide(c.total*time.Millisecond, c.reserve*time.Millisecond, c.level*time.Millisecond)
		if d.Gather != c.gather*time.Millisecond || d.Leaf != c.leaf*time.Millisecond {
			t.Errorf("%+v gives %+v", c, d)
		}
	}
}

func TestPick(t *testing.T) {
	cfg := ejectConfig()
	p := &pool{cfg: cfg}
	a, b, c := &replica{key: "a", node: "n1"}, &replica{key: "b", node: "n1"}, &replica{key: "c", node: "n2"}
	p.set([]*replica{a, b, c})
	now := at(0)
	a.inflight.Store(9)
	b.inflight.Store(1) // twice the score of c
	counts := map[*replica]int{}
	for i := range uint64(3000) {
		got, _ := p.pick(now, primary, nil, i*0x9e3779b97f4a7c15)
		counts[got]++
	}
	if counts[a] != 0 || counts[b] >= counts[c] || counts[b] == 0 {
		t.Errorf("a (busiest) %d, b %d, c (idle) %d", counts[a], counts[b], counts[c])
	}
	for i := range uint64(100) {
		if got, _ := p.pick(now, hedge, []*replica{a}, i); got != c {
			t.Fatalf("a hedge of %s on n1 goes to %s", a.key, got.key)
		}
	}
	c.outUntil.Store(int64(now.Add(time.Second)))
	if got, _ := p.pick(now, hedge, []*replica{a, b}, 1); got != nil {
		t.Errorf("a hedge goes to an ejected replica")
	}
	if got, _ := p.pick(now, retry, []*replica{a, b}, 1); got != c {
		t.Errorf("a retry does without the ejected replica, although there is no other")
	}
	later := now.Add(2 * time.Second)
	if got, probe := p.pick(later, primary, nil, 1); got != c || !probe {
		t.Errorf("no probe after the ejection")
	}
	if got, _ := p.pick(later, primary, nil, 1); got == c {
		t.Errorf("a second probe while one is under way")
	}
	b.pushback.Store(int64(later.Add(time.Second)))
	for i := range uint64(100) {
		if got, _ := p.pick(later, primary, nil, i); got != a {
			t.Fatalf("picked %s, which pushed back or is ejected", got.key)
		}
	}
	if got, _ := p.pick(later, primary, []*replica{a, b, c}, 1); got != nil {
		t.Error("picked a replica twice")
	}
}

// TestPickSuspect: a replica to which a call was lost, and that said nothing since the call began, gets one probe at a time, and what no
// other can take.
func TestPickSuspect(t *testing.T) {
	p := &pool{cfg: ejectConfig()}
	a, b := &replica{key: "a"}, &replica{key: "b"}
	p.set([]*replica{a, b})
	a.heard.Store(int64(at(1)))
	a.owe(at(0))
	if a.suspect() {
		t.Error("suspect, although it answered another call since")
	}
	a.owe(at(2))
	a.owe(at(1))
	b.inflight.Store(100)
	if got, probe := p.pick(at(3), primary, nil, 1); got != a || !probe {
		t.Errorf("picked %s (probe %v), want a probe of the suspect", got.key, probe)
	}
	for i := range uint64(100) {
		for _, why := range []purpose{primary, retry, hedge} {
			if got, probe := p.pick(at(3), why, nil, i); got != b || probe {
				t.Fatalf("a %s goes to %s (probe %v) while the suspect is probed, want b", why, got.key, probe)
			}
		}
		if got, _ := p.pick(at(3), hedge, []*replica{b}, i); got != a {
			t.Fatal("no hedge to a suspect, although there is no other")
		}
	}
	b.outUntil.Store(int64(at(time.Minute)))
	if got, _ := p.pick(at(3), primary, nil, 1); got != a {
		t.Error("an ejected replica is preferred to a suspect one")
	}
	a.heard.Store(int64(at(3)))
	if a.suspect() {
		t.Error("still suspect after an answer")
	}
}

func TestLateness(t *testing.T) {
	var l Lateness
	const ms = time.Millisecond
	if got := l.At(at(0)); got != 0 {
		t.Errorf("late by %s before anything was", got)
	}
	for _, step := range []struct{ at, late, want time.Duration }{
		{0, 8 * ms, 8 * ms}, {time.Second, ms, 7238 * time.Microsecond}, {2 * time.Second, 9 * ms, 9 * ms}, {2*time.Second + lateDecay, -ms, 3310 * time.Microsecond},
	} {
		l.Observe(at(step.at), step.late)
		if got := l.At(at(step.at)); got < step.want-ms/100 || got > step.want+ms/100 {
			t.Errorf("after %s: %s, want about %s", step.at, got, step.want)
		}
	}
}

// TestSlowReplicaGetsAnotherTry: a high latency that was measured long ago does not keep a replica from being tried.
func TestSlowReplicaGetsAnotherTry(t *testing.T) {
	r := &replica{}
	r.observe(at(0), time.Second)
	if a, b := r.score(at(0)), r.score(at(30*time.Second)); b > a/100 {
		t.Errorf("score %g, half a minute later %g", a, b)
	}
}

func TestWeights(t *testing.T) {
	cfg := Config{Shards: 4, Weights: map[int]float64{3: 40}, Service: "x"}
	f := newFleet(&cfg)
	weights := func() (w [4]float64) {
		for i, p := range f.pools {
			w[i] = p.weighs()
		}
		return w
	}
	f.update([]instance{{shard: 0, key: "a", url: "http://a:1", weight: 10, check: "passing"}, {shard: 0, key: "b", url: "http://b:1", weight: 12, check: "passing"}, {shard: 1, key: "c", url: "http://c:1", weight: 20, check: "passing"}, {shard: 3, key: "d", url: "http://d:1", weight: 1, check: "passing"}}, at(0))
	if got, want := weights(), [4]float64{12, 20, 24, 40}; got != want { // shard 2: the mean of 12, 20, 40
		t.Errorf("%v, want %v", got, want)
	}
	f.update([]instance{{shard: 1, key: "c", url: "http://c:1", weight: 20, check: "passing"}}, at(0))
	if got, want := weights(), [4]float64{12, 20, 24, 40}; got != want { // a shard that went away weighs what it did
		t.Errorf("%v, want %v", got, want)
	}
}

// What a request that failed did not wait for is not covered by its answer, other than what a merge could do without.
func TestSkippedIsNotCoveredByAnError(t *testing.T) {
	for failing, want := range map[bool]string{false: "0.5", true: "0.333333"} {
		c := Coverage{failing: failing}
		c.Add(OK, 1, 1)
		c.Add(Skipped, 1, 0)
		c.Add(Missing, 1, 0)
		if got := FormatFraction(c.Fraction()); got != want {
			t.Errorf("failing %v: %s, want %s", failing, got, want)
		}
	}
}

// TestReserveCoversLateness: a root that is late by itself stops waiting for leaves sooner, within bounds.
func TestReserveCoversLateness(t *testing.T) {
	s := DefaultSettings()
	s.Leaf.Static = []string{"0=http://127.0.0.1:1"}
	for _, c := range []struct {
		reserve           string
		late, total, want time.Duration
	}{
		{"auto", 0, 100 * time.Millisecond, mergeMargin},
		{"auto", 4 * time.Millisecond, 100 * time.Millisecond, mergeMargin + 4*time.Millisecond},
		{"auto", time.Second, 100 * time.Millisecond, mergeMargin + 10*time.Millisecond},
		{"7ms", time.Second, 100 * time.Millisecond, 7 * time.Millisecond},
	} {
		s.Merge.Reserve = c.reserve
		cfg, err := s.Config()
		if err != nil {
			t.Fatal(err)
		}
		root, err := New(cfg, clock.Boot(), hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		root.late.Observe(root.clock.Now(), c.late)
		if got := root.reserve(c.total); got > c.want || got < c.want-time.Millisecond/10 { // it is being forgotten already
			t.Errorf("%s, late by %s: %s of %s for the merge, want %s", c.reserve, c.late, got, c.total, c.want)
		}
		root.Close()
	}
}
