package gather

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNoWallClock: somebody may set the machine's clock at any time. So nothing that decides reads it: all that a root measures, and
// all that it waits for, goes by the boot clock or by Go's timers. What reads the clock does so for people, or only to
// take a difference (of which Go makes one of the monotonic clock).
func TestNoWallClock(t *testing.T) {
	want := map[string]int{
		"catalog.go":     1, // when the catalog was read, for people
		"check_leaf.go":  2, // of the test kit: how long an answer took
		"check_merge.go": 2,
		"http.go":        1, // a deadline of a connection, which Go turns into a span of time
		"root.go":        1, // when the root was started, for people
		"timeline.go":    1, // when the request came, for people
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	reads, got := regexp.MustCompile(`\btime\.(Now|Since|Until)\(`), map[string]int{}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(reads.FindAll(src, -1)); n > 0 {
			got[f] = n
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("the wall clock is read in %v, want %v", got, want)
	}
}
