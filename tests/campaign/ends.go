package main

import (
	"encoding/json"
	"strings"
	"time"
)

// Consul ends sessions too early when a paused leader wanted to end them (docs/reports/consul-late-invalidation.md). Under
// `revocation fast` that lets two lead at once, as an operator's Invalidate does, and only the token protects. The servers' logs tell
// when each session was ended for its TTL, so that this is a fact of the history and not a guess.

// timeouts are the moments, on the boot clock, at which the servers ended sessions for their TTL, by session. offset is what the boot
// clock shows at the wall clock's zero.
func timeouts(serverLog string, offset int64) map[string]int64 {
	out := map[string]int64{}
	for line := range strings.Lines(serverLog) {
		stamp, rest, _ := strings.Cut(line, " ")
		_, session, found := strings.Cut(strings.TrimSpace(rest), "Session TTL expired: session=")
		if !found {
			continue
		}
		if at, err := time.Parse("2006-01-02T15:04:05.000Z0700", stamp); err == nil {
			out[session] = at.UnixNano() + offset
		}
	}
	return out
}

// sessions are those that an elector had, as its log tells.
func sessions(electorLog string) (out []string) {
	for line := range strings.Lines(electorLog) {
		var entry struct {
			Message string `json:"@message"`
			Session string `json:"session"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Message == "session opened" {
			out = append(out, entry.Session)
		}
	}
	return out
}

// noteTimeouts reads the logs of servers and electors, before they are gone.
func (c *campaign) noteTimeouts() {
	offset := bootNow() - time.Now().UnixNano()
	ended := map[string]int64{}
	for _, n := range c.world.servers {
		for session, at := range timeouts(n.agent.Log(), offset) {
			ended[session] = at
		}
	}
	for _, s := range c.world.slots {
		for _, session := range sessions(s.elector.Log()) {
			if at, ok := ended[session]; ok {
				s.timedOut = append(s.timedOut, at)
			}
		}
	}
}

// endedEarly says whether Consul ended the elector's session for its TTL while the lease of its last good renewal ran. What the session's end came
// before is no such renewal: an elector that believes an answer for a session that is gone gets no excuse.
func (b *belief) endedEarly() bool {
	g := b.who.slot.group
	renewed := b.until - int64(g.lease) + int64(g.lease/100+50*time.Millisecond) // when it was sent: the guard is off the deadline
	for _, at := range b.who.slot.timedOut {
		if renewed <= at && at < b.until {
			return true
		}
	}
	return false
}
