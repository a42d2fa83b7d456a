package gather

import (
	"fmt"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"retinue/internal/hint"
)

// parser reads settings and keeps the first error.
type parser struct{ err error }

func (p *parser) fail(name, value, advice string) {
	if p.err == nil {
		p.err = hint.Wrap(fmt.Errorf("%s: %q", name, value), "%s", advice)
	}
}

// read parses s and keeps the error.
func read[T any](p *parser, name, s string, parse func(string) (T, error)) T {
	v, err := parse(s)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("%s: %w", name, err)
	}
	return v
}

func (p *parser) duration(name, s string) time.Duration {
	d, err := parseDuration(s)
	if err != nil {
		p.fail(name, s, "write a duration such as 500ms or 2s")
	}
	return d
}

func parseDuration(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = fmt.Errorf("%s is negative", d)
	}
	return d, err
}

// fraction reads 3% or 0.03.
func (p *parser) fraction(name, s string) float64 {
	f, err := ParseFraction(s)
	if err != nil {
		p.fail(name, s, "write a share such as 3% or 0.03")
	}
	return f
}

// ParseFraction reads a share of a whole, 3% or 0.03: 0 to 1.
func ParseFraction(s string) (float64, error) {
	text, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("share %q is not a number", s)
	}
	if percent {
		f /= 100
	}
	if !(f >= 0 && f <= 1) { // catches NaN too
		return 0, fmt.Errorf("share %q is not between 0 and 1", s)
	}
	return f, nil
}

// durations reads 10s..5m.
func (p *parser) durations(name, s string) (low, high time.Duration) {
	a, b, ok := strings.Cut(s, "..")
	low, errLow := parseDuration(a)
	high, errHigh := parseDuration(b)
	if !ok || errLow != nil || errHigh != nil || low > high {
		p.fail(name, s, "write two durations such as 10s..5m, the smaller first")
	}
	return low, high
}

// fractions reads 0..0.3.
func (p *parser) fractions(name, s string) (low, high float64) {
	a, b, ok := strings.Cut(s, "..")
	low, errLow := ParseFraction(a)
	high, errHigh := ParseFraction(b)
	if !ok || errLow != nil || errHigh != nil || low > high {
		p.fail(name, s, "write two shares such as 0..0.3, the smaller first")
	}
	return low, high
}

var byteUnits = []struct {
	suffix string
	factor int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1000}, {"MB", 1000_000}, {"GB", 1000_000_000}, {"B", 1}, {"", 1}}

func (p *parser) bytes(name, s string) int64 {
	for _, u := range byteUnits {
		text, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil || n < 0 || n > (1<<40)/u.factor {
			break
		}
		return n * u.factor
	}
	p.fail(name, s, "write a size such as 64KiB, 8MiB or 1GiB")
	return 0
}

// shardValue reads SHARD=VALUE.
func (p *parser) shardValue(name, s string) (shard int, value string) {
	before, value, ok := strings.Cut(s, "=")
	shard, err := strconv.Atoi(strings.TrimSpace(before))
	if !ok || err != nil || shard < 0 || shard >= maxShards {
		p.fail(name, s, "write SHARD=VALUE, shards are counted from 0")
		return 0, ""
	}
	return shard, strings.TrimSpace(value)
}

// several splits entries that came in one string, as an environment variable brings them.
func several(list []string) []string {
	var all []string
	for _, s := range list {
		all = append(all, strings.FieldsFunc(s, func(r rune) bool { return r == ';' || r == ' ' || r == '\n' || r == '\t' })...)
	}
	return all
}

// leaves reads 0=http://host:port,http://host:port.
func (p *parser) leaves(list []string) map[int][]string {
	static := map[int][]string{}
	for _, entry := range several(list) {
		shard, urls := p.shardValue("leaf", entry)
		for _, raw := range strings.Split(urls, ",") {
			u, err := url.Parse(raw)
			if err != nil || u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
				p.fail("leaf", entry, "write SHARD=http://HOST:PORT, replicas separated by commas")
				continue
			}
			static[shard] = append(static[shard], strings.TrimSuffix(raw, "/"))
		}
	}
	return static
}

func (p *parser) weights(list []string) map[int]float64 {
	weights := map[int]float64{}
	for _, entry := range several(list) {
		shard, text := p.shardValue("weight", entry)
		w, err := parseWeight(text)
		if err != nil {
			p.fail("weight", entry, "write SHARD=WEIGHT, for example 3=120000; a weight is above 0")
			continue
		}
		weights[shard] = w
	}
	return weights
}

// parseWeight reads what share of the data a shard has, in any unit (documents, bytes).
func parseWeight(s string) (float64, error) {
	w, err := strconv.ParseFloat(s, 64)
	if err != nil || !(w > 0 && w <= 1e15) {
		return 0, fmt.Errorf("weight %q is not a number above 0", s)
	}
	return w, nil
}

func (p *parser) headers(list []string) []string {
	var names []string
	for _, h := range several(list) {
		name := textproto.CanonicalMIMEHeaderKey(h)
		if strings.ContainsAny(h, ":,\"") || ownHeader(name) {
			p.fail("header", h, "write the name of a request header that leaves shall get; the root's own cannot be passed on")
			continue
		}
		names = append(names, name)
	}
	return names
}

func (p *parser) methods(list []string) map[string]bool {
	methods := map[string]bool{}
	for _, m := range list {
		if !validMethod(m) {
			p.fail("hedge_methods", m, "use GET, HEAD, PUT, DELETE, OPTIONS or "+idempotentPOST)
			continue
		}
		name, _, _ := strings.Cut(m, ":")
		methods[name] = true
	}
	return methods
}
