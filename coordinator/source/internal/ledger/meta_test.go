package ledger

import (
	"testing"
	"time"

	"retinue/coordinator/source"
)

// A time of publication travels to the nanosecond, and one of an older version to the millisecond.
func TestPublishedTravels(t *testing.T) {
	for _, at := range []time.Time{time.Unix(1700000000, 123456789), time.Unix(1700000000, 123000000), time.Unix(1700000000, 1), time.Unix(1700000000, 0)} {
		m := &source.Message{}
		if Read(m, Headers(source.Out{ID: "a"}, at)); !m.Published.Equal(at) || len(m.Headers) > 0 {
			t.Errorf("%v arrives as %v, with %v", at, m.Published, m.Headers)
		}
	}
	for nanos, want := range map[string]int64{"": 0, "999999": 999999, "1000000": 0, "-1": 0, "x": 0} {
		m := &source.Message{}
		all := map[string]string{headerPublished: "1700000000123", headerNanos: nanos}
		if Read(m, all); m.Published.UnixNano() != 1700000000123*int64(time.Millisecond)+want {
			t.Errorf("%q: %v", nanos, m.Published)
		}
	}
	m := &source.Message{}
	if Read(m, map[string]string{headerNanos: "5"}); !m.Published.IsZero() {
		t.Errorf("without a time: %v", m.Published)
	}
}

func TestStampsIncrease(t *testing.T) {
	var s Stamps
	last := s.Next()
	if age := time.Since(last); age < 0 || age > time.Minute {
		t.Errorf("%v ago", age)
	}
	// The clock goes back.
	ahead := time.Now().Add(time.Hour)
	s.last = ahead.UnixNano()
	for range 1000 {
		next := s.Next()
		if !next.After(last) || next.Before(ahead) {
			t.Fatalf("%v after %v", next, last)
		}
		last = next
	}
}
