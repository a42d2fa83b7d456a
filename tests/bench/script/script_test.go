package script

import (
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQueryIsReadBack(t *testing.T) {
	t.Parallel()
	for _, s := range []Script{
		{},
		{N: 7},
		{N: 1 << 60, Label: 3, Seed: 9, Slow: 0.01, Add: 100 * time.Millisecond},
		{N: 8, Slow: 0.5, Add: time.Second, Vary: true},
		{N: 2, Hang: 2 * time.Second},
		{N: 3, Size: 262144},
	} {
		got, err := Parse(strings.TrimPrefix(s.Query(), "?"))
		if err != nil || got != s {
			t.Errorf("%+v became %q and then %+v, %v", s, s.Query(), got, err)
		}
	}
	for _, bad := range []string{"n=x", "what=1", "label=99", "label=-1", "size=-5", "slow=%"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// Slow calls have the share that was asked for, and those of two replicas have nothing to do with each other.
func TestSlowCalls(t *testing.T) {
	t.Parallel()
	const requests, shards = 4000, 100
	var one, both, hopeless float64
	for n := range uint64(requests) {
		s := Script{N: n, Seed: 1, Slow: 0.01}
		for shard := range shards {
			a, b := s.IsSlow(shard, 0), s.IsSlow(shard, 1)
			if a {
				one++
			}
			if a && b {
				both++
			}
		}
		if s.Hopeless(shards) {
			hopeless++
		}
	}
	if share := one / (requests * shards); math.Abs(share-0.01) > 0.001 {
		t.Errorf("%.4f of calls are slow, want 0.01", share)
	}
	if want := 0.0001 * requests * shards; math.Abs(both-want) > 4*math.Sqrt(want) {
		t.Errorf("%v calls are slow on both replicas, want some %v", both, want)
	}
	if hopeless == 0 || hopeless > both {
		t.Errorf("%v requests are hopeless, with %v such shards", hopeless, both)
	}
	if (Script{Seed: 1}).IsSlow(0, 0) {
		t.Error("a call is slow without a share of slow ones")
	}
}

// What slow calls take longer is as long as was asked for, or in the mean: then the half of it at least, and one in 7.4 more than twice
// that half on top (the square of e).
func TestSlowBy(t *testing.T) {
	t.Parallel()
	const calls = 200000
	var sum time.Duration
	most := 0.0
	for n := range uint64(calls) {
		s := Script{N: n, Seed: 1, Slow: 1, Add: 100 * time.Millisecond}
		if got := s.SlowBy(3, 1); got != s.Add {
			t.Fatalf("slow by %s, want %s", got, s.Add)
		}
		s.Vary = true
		got := s.SlowBy(3, 1)
		if sum += got; got < 50*time.Millisecond {
			t.Fatalf("slow by %s, want 50 ms at least", got)
		}
		if got > 150*time.Millisecond {
			most++
		}
	}
	if mean := sum / calls; mean < 99*time.Millisecond || mean > 101*time.Millisecond {
		t.Errorf("slow by %s in the mean, want 100 ms", mean)
	}
	if want := calls * math.Exp(-2); math.Abs(most-want) > 4*math.Sqrt(want) {
		t.Errorf("%v of %d above 150 ms, want some %.0f", most, calls, want)
	}
	if got := (Script{Add: time.Second, Vary: true}).SlowBy(0, 0); got != 0 {
		t.Errorf("a call that is not slow is slow by %s", got)
	}
}

func TestTellAndHear(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fleet")
	want := Fleet{Leaves: []string{"http://a"}, Control: "http://b"}
	if err := Tell(path, want); err != nil {
		t.Fatal(err)
	}
	var got Fleet
	if err := Hear(path, &got); err != nil || got.Control != want.Control || len(got.Leaves) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
