package elector

import "time"

// Tenure is a leadership that is over, as the record of its election keeps it.
type Tenure struct {
	Leader string    `json:"leader"` // candidate id
	Alloc  string    `json:"alloc,omitempty"`
	Token  uint64    `json:"token,omitempty"` // 0: it ended before the token was written down
	Term   uint64    `json:"term,omitempty"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`  // when it was known to be over
	Reason string    `json:"reason"` // as in the event lost; lock_lost: Consul took the lock back
}

const (
	// keepTenures is how many a record keeps, the newest last.
	keepTenures = 10
	// historyElections is how many elections an elector may have for their records to keep a history: every change wakes everybody
	// who watches, with all records.
	historyElections = 64
)

// historyOfOurs is the history of e once the leadership that e.release ends is part of it.
func (m *machine) historyOfOurs(e *election) []Tenure {
	if e.release.holder == "" { // a lock that nobody here was told of
		return m.bounded(e.record.History)
	}
	reason := ""
	if past := e.ended(e.release.token); past != nil {
		reason = past.reason
	}
	return m.bounded(e.record.History, Tenure{Leader: e.release.holder, Alloc: e.record.Alloc, Token: e.release.token, Term: e.term,
		Since: e.record.Since, Until: m.wall().UTC(), Reason: reason})
}

// historyOfOthers is the history of a vacant key, with the leadership that its record still shows.
func (m *machine) historyOfOthers(e *election) []Tenure {
	prev := decodeRecord(e.seen.Value)
	if prev.Leader == "" {
		return m.bounded(prev.History)
	}
	return m.bounded(prev.History, Tenure{Leader: prev.Leader, Alloc: prev.Alloc, Token: prev.Token, Term: prev.Term, Since: prev.Since,
		Until: m.wall().UTC(), Reason: "lock_lost"})
}

func (m *machine) bounded(history []Tenure, more ...Tenure) []Tenure {
	if len(m.list) > historyElections {
		return nil
	}
	all := append(append([]Tenure(nil), history...), more...)
	return all[max(0, len(all)-keepTenures):]
}
