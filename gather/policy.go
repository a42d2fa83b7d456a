package gather

import (
	"fmt"
	"strconv"
	"strings"

	"retinue/internal/hint"
)

// PolicyKind is one of four ways to judge a partial answer.
type PolicyKind string

// The kinds of policy.
const (
	PolicyFail     PolicyKind = "fail"     // every shard, whole
	PolicyCoverage PolicyKind = "coverage" // at least this share, by weight
	PolicyQuorum   PolicyKind = "quorum"   // at least so many shards answered
	PolicyBest     PolicyKind = "best"     // whatever there is at the deadline
)

// Policy says which coverage is an answer. MinCoverage holds for every kind: it is how a client tightens.
type Policy struct {
	Kind        PolicyKind
	MinCoverage float64
	Quorum      int
}

// ParsePolicy reads fail, coverage(0.95), quorum(13) or best.
func ParsePolicy(s string) (Policy, error) {
	wrong := hint.Wrap(fmt.Errorf("policy %q", s), "use fail, coverage(0.95), quorum(13) or best")
	name, rest, ok := strings.Cut(s, "(")
	arg, closed := strings.CutSuffix(rest, ")")
	if ok != closed {
		return Policy{}, wrong
	}
	switch kind := PolicyKind(name); {
	case kind == PolicyFail && !ok:
		return Policy{Kind: kind, MinCoverage: 1}, nil
	case kind == PolicyBest && !ok:
		return Policy{Kind: kind}, nil
	case kind == PolicyCoverage && ok:
		f, err := ParseFraction(arg)
		if err != nil || f == 0 {
			return Policy{}, wrong
		}
		return Policy{Kind: kind, MinCoverage: f}, nil
	case kind == PolicyQuorum && ok:
		n, err := strconv.Atoi(arg)
		if err != nil || n < 1 || n > maxShards {
			return Policy{}, wrong
		}
		return Policy{Kind: kind, Quorum: n}, nil
	}
	return Policy{}, wrong
}

// String writes p as ParsePolicy reads it.
func (p Policy) String() string {
	switch p.Kind {
	case PolicyCoverage:
		return fmt.Sprintf("coverage(%g)", p.MinCoverage)
	case PolicyQuorum:
		return fmt.Sprintf("quorum(%d)", p.Quorum)
	}
	return string(p.Kind)
}

// Tighten returns p with at least this coverage demanded too. A client can never loosen.
func (p Policy) Tighten(coverage float64) Policy {
	p.MinCoverage = max(p.MinCoverage, coverage)
	return p
}

// Met says whether c is an answer.
func (p Policy) Met(c Coverage) bool {
	if p.MinCoverage >= 1 && !c.Whole() || c.Fraction() < p.MinCoverage-rounding {
		return false
	}
	return p.Kind != PolicyQuorum || c.answered() >= min(p.Quorum, c.Total) // a routed request may need fewer shards than the quorum
}

// rounding is what a sum of weights may be off by.
const rounding = 1e-9

// progress is how far c is on the way from just met to whole, 0 to 1.
func (p Policy) progress(c Coverage) float64 {
	least, have := p.MinCoverage, c.Fraction()
	if p.Kind == PolicyQuorum && c.Total > p.Quorum {
		least, have = float64(p.Quorum)/float64(c.Total), float64(c.answered())/float64(c.Total)
	}
	if least >= 1 {
		return 1
	}
	return max(0, min(1, (have-least)/(1-least)))
}

// Early says whether an answer may be given before every shard has had its time. "best" wants all that the deadline allows, and
// "fail" is met only when nothing is left to wait for.
func (p Policy) Early() bool { return p.Kind == PolicyCoverage || p.Kind == PolicyQuorum }
