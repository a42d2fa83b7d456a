package main

import (
	"fmt"
	"sync"
)

// invariants are what must hold, by number.
var invariants = map[int]string{
	1: "no two unexpired leases of one election overlap",
	2: "tokens rise, and a token has one holder",
	3: "the fenced register takes no stale token, refuses no leader, and is linearizable",
	4: "after a single fault, the vacancy stays within the bound of its class",
	5: "news of a loss comes by the deadline",
	6: "when everything is repaired, every election gets a leader, and nothing is left over",
	7: "no elector ends by itself, and every one ends when asked",
	8: "verify calls no token current after a higher one was granted",
}

// violation is a broken promise.
type violation struct {
	Invariant int    `json:"invariant"`
	Group     string `json:"group,omitempty"`
	Election  string `json:"election,omitempty"`
	Text      string `json:"text"`
}

func (v violation) String() string {
	return fmt.Sprintf("invariant %d (%s) %s/%s: %s", v.Invariant, invariants[v.Invariant], v.Group, v.Election, v.Text)
}

// judge collects what was checked, what was found, and what was left out and why.
type judge struct {
	mu         sync.Mutex
	over       bool
	violations []violation
	checks     map[int]int
	excluded   map[string]int
	notes      map[string]int
}

func (j *judge) violation(invariant int, group, election, text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.violations = append(j.violations, violation{invariant, group, election, text})
}

// died notes the unexpected end of an elector, unless everything is being taken down.
func (j *judge) died(group, text string) {
	j.mu.Lock()
	over := j.over
	j.mu.Unlock()
	if !over {
		j.violation(7, group, "", text)
	}
}

func (j *judge) checked(invariant, n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.checks == nil {
		j.checks = map[int]int{}
	}
	j.checks[invariant] += n
}

func (j *judge) exclude(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.excluded == nil {
		j.excluded = map[string]int{}
	}
	j.excluded[what]++
}

func (j *judge) note(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.over {
		return
	}
	if j.notes == nil {
		j.notes = map[string]int{}
	}
	j.notes[what]++
}

func (j *judge) count() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.violations)
}

// close: whatever process ends from now on is ended by us.
func (j *judge) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.over = true
}

// found lists the violations of one group, or of all ("").
func (j *judge) found(group string) (out []violation) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, v := range j.violations {
		if group == "" || v.Group == group || v.Group == "" {
			out = append(out, v)
		}
	}
	return out
}
