package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	"retinue/tests/harness"
)

// report is what a campaign found, for programs; markdown is the same for people.
type report struct {
	Seed        uint64               `json:"seed"`
	Plan        string               `json:"plan_hash"`
	Date        string               `json:"date"`
	Versions    map[string]string    `json:"versions"`
	Machine     map[string]string    `json:"machine"`
	Groups      []groupLine          `json:"groups"`
	Seconds     float64              `json:"seconds"`
	Faults      int64                `json:"faults"`
	NoTarget    int64                `json:"without_target"`
	HandOvers   int64                `json:"hand_overs"`
	PerSecond   float64              `json:"faults_per_second"`
	ByClass     map[Class]int        `json:"faults_by_class"`
	Beliefs     int                  `json:"leases_of_leaders"`
	Tokens      int                  `json:"leaderships"`
	Writes      int                  `json:"fenced_writes"`
	Refused     int                  `json:"fenced_writes_refused"`
	LateWrites  int                  `json:"fenced_writes_delayed"`
	Unknown     int                  `json:"operations_of_unknown_outcome"`
	Resigned    map[string]int       `json:"resignations_answered"`
	Vacancies   map[string]quantiles `json:"vacancies"`
	Lateness    quantiles            `json:"loss_told_after_deadline"`
	Healing     quantiles            `json:"leaders_again_after_repair"`
	Wakeups     quantiles            `json:"wakeup_lateness"`
	PlainWrites quantiles            `json:"plain_consul_writes"`
	Woken       quantiles            `json:"applications_woken_late"`
	StarvedSum  float64              `json:"starved_seconds"`
	Slack       quantiles            `json:"vacancies_beyond_bound_within_slack"`
	Longest     []longLine           `json:"longest_vacancies"`
	Checks      map[int]int          `json:"checks"`
	Excluded    map[string]int       `json:"excluded"`
	Notes       map[string]int       `json:"notes"`
	Violations  []violation          `json:"violations"`
}

// longLine is one of the longest vacancies, with all that happened to the group meanwhile.
type longLine struct {
	Group   string  `json:"group"`
	Name    string  `json:"election"`
	Seconds float64 `json:"seconds"`
	Faults  int     `json:"faults_of_the_last_leader"`
	Excerpt string  `json:"excerpt"`
}

type groupLine struct {
	Name       string `json:"name"`
	Lease      string `json:"lease"`
	Revocation string `json:"revocation"`
	Mode       string `json:"liveness"`
	Electors   int    `json:"electors"`
	Elections  int    `json:"elections"`
}

// quantiles of durations, in milliseconds.
type quantiles struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50_ms"`
	P90 float64 `json:"p90_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

func quantilesOf(d []time.Duration) quantiles {
	if len(d) == 0 {
		return quantiles{}
	}
	sorted := slices.Sorted(slices.Values(d))
	at := func(p float64) float64 {
		i := int(math.Ceil(p*float64(len(sorted)))) - 1
		return math.Round(float64(sorted[max(0, i)])/1e4) / 100
	}
	return quantiles{len(d), at(0.5), at(0.9), at(0.99), at(1)}
}

func (c *campaign) report() report {
	a := c.analyse()
	r := report{Seed: c.Seed, Plan: c.planHash(), Date: time.Now().UTC().Format(time.RFC3339), Versions: c.found, Machine: machine(), Seconds: c.took.Seconds(),
		Faults: c.count.Load(), NoTarget: c.missed.Load(), HandOvers: c.moves.Load(), PerSecond: float64(c.count.Load()) / c.took.Seconds(), ByClass: map[Class]int{},
		Beliefs: a.Beliefs, Tokens: a.Tokens, Writes: a.Writes, Refused: a.Refused, LateWrites: c.world.hub.late, Unknown: a.Unknown,
		Resigned:  map[string]int{"released": a.Resigned[true], "otherwise": a.Resigned[false]},
		Vacancies: map[string]quantiles{}, Lateness: quantilesOf(a.Lateness), Healing: quantilesOf(c.heal), Wakeups: quantilesOf(c.starve.samples()), PlainWrites: quantilesOf(c.probe.samples()), Woken: quantilesOf(c.world.late.samples()),
		StarvedSum: c.starve.between(0, math.MaxInt64).Seconds(), Slack: quantilesOf(a.Slack),
		Checks: c.judge.checks, Excluded: c.judge.excluded, Notes: c.judge.notes, Violations: c.judge.found("")}
	for _, g := range c.world.groups {
		r.Groups = append(r.Groups, groupLine{g.name, g.lease.String(), g.Revocation, g.Mode, len(g.slots), len(g.elections)})
	}
	for _, f := range c.done {
		r.ByClass[f.Class]++
	}
	sort.Slice(a.Longest, func(i, k int) bool { return a.Longest[i].v.length() > a.Longest[k].v.length() })
	for i, l := range a.Longest {
		if i < 5 {
			r.Longest = append(r.Longest, longLine{l.e.group.name, l.e.name, l.v.length().Seconds(), l.faults, c.excerpt(l.e, l.v.from-int64(3*time.Second), l.v.to+int64(time.Second))})
		}
	}
	for class, d := range a.Vacancies {
		r.Vacancies[class] = quantilesOf(d)
	}
	return r
}

// planHash names the plan: the first faults of every lane.
func (c *campaign) planHash() string {
	h := fnv.New64a()
	for _, l := range c.lanes() {
		for range 100 {
			fmt.Fprintln(h, l.plan.next())
		}
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

func (c *campaign) versions() map[string]string {
	first := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err != nil {
			return "unknown"
		}
		text, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return text
	}
	return map[string]string{"consul": first(harness.ConsulBinary(c.world.t), "version"), "retinue": first(c.world.retinue, "version"),
		"commit": first("git", "rev-parse", "--short", "HEAD"), "go": runtime.Version(), "linux": first("uname", "-r")}
}

func machine() map[string]string {
	m := map[string]string{"cpus": fmt.Sprint(runtime.NumCPU())}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		m["load at the end"] = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	return m
}

// write writes the report as Markdown to path, and as JSON beside it.
func (r report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(strings.TrimSuffix(path, ".md")+".json", append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(path, r.markdown(), 0o644)
}

func (r report) markdown() []byte {
	var b bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	verdict := "**No promise was broken.**"
	if n := len(r.Violations); n > 0 {
		verdict = fmt.Sprintf("**%d findings**, listed at the end.", n)
	}
	p("# Leader election under faults\n\nGenerated by `go run ./campaign -seed %d -faults %d` in `tests/`; what the words mean is in `tests/campaign/README.md`.\n", r.Seed, r.Faults)
	p("%s %d faults in %s (%.1f/s) on %d groups; %d leaderships, %d fenced writes, %d hand-overs asked for.\n", verdict, r.Faults,
		time.Duration(r.Seconds*1e9).Round(time.Second), r.PerSecond, len(r.Groups), r.Tokens, r.Writes, r.HandOvers)
	p("| | |\n|---|---|\n| seed | %d (plan %s) |\n| date | %s |", r.Seed, r.Plan, r.Date)
	for _, m := range []map[string]string{r.Versions, r.Machine} {
		for _, k := range sortedKeys(m) {
			p("| %s | %s |", k, m[k])
		}
	}
	p("\n## The world\n\nThree Consul servers (raft_multiplier 1, session_ttl_min 1 s, on disk) and the electors' hosts, each in a network namespace of its own.\n")
	p("| group | lease | revocation | how the application shows that it lives | electors | elections |\n|---|---|---|---|---|---|")
	for _, g := range r.Groups {
		p("| %s | %s | %s | %s | %d | %d |", g.Name, g.Lease, g.Revocation, g.Mode, g.Electors, g.Elections)
	}
	p("\n## Invariants\n\n| | invariant | checks | broken |\n|---|---|---|---|")
	for i := 1; i <= len(invariants); i++ {
		broken := 0
		for _, v := range r.Violations {
			if v.Invariant == i {
				broken++
			}
		}
		p("| %d | %s | %d | %d |", i, invariants[i], r.Checks[i], broken)
	}
	p("\nLeft out, as the contract says, and counted:\n\n| what | times |\n|---|---|")
	for _, k := range sortedKeys(r.Excluded) {
		p("| %s | %d |", k, r.Excluded[k])
	}
	p("\nFenced register: %d writes, %d of them held up on their way on purpose; %d came too late and were refused; of %d the application never knew the outcome.", r.Writes, r.LateWrites, r.Refused, r.Unknown)
	p("\n## Faults and vacancies\n\nA vacancy is a time in which no application of an election is entitled to act, in ms. It counts for a class when no other fault was near.\n")
	p("| fault | injected | vacancies after it alone | p50 | p90 | p99 | max |\n|---|---|---|---|---|---|---|")
	for _, class := range sortedKeys(r.ByClass) {
		q := r.Vacancies[string(class)]
		p("| %s | %d | %s |", class, r.ByClass[class], q.cells())
	}
	for _, class := range []string{faultElsewhere, severalFaults, noFault} {
		p("| %s | | %s |", class, r.Vacancies[class].cells())
	}
	p("\n## Time\n\n| what | n | p50 | p90 | p99 | max |\n|---|---|---|---|---|---|")
	p("| news of a loss, ms after the deadline (negative: before) | %s |", r.Lateness.cells())
	p("| leaders everywhere after all was repaired, ms | %s |", r.Healing.cells())
	p("| how late this machine woke up sleepers, ms | %s |", r.Wakeups.cells())
	p("| applications that woke up more than 20 ms late, ms | %s |", r.Woken.cells())
	p("| a plain write to Consul through the agent of a host, ms | %s |", r.PlainWrites.cells())
	p("| what vacancies took beyond their bounds, all of it the machine's slack, ms | %s |", r.Slack.cells())
	p("\nThe machine starved for %.1f s in all (wake-ups more than 20 ms late). Bounds on durations get slack: what was lost to late wake-ups meanwhile, three times the worst plain write to Consul"+
		" on the hosts concerned, and the time in which none succeeded there. What must hold at any moment (1, 2, 3, 8) gets none.", r.StarvedSum)
	if len(r.Notes) > 0 {
		p("\n## Notes\n")
		for _, k := range sortedKeys(r.Notes) {
			p("- %s (%d)", strings.ReplaceAll(k, "\n", " "), r.Notes[k])
		}
	}
	if len(r.Violations) > 0 {
		p("\n## Findings\n")
		for i, v := range r.Violations {
			if i == 40 {
				p("... and %d more in the JSON.", len(r.Violations)-i)
				break
			}
			p("```\n%s\n```", v)
		}
	}
	return b.Bytes()
}

func (q quantiles) cells() string {
	if q.N == 0 {
		return "0 | | | |"
	}
	return fmt.Sprintf("%d | %.1f | %.1f | %.1f | %.1f", q.N, q.P50, q.P90, q.P99, q.Max)
}

func sortedKeys[K ~string, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i] < keys[j] })
	return keys
}
