package elector

import (
	"context"
	"fmt"
	"net/http"
	"sync"
)

// fences remember the highest token that was used on each resource: a check for resources that cannot compare tokens themselves.
// It holds as long as one elector guards a resource. What it remembers is gone after a restart, so a request may name the election
// the token comes from: then no token below that of the leader Consul knows is accepted.
type fences struct {
	mu      sync.Mutex
	highest map[string]uint64
}

// maxFences bounds the memory that callers can take.
const maxFences = 10_000

// pass accepts token for resource unless it is lower than one that was accepted, or than floor.
func (f *fences) pass(resource string, token, floor uint64) (highest uint64, ok, full bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	have, known := f.highest[resource]
	highest = max(have, floor)
	if token < highest {
		return highest, false, false
	}
	if !known && len(f.highest) >= maxFences {
		return highest, false, true
	}
	f.highest[resource] = token
	return token, true, false
}

func (a *handlers) fence(w http.ResponseWriter, r *http.Request) {
	var body struct {
		tokenBody
		Election string `json:"election"`
	}
	if !readBody(w, r, &body) || !needToken(w, body.Token) {
		return
	}
	resource := r.PathValue("resource")
	if len(resource) > 256 {
		writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", "the resource's name is longer than 256 bytes"))
		return
	}
	floor, ref := a.floor(body.Election)
	if ref != nil {
		writeRefusal(w, ref)
		return
	}
	highest, ok, full := a.fences.pass(resource, body.Token, floor)
	switch {
	case full:
		writeRefusal(w, refuse(http.StatusInsufficientStorage, "full", fmt.Sprintf("this elector guards %d resources already", maxFences)))
	case !ok:
		writeJSON(w, http.StatusPreconditionFailed, 0, map[string]any{"error": "stale", "resource": resource, "token": body.Token, "highest": highest})
	default:
		writeJSON(w, http.StatusOK, 0, map[string]any{"accepted": true, "resource": resource, "highest": highest})
	}
}

// floor is the token of the leader that is known of election; 0 when none is named.
func (a *handlers) floor(election string) (uint64, *Refusal) {
	if election == "" {
		return 0, nil
	}
	v := a.el.feed.view(election)
	switch {
	case v == nil:
		return 0, a.unknown(election)
	case !v.Synced:
		return 0, refuse(http.StatusServiceUnavailable, "unavailable", "Consul has not been read yet")
	}
	return v.Floor, nil
}

// verifyToken answers, linearizably, whether a token is the current leader's (Chubby's CheckSequencer). Every elector of the application can.
func (a *handlers) verifyToken(w http.ResponseWriter, r *http.Request, election string) {
	var body tokenBody
	if !readBody(w, r, &body) || !needToken(w, body.Token) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.el.cfg.commitTimeout())
	defer cancel()
	select {
	case a.verify <- struct{}{}:
		defer func() { <-a.verify }()
	case <-ctx.Done():
		writeRefusal(w, refuse(http.StatusTooManyRequests, "busy", "too many verifications at once"))
		return
	}
	entry, err := a.el.store.Read(ctx, election)
	if err != nil {
		writeRefusal(w, refuse(http.StatusServiceUnavailable, "unavailable", "Consul does not answer: "+err.Error()))
		return
	}
	if entry.Session == "" {
		writeJSON(w, http.StatusConflict, 0, map[string]any{"error": "stale", "reason": "vacant", "token": body.Token, "current_token": 0})
		return
	}
	leader := infoOf(entry)
	if leader.Token != body.Token {
		writeJSON(w, http.StatusConflict, 0, map[string]any{"error": "stale", "reason": "superseded", "token": body.Token, "current_token": leader.Token, "leader": leader})
		return
	}
	writeJSON(w, http.StatusOK, 0, map[string]any{"current": true, "token": body.Token, "leader": leader})
}
