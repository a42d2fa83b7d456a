package leaderelection_test

import (
	"strings"
	"testing"
	"time"
)

// The judge of what a watch saw finds what it is there to find.
func TestJudge(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	one, two := reign{"one", 5, at(0), at(100)}, reign{"two", 9, at(120), at(200)}
	locks := []tenure{{"s1", "one", 5, at(0), at(110)}, {"s2", "two", 9, at(115), time.Time{}}}
	for _, c := range []struct {
		name    string
		tenures []tenure
		reigns  []reign
		want    string
	}{
		{"a hand-over", locks, []reign{one, two}, ""},
		{"one after a pause", locks[:1], []reign{one, {"one", 5, at(150), at(160)}}, ""},
		{"two at once", locks, []reign{one, {"two", 9, at(90), at(200)}}, "two lead"},
		{"two under one token", locks[:1], []reign{one, {"two", 5, at(120), at(200)}}, "acts under token 5 of one"},
		{"a falling token", locks, []reign{one, {"two", 4, at(120), at(200)}}, "under token 4 after 5"},
		{"a lock that falls", []tenure{locks[1], locks[0]}, nil, "falls from 9 to 5"},
		{"a token of another", locks, []reign{{"two", 5, at(0), at(100)}}, "acts under token 5 of one"},
	} {
		got := strings.Join(violations(c.tenures, c.reigns), "; ")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
