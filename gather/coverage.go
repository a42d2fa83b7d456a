package gather

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// State is how a shard stands in an answer.
type State string

// The states of a shard. Every shard a request needs ends in exactly one of them.
const (
	Waiting State = "waiting" // not decided yet
	OK      State = "ok"      // answered whole
	Empty   State = "empty"   // answered 204: nothing for this request, which is a whole answer
	Partial State = "partial" // a leaf that answered for a part of its data (Retinue-Coverage below 1)
	Timeout State = "timeout" // no answer in the time there was
	Failed  State = "failed"  // an error, after every retry that was allowed
	Missing State = "missing" // no instance of it is known
	Skipped State = "skipped" // not waited for: the merge had its answer, or the request failed already
)

// Coverage counts the shards of one answer, and weighs them.
type Coverage struct {
	Total, OK, Empty, Partial, Timeout, Failed, Missing, Skipped int

	covered, needed float64
	failing         bool // there is no answer that could do without the skipped ones
}

// Add counts a shard of weight w, of which the share was answered (1 unless it is partial).
func (c *Coverage) Add(s State, w, share float64) {
	c.Total++
	if s != Skipped || c.failing {
		c.needed += w
	}
	switch s {
	case OK:
		c.OK++
		c.covered += w
	case Empty:
		c.Empty++
		c.covered += w
	case Partial:
		c.Partial++
		c.covered += w * share
	case Failed:
		c.Failed++
	case Missing:
		c.Missing++
	case Skipped:
		c.Skipped++
	default:
		c.Timeout++
	}
}

// with adds n shards of the summed weight w, all in the same state and whole if that state is.
func (c Coverage) with(s State, n int, w float64) Coverage {
	if n == 0 {
		return c
	}
	c.Add(s, w, 1)
	c.Total += n - 1
	switch s {
	case OK:
		c.OK += n - 1
	case Skipped:
		c.Skipped += n - 1
	default:
		c.Timeout += n - 1
	}
	return c
}

// answered is how many shards gave an answer.
func (c Coverage) answered() int { return c.OK + c.Empty + c.Partial }

// Fraction is the share of the needed weight that the answer covers. It is 1 only for a whole answer.
func (c Coverage) Fraction() float64 {
	if c.Whole() {
		return 1
	}
	// The sum of many weights is not exact; what is not whole must not look so.
	return max(0, min(c.covered/c.needed, math.Nextafter(1, 0)))
}

// Whole says whether nothing that was needed is lacking.
func (c Coverage) Whole() bool { return c.OK+c.Empty+c.Skipped == c.Total }

// Degraded lists why the answer is not whole, in a fixed order; "" when it is.
func (c Coverage) Degraded() string {
	var causes []string
	for _, cause := range []struct {
		n    int
		name State
	}{{c.Timeout, Timeout}, {c.Failed, Failed}, {c.Missing, Missing}, {c.Partial, Partial}} {
		if cause.n > 0 {
			causes = append(causes, string(cause.name))
		}
	}
	return strings.Join(causes, ",")
}

// String is the Retinue-Shards header.
func (c Coverage) String() string {
	return fmt.Sprintf("total=%d ok=%d empty=%d partial=%d timeout=%d failed=%d missing=%d skipped=%d",
		c.Total, c.OK, c.Empty, c.Partial, c.Timeout, c.Failed, c.Missing, c.Skipped)
}

// FormatFraction writes a coverage with at most six decimals, rounded down: it never claims more than there is.
func FormatFraction(f float64) string {
	rounded := math.Floor(f*1e6+1e-7) / 1e6
	if f < 1 {
		rounded = min(rounded, 0.999999)
	}
	return strconv.FormatFloat(rounded, 'f', -1, 64)
}

// ParseCoverage reads a leaf's Retinue-Coverage. None is a whole answer; one that makes no sense is an error, because guessing
// would be a wrong figure.
func ParseCoverage(s string) (float64, error) {
	if s == "" {
		return 1, nil
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || !(f >= 0 && f <= 1) {
		return 0, fmt.Errorf("Retinue-Coverage %q is not between 0 and 1", s)
	}
	return f, nil
}

// ParseShards reads a Retinue-Shards header.
func ParseShards(s string) (Coverage, error) {
	var c Coverage
	fields := map[string]*int{"total": &c.Total, "ok": &c.OK, "empty": &c.Empty, "partial": &c.Partial,
		"timeout": &c.Timeout, "failed": &c.Failed, "missing": &c.Missing, "skipped": &c.Skipped}
	for _, field := range strings.Fields(s) {
		name, value, _ := strings.Cut(field, "=")
		into, ok := fields[name]
		if !ok {
			continue // a later version may count more
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > math.MaxInt32 {
			return Coverage{}, fmt.Errorf("Retinue-Shards: %q is not a count", field)
		}
		*into = n
	}
	if c.Total != c.OK+c.Empty+c.Partial+c.Timeout+c.Failed+c.Missing+c.Skipped {
		return Coverage{}, fmt.Errorf("Retinue-Shards %q does not add up", s)
	}
	return c, nil
}
