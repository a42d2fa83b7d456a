package main

import (
	"slices"
	"testing"
	"time"
)

// Two at once are excused by a session that Consul ended within the lease of a good renewal, under fast revocation alone; an end
// before the renewal, which the elector should not have believed, and one after the lease are none.
func TestEndedEarly(t *testing.T) {
	for _, c := range []struct {
		revocation string
		ended      int // ms
		excused    bool
	}{
		{"fast", 1500, true},
		{"safe", 1500, false},
		{"fast", 900, false},  // renewed at 1000
		{"fast", 1950, false}, // after the deadline
		{"fast", 0, false},    // not at all
	} {
		p := newPast(c.revocation)
		p.leads(0, 10, 1005, 1940) // lease 1 s, guard 60 ms: renewed at 1000
		p.leads(1, 20, 1600, 2500)
		if c.ended != 0 {
			p.apps[0].slot.timedOut = []int64{ms(c.ended)}
		}
		broken := p.broken()
		if broken[1] == c.excused || (len(p.judge.excluded) > 0) != c.excused {
			t.Errorf("%+v: broken %v, left out %v", c, broken, p.judge.excluded)
		}
	}
}

func TestLogsOfEnds(t *testing.T) {
	server := "2026-11-29T08:38:31.826Z [DEBUG] agent.http: Request finished: method=PUT url=/v1/session/create\n" +
		"2026-11-29T08:38:33.826Z [DEBUG] agent.server: Session TTL expired: session=2c8deb4b-5f22-9b0a-f101-e65d2831ac7e\n" +
		"2026-11-29T08:38:34.1"
	at := time.Date(2026, 11, 29, 8, 38, 33, 826e6, time.UTC).UnixNano()
	if got := timeouts(server, 5); len(got) != 1 || got["2c8deb4b-5f22-9b0a-f101-e65d2831ac7e"] != at+5 {
		t.Errorf("%v", got)
	}
	elector := `{"@level":"info","@message":"elector started","@module":"elector"}` + "\n" +
		`{"@level":"info","@message":"session opened","session":"07f0eb93","ttl":"1s"}` + "\n" + "not JSON\n" +
		`{"@level":"info","@message":"session opened","session":"17f0eb93","ttl":"1s"}` + "\n"
	if got := sessions(elector); !slices.Equal(got, []string{"07f0eb93", "17f0eb93"}) {
		t.Errorf("%v", got)
	}
}
