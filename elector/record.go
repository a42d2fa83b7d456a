package elector

import (
	"encoding/json"
	"time"
)

// Record is the value of an election's key: what a person reads in the Consul UI, and what other electors tell their applications.
type Record struct {
	Leader        string    `json:"leader"` // candidate id; "" when vacant
	Address       string    `json:"address,omitempty"`
	Alloc         string    `json:"alloc,omitempty"`
	Host          string    `json:"host,omitempty"`
	Elector       string    `json:"elector,omitempty"`
	Term          uint64    `json:"term"`
	Token         uint64    `json:"token,omitempty"` // known only after the lock was taken, written a moment later
	Since         time.Time `json:"since"`
	Lease         string    `json:"lease,omitempty"`
	PreviousToken uint64    `json:"previous_token,omitempty"`
	Value         any       `json:"value,omitempty"` // the application's own
	Session       string    `json:"session,omitempty"`
	HowTo         []string  `json:"how_to"`
	History       []Tenure  `json:"history,omitempty"`
}

var (
	howToHeld = []string{
		"This leads while a Lock Session is shown on this page.",
		"To move leadership: retinue leader resign APP/ELECTION, or the job's action stepdown.",
		"Do not delete this key: two could lead for a moment.",
	}
	howToVacant = []string{"Nobody leads at the moment."}
)

func (r Record) encode() []byte { return encode(r) }

// CandidateRecord is what an elector writes about itself, below .candidates/, locked by its session: it is in the race while the
// lock is held.
//
// It lives in the KV store, not in the catalog: the same blocking query that watches the elections delivers it (one connection, no
// second wake-up to wait for), and it works where the token may not write to the catalog.
type CandidateRecord struct {
	ID        string         `json:"id"`
	Session   string         `json:"session"`
	Alloc     string         `json:"alloc,omitempty"`
	Host      string         `json:"host,omitempty"`
	Address   string         `json:"address,omitempty"`
	Lease     string         `json:"lease"`
	Elections map[string]Bid `json:"elections"` // what its application campaigns for or leads
}

// Bid is a candidacy.
type Bid struct {
	Candidate string `json:"candidate"`
	Priority  int    `json:"priority,omitempty"`
	Value     any    `json:"value,omitempty"`
}

func encode(v any) []byte {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		// Records hold nothing but strings, numbers and values that were decoded from JSON.
		panic("elector: " + err.Error())
	}
	return b
}

// decodeRecord reads a record that anybody may have edited: what cannot be read is empty.
func decodeRecord(b []byte) Record {
	var r Record
	if json.Unmarshal(b, &r) != nil {
		return Record{}
	}
	return r
}

func decodeCandidate(b []byte) (CandidateRecord, bool) {
	var r CandidateRecord
	err := json.Unmarshal(b, &r)
	return r, err == nil && r.ID != ""
}
