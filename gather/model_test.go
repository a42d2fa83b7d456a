package gather

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var modelRequests = flag.Int("gather.requests", envInt("RETINUE_GATHER_REQUESTS", 2000), "requests of the model test")
var modelSeed = flag.Int("gather.seed", envInt("RETINUE_GATHER_SEED", 1), "seed of the model test: it decides every fault")
var leakRequests = flag.Int("gather.leak-requests", envInt("RETINUE_GATHER_LEAK_REQUESTS", 3000), "requests of the test for leaks")
var freezes = flag.Int("gather.freezes", envInt("RETINUE_GATHER_FREEZES", 5), "freezes of the test of frozen replicas")

func envInt(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return def
}

// The data: numbers, spread over shards. A request asks for those that divide by n.
const modelShards = 8

var modelWeights = [modelShards]float64{1, 2, 3, 4, 5, 6, 7, 8}

func shardOfNumber(n int) int { return n % modelShards }

// modelAnswer is what a single node would say, of these shards only.
func modelAnswer(divisor int, shards []int) []int {
	out := []int{}
	for n := range 200 {
		if n%divisor == 0 && slices.Contains(shards, shardOfNumber(n)) {
			out = append(out, n)
		}
	}
	return out
}

// fault of one replica for one request, decided by the request's identifier: what each leaf does is known afterwards.
type fault int

var faultNames = [...]string{"healthy", "fails", "breaks off", "pushes back", "hangs", "is partial", "answers garbage", "is slow"}

const (
	healthy fault = iota
	fails
	resets
	pushes
	hangs
	partially // answers for half of its shard
	garbage
	slowly
)

// faultOf says what replica r of a shard does in a request. 92 % of calls are healthy.
func faultOf(seed uint64, shard, replica int) fault {
	rng := rand.New(rand.NewPCG(seed, uint64(shard*16+replica)))
	if rng.IntN(100) < 92 {
		return healthy
	}
	return []fault{fails, fails, resets, pushes, hangs, partially, garbage, slowly}[rng.IntN(8)]
}

// listed is one leaf's part of an answer.
type listed struct {
	Shard   int     `json:"shard"`
	Share   float64 `json:"share"`
	Numbers []int   `json:"numbers"`
}

// met counts the faults that leaf calls met.
type met [len(faultNames)]atomic.Int64

func (m *met) String() string {
	var list []string
	for f := range m {
		list = append(list, fmt.Sprintf("%s %d", faultNames[f], m[f].Load()))
	}
	return strings.Join(list, ", ")
}

func modelLeaf(shard, replica int, m *met) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		seed, _ := strconv.ParseUint(r.URL.Query().Get("seed"), 10, 64)
		divisor, _ := strconv.Atoi(r.URL.Query().Get("divisor"))
		mine := modelAnswer(divisor, []int{shard})
		share := 1.0
		what := faultOf(seed, shard, replica)
		m[what].Add(1)
		switch what {
		case fails:
			w.WriteHeader(500)
			return
		case resets:
			panic(http.ErrAbortHandler)
		case pushes:
			w.WriteHeader(503)
			return
		case hangs:
			<-r.Context().Done()
			return
		case partially:
			share = 0.5
			w.Header().Set("Retinue-Coverage", "0.5")
			mine = mine[:len(mine)/2]
		case garbage:
			io.WriteString(w, "{")
			return
		case slowly:
			time.Sleep(3 * time.Millisecond)
		}
		if len(mine) == 0 && share == 1 {
			w.WriteHeader(204)
			return
		}
		json.NewEncoder(w).Encode(listed{shard, share, mine})
	}
}

// mergeModel is a merge container that does what json-array does.
func mergeModel(t testing.TB) *leafServer {
	return newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		rec, err := readRecord(r)
		if err != nil || rec.end == nil {
			return
		}
		all := []listed{}
		for i, l := range rec.leaves {
			var one listed
			switch {
			case l.Status == 204:
			case json.Unmarshal([]byte(rec.bodies[i]), &one) != nil:
				all = append(all, listed{l.Shard, garbled, nil}) // what to make of such a body is up to the merge
			case one.Share != l.Coverage:
				all = append(all, listed{Shard: -1}) // the merge was told something else than the leaf said
			default:
				all = append(all, one)
			}
		}
		json.NewEncoder(w).Encode(all)
	})
}

const garbled = -1

// modelWorld has flat roots, one of which lacks a shard, and trees of two children over half of them each, with every policy.
func modelWorld(t *testing.T, m *met) (leavesOf [][]*leafServer, roots []*testRoot) {
	for s := range modelShards {
		leavesOf = append(leavesOf, []*leafServer{newLeaf(t, modelLeaf(s, 0, m)), newLeaf(t, modelLeaf(s, 1, m))})
	}
	common := func(s *Settings) {
		s.Hedge.Budget, s.Hedge.Quantile, s.Retry.Budget, s.Eject.For, s.Merge.URL = "10%", "0.9", "20%", "20ms..50ms", "json-array"
	}
	weigh := func(ws []float64) (list []string) {
		for i, w := range ws {
			list = append(list, fmt.Sprintf("%d=%g", i, w))
		}
		return list
	}
	child := func(from, to int) *leafServer {
		r := newTestRoot(t, func(s *Settings) {
			common(s)
			s.Leaf.Static, s.Leaf.Weights, s.Leaf.Shards = leaves(leavesOf[from:to]...), weigh(modelWeights[from:to]), to-from
			s.Partial.Policy = "best"
		})
		return &leafServer{Server: r.Server}
	}
	left, right := child(0, 4), child(4, 8)
	container := mergeModel(t)
	for _, policy := range []string{"fail", "coverage(0.7)", "quorum(6)", "best"} {
		for merge, known := range map[string]int{"json-array": modelShards - 1, container.URL: modelShards} { // the first lacks a shard
			roots = append(roots, newTestRoot(t, func(s *Settings) {
				common(s)
				s.Leaf.Static, s.Leaf.Weights, s.Leaf.Shards, s.Partial.Policy, s.Merge.URL = leaves(leavesOf[:known]...), weigh(modelWeights[:]), modelShards, policy, merge
			}))
		}
		if policy == "quorum(6)" {
			policy = "quorum(1)"
		}
		roots = append(roots, newTestRoot(t, func(s *Settings) {
			common(s)
			s.Leaf.Static, s.Leaf.Weights, s.Partial.Policy = leaves([]*leafServer{left}, []*leafServer{right}), []string{"0=10", "1=26"}, policy
		}))
	}
	return leavesOf, roots
}

// tally counts the kinds of answers.
type tally struct{ next, whole, degraded, refused, wrong atomic.Int64 }

// TestModel compares every answer with that of a single node over the same data, and every coverage with what is in the answer.
func TestModel(t *testing.T) {
	began := time.Now()
	var faults met
	leavesOf, roots := modelWorld(t, &faults)
	var n tally
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				i := n.next.Add(1)
				if i > int64(*modelRequests) || n.wrong.Load() > 10 {
					return
				}
				r := roots[int(i)%len(roots)]
				if err := (modelCase{uint64(*modelSeed)<<32 + uint64(i), 1 + int(i)%9}).check(client, r, &n); err != nil {
					n.wrong.Add(1)
					t.Errorf("request %d (%s): %v", i, r.root.cfg.Policy, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d requests: %d whole, %d degraded, %d refused by their policy, %d wrong", *modelRequests, n.whole.Load(), n.degraded.Load(), n.refused.Load(), n.wrong.Load())
	if n.whole.Load() == 0 || n.degraded.Load() == 0 || n.refused.Load() == 0 {
		t.Error("a kind of answer never came: the test proves nothing about it")
	}
	for _, r := range roots {
		eventually(t, "the memory is given back", func() bool { return r.root.memory.Used() == 0 && r.root.busy.Load() == 0 })
	}
	for _, replicas := range leavesOf {
		for _, l := range replicas {
			eventually(t, "leaves see cancellation", func() bool { return l.alive.Load() == 0 })
		}
	}
	report(t, began, "Every answer beside that of a single node", "Eight shards of unequal weight, two replicas each; roots that know every shard, roots that lack one and trees, each with the policies `fail`, `coverage(0.7)`, `quorum` and `best`. Each answer is compared with a single node's over the same data, and its coverage with what is in it.",
		[2]string{"seed", strconv.Itoa(*modelSeed)}, [2]string{"requests", strconv.Itoa(*modelRequests)}, [2]string{"whole", fmt.Sprint(n.whole.Load())}, [2]string{"degraded, by leave of the policy", fmt.Sprint(n.degraded.Load())},
		[2]string{"refused by their policy", fmt.Sprint(n.refused.Load())}, [2]string{"wrong answers or coverage figures", fmt.Sprint(n.wrong.Load())}, [2]string{"leaf calls", faults.String()})
}

type modelCase struct {
	seed    uint64
	divisor int
}

// check sends one request and judges the answer.
func (c modelCase) check(client *http.Client, r *testRoot, n *tally) error {
	req, _ := http.NewRequestWithContext(context.Background(), "GET", fmt.Sprintf("%s/n?seed=%d&divisor=%d", r.URL, c.seed, c.divisor), nil)
	req.Header.Set("Retinue-Deadline-Ms", "1500") // a busy machine is no reason to refuse everything
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	cover, err := ParseShards(resp.Header.Get("Retinue-Shards"))
	if err != nil {
		return err
	}
	claimed, err := ParseCoverage(resp.Header.Get("Retinue-Coverage"))
	if err != nil || cover.Total != r.root.cfg.Shards {
		return fmt.Errorf("%s, %v", cover, err)
	}
	policy := r.root.cfg.Policy
	if resp.StatusCode != 200 {
		n.refused.Add(1)
		if late := strings.Contains(string(body), "merge_timeout"); !late && (resp.StatusCode != 503 && resp.StatusCode != 504 || claimed == 1 || policy.Kind == PolicyBest) {
			return fmt.Errorf("status %d, coverage %g: %s", resp.StatusCode, claimed, body)
		}
		return nil
	}
	var parts []listed
	if err := json.Unmarshal(body, &parts); err != nil {
		return fmt.Errorf("%q: %w", body, err)
	}
	if err := c.judge(parts, claimed, cover, r.root); err != nil {
		return fmt.Errorf("%w: %s, coverage %g, %v", err, cover, claimed, parts)
	}
	switch {
	case policy.Kind == PolicyFail && claimed != 1, policy.Kind == PolicyCoverage && claimed < policy.MinCoverage-1e-6, policy.Kind == PolicyQuorum && cover.answered() < policy.Quorum:
		return fmt.Errorf("policy is not met by %s, %g", cover, claimed)
	case (claimed == 1) != (resp.Header.Get("Retinue-Degraded") == ""), (claimed == 1) != (resp.Header.Get("Cache-Control") == ""):
		return fmt.Errorf("coverage %g and degraded %q", claimed, resp.Header.Get("Retinue-Degraded"))
	case claimed == 1:
		n.whole.Add(1)
	default:
		n.degraded.Add(1)
	}
	return nil
}

// judge compares an answer with the single node's, and the coverage with what the answer has in it. Only answers that are empty
// for the asked divisor leave no trace: then some set of them must explain the figure.
func (c modelCase) judge(parts []listed, claimed float64, cover Coverage, root *Root) error {
	flat, known := root.cfg.Shards == modelShards, modelShards
	if flat {
		known = root.fleet.served()
	}
	if claimed == 1 {
		if got, all := numbersOf(parts), modelAnswer(c.divisor, everyShard()); got != nil && !slices.Equal(got, all) {
			return fmt.Errorf("whole, but %v where a single node says %v", got, all)
		}
	}
	covered, total := 0.0, 0.0
	for _, w := range modelWeights {
		total += w
	}
	seen := map[int]bool{}
	ok, partial := 0, 0
	for _, p := range parts {
		if p.Shard < 0 || p.Shard >= known || seen[p.Shard] {
			return fmt.Errorf("shard %d cannot be here, or is here twice", p.Shard)
		}
		seen[p.Shard] = true
		if p.Share == garbled {
			covered += modelWeights[p.Shard]
			ok++
			continue
		}
		want := modelAnswer(c.divisor, []int{p.Shard})
		if p.Share == 1 {
			ok++
		} else {
			partial++
			want = want[:len(want)/2]
		}
		if !slices.Equal(p.Numbers, want) && len(want)+len(p.Numbers) > 0 {
			return fmt.Errorf("shard %d says %v, a single node %v", p.Shard, p.Numbers, want)
		}
		covered += modelWeights[p.Shard] * p.Share
	}
	if flat && (cover.OK != ok || cover.Partial != partial || cover.Missing != modelShards-known) {
		return fmt.Errorf("the answer has %d whole and %d partial shards", ok, partial)
	}
	var silent []int
	for s := range known {
		if !seen[s] && len(modelAnswer(c.divisor, []int{s})) == 0 {
			silent = append(silent, s)
		}
	}
	for set := range 1 << len(silent) {
		sum, count := covered, 0
		for i, s := range silent {
			if set>>i&1 == 1 {
				sum += modelWeights[s]
				count++
			}
		}
		if math.Abs(sum/total-claimed) < 3e-6 && (!flat || count == cover.Empty) {
			return nil
		}
	}
	return fmt.Errorf("no set of empty answers explains the figure")
}

// numbersOf is an answer as one list; nil when a part of it was no list of numbers.
func numbersOf(parts []listed) []int {
	list := []int{}
	for _, p := range parts {
		if p.Share == garbled {
			return nil
		}
		list = append(list, p.Numbers...)
	}
	slices.Sort(list)
	return list
}

func everyShard() (all []int) {
	for s := range modelShards {
		all = append(all, s)
	}
	return all
}

// TestNothingLeaks: after very many requests, with clients that go away, hedges and failures, there are no more goroutines and
// files than before.
func TestNothingLeaks(t *testing.T) {
	began := time.Now()
	a, b, other := newLeaf(t, say("x")), newLeaf(t, say("x")), newLeaf(t, say("y"))
	var n atomic.Int64
	a.set(func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 200 {
		case 0:
			<-r.Context().Done()
		case 1:
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "x")
	})
	r := newTestRoot(t, func(s *Settings) {
		s.Leaf.Static, s.Partial.Policy, s.Eject.Consecutive = leaves([]*leafServer{a, b}, []*leafServer{other}), "best", 0
	})
	load := func(requests int) {
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				client := &http.Client{Transport: &http.Transport{}}
				defer client.CloseIdleConnections()
				for i := range requests / 8 {
					ctx, cancel := context.WithCancel(context.Background())
					req, _ := http.NewRequestWithContext(ctx, "GET", r.URL, nil)
					req.Header.Set("Retinue-Deadline-Ms", "100")
					if (i+w)%50 == 0 {
						go cancel()
					}
					if resp, err := client.Do(req); err == nil {
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					cancel()
				}
			})
		}
		wg.Wait()
	}
	files := func() int { l, _ := os.ReadDir("/proc/self/fd"); return len(l) }
	load(2000)
	goroutines, fds := runtime.NumGoroutine(), files()
	load(*leakRequests)
	// Idle connections come and go, within their limits.
	eventually(t, "no goroutine stays behind", func() bool { return runtime.NumGoroutine() <= goroutines+60 && files() <= fds+40 })
	eventually(t, "nothing is held", func() bool { return r.root.memory.Used() == 0 && r.root.busy.Load() == 0 && a.alive.Load() == 0 })
	for _, p := range r.root.fleet.pools {
		for _, rep := range p.list() {
			if got := rep.inflight.Load(); got != 0 {
				t.Errorf("%d calls in flight are counted at rest", got)
			}
		}
	}
	t.Logf("goroutines %d -> %d, files %d -> %d", goroutines, runtime.NumGoroutine(), fds, files())
	report(t, began, "Nothing is left behind", "Requests with leaves that hang and break off, and clients that go away. What is there after the first 2000, and at the end:",
		[2]string{"requests", strconv.Itoa(*leakRequests)}, [2]string{"goroutines", fmt.Sprintf("%d, %d", goroutines, runtime.NumGoroutine())}, [2]string{"open files", fmt.Sprintf("%d, %d", fds, files())})
}
