package harness

import (
	"strings"
	"testing"
)

// The judge itself: it finds what it is there to find, and nothing else.
func TestViolations(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		claims []Claim
		want   string
	}{
		"one after the other":    {[]Claim{{"a", 1, 0, 10}, {"b", 2, 10, 20}}, ""},
		"suspended, resumed":     {[]Claim{{"a", 1, 0, 10}, {"a", 1, 12, 20}, {"b", 2, 20, 30}}, ""},
		"overlap by one":         {[]Claim{{"a", 1, 0, 10}, {"b", 2, 9, 20}}, "two leaders at once"},
		"overlap across another": {[]Claim{{"a", 1, 0, 30}, {"a", 2, 5, 6}, {"b", 3, 29, 40}}, "two leaders at once"},
		"a token that falls":     {[]Claim{{"a", 2, 0, 10}, {"b", 1, 10, 20}}, "the token falls"},
		"a token used twice":     {[]Claim{{"a", 2, 0, 10}, {"b", 2, 10, 20}}, "share a token"},
		"late grant":             {[]Claim{{"a", 1, 0, 10}, {"b", 1, 9, 8}}, ""},
	} {
		h := &History{}
		for _, c := range test.claims {
			h.claims = append(h.claims, &c)
		}
		switch err := h.Violations(); {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
