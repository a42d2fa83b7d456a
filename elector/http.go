package elector

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxBody bounds a request: an election's value must leave room in a Consul transaction.
const maxBody = 64 << 10

// handlers serve the HTTP interface. Handlers read published views, and bring requests to the owner.
type handlers struct {
	el     *Elector
	fences fences
	verify chan struct{} // one linearizable read at a time: it must not crowd out renewals
}

// Handler returns the HTTP interface.
func (el *Elector) Handler() http.Handler {
	a := &handlers{el: el, verify: make(chan struct{}, 1), fences: fences{highest: map[string]uint64{}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/elections", a.list)
	mux.HandleFunc("/v1/elections/", a.election)
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) { a.events(w, r, "") })
	mux.HandleFunc("POST /v1/fence/{resource}", a.fence)
	mux.HandleFunc("POST /v1/rebalance", a.rebalance)
	mux.HandleFunc("GET /v1/openapi.json", a.openAPI)
	mux.HandleFunc("GET /healthz", a.healthz)
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", el.metrics.handler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeRefusal(w, refuse(http.StatusNotFound, "not_found", "no such path; GET /v1/elections lists the elections"))
	})
	// A web page of another origin must not steer an elector through the browser of somebody on this host.
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeRefusal(w, refuse(http.StatusForbidden, "cross_origin", "a page of another origin may not use an elector"))
	}))
	return guard.Handler(mux)
}

type verbHandler func(w http.ResponseWriter, r *http.Request, election string)

// verbs are the last segments of an election's paths, with the methods they take.
func (a *handlers) verbs() map[string]map[string]verbHandler {
	post := func(h verbHandler) map[string]verbHandler { return map[string]verbHandler{http.MethodPost: h} }
	get := func(h verbHandler) map[string]verbHandler { return map[string]verbHandler{http.MethodGet: h} }
	return map[string]map[string]verbHandler{
		"":       get(a.state),
		"become": post(a.become), "becomeLeader": post(a.become), // the second is the name the paper has
		"renew": post(a.renew), "renewLeadership": post(a.renew),
		"resign":   post(a.resign),
		"stepdown": post(a.stepdown),
		"verify":   post(a.verifyToken),
		"value":    {http.MethodPut: a.putValue},
		"leader":   get(a.leader),
		"role":     get(a.role),
		"events":   get(a.events),
		"hold":     get(a.hold),
	}
}

// election routes /v1/elections/{name}/{verb}, where the name may contain slashes.
func (a *handlers) election(w http.ResponseWriter, r *http.Request) {
	rest := strings.TrimPrefix(r.URL.Path, "/v1/elections/")
	name, verb := rest, ""
	if !slices.Contains(a.el.cfg.Elections, rest) {
		if i := strings.LastIndexByte(rest, '/'); i >= 0 {
			name, verb = rest[:i], rest[i+1:]
		}
	}
	if !slices.Contains(a.el.cfg.Elections, name) {
		writeRefusal(w, a.unknown(name))
		return
	}
	methods, ok := a.verbs()[verb]
	if !ok {
		writeRefusal(w, refuse(http.StatusNotFound, "not_found", fmt.Sprintf("an election has no %q", verb)))
		return
	}
	h, ok := methods[r.Method]
	if !ok {
		for m := range methods {
			w.Header().Set("Allow", m)
		}
		writeRefusal(w, refuse(http.StatusMethodNotAllowed, "method_not_allowed", fmt.Sprintf("use %s", w.Header().Get("Allow"))))
		return
	}
	h(w, r, name)
}

// unknown names some of the elections there are.
func (a *handlers) unknown(name string) *Refusal {
	ref := refuse(http.StatusNotFound, "unknown_election", fmt.Sprintf("this elector has no election %q", name))
	ref.Known = a.el.cfg.Elections[:min(len(a.el.cfg.Elections), 20)]
	return ref
}

func (a *handlers) rebalance(w http.ResponseWriter, r *http.Request) {
	rep, err := a.el.ask(r.Context(), evRebalance{})
	if err != nil || rep.refusal != nil {
		a.fail(w, rep, err)
		return
	}
	writeJSON(w, http.StatusOK, 0, map[string]any{"asked": rep.moves})
}

func (a *handlers) become(w http.ResponseWriter, r *http.Request, election string) {
	var body struct {
		ID       string `json:"id"`
		LeaseMS  int64  `json:"lease_ms"`
		WaitMS   *int64 `json:"wait_ms"`
		Priority int    `json:"priority"`
		Value    any    `json:"value"`
	}
	if !readBody(w, r, &body) {
		return
	}
	if body.ID == "" {
		body.ID = "app-" + strings.ToLower(rand.Text()[:8]) // two that do not say who they are must not share a leadership
	}
	switch {
	case len(body.ID) > 128:
		writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", "id is longer than 128 bytes"))
		return
	case body.LeaseMS != 0 && (body.LeaseMS < 100 || body.LeaseMS > time.Hour.Milliseconds()):
		writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", "lease_ms is not between 100 and 3600000"))
		return
	case body.WaitMS != nil && *body.WaitMS < 0:
		writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", "wait_ms is negative"))
		return
	}
	ev := evCampaign{election: election, id: body.ID, lease: time.Duration(body.LeaseMS) * time.Millisecond, priority: body.Priority, value: body.Value}
	if rep, err := a.el.ask(r.Context(), ev); err != nil || rep.refusal != nil {
		a.fail(w, rep, err)
		return
	}
	grant, ref := a.el.campaign(r.Context(), election, body.ID, body.WaitMS)
	if grant != nil {
		writeJSON(w, http.StatusOK, grant.Index, grant)
		return
	}
	a.el.ask(context.WithoutCancel(r.Context()), evWithdraw{election, body.ID})
	writeRefusal(w, ref)
}

type tokenBody struct {
	Token uint64 `json:"token"`
}

// needToken reads a body whose token is mandatory.
func needToken(w http.ResponseWriter, token uint64) bool {
	if token == 0 {
		writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", "token is missing: it comes with the answer to become"))
	}
	return token != 0
}

func (a *handlers) renew(w http.ResponseWriter, r *http.Request, election string) {
	var body tokenBody
	if !readBody(w, r, &body) || !needToken(w, body.Token) {
		return
	}
	rep, err := a.el.ask(r.Context(), evRenew{election, body.Token})
	a.answer(w, rep, err)
}

func (a *handlers) putValue(w http.ResponseWriter, r *http.Request, election string) {
	var body struct {
		tokenBody
		Value any `json:"value"`
	}
	if !readBody(w, r, &body) || !needToken(w, body.Token) {
		return
	}
	rep, err := a.el.ask(r.Context(), evPublish{election, body.Token, body.Value})
	a.answer(w, rep, err)
}

// resignWait is how long a resign waits for Consul. The application is out of office at once; this is only about the answer.
const resignWait = 5 * time.Second

func (a *handlers) resign(w http.ResponseWriter, r *http.Request, election string) {
	var body struct {
		tokenBody
		To string `json:"to"`
	}
	if !readBody(w, r, &body) || !needToken(w, body.Token) {
		return
	}
	env := envelope{ev: evResign{election: election, token: body.Token, to: body.To, req: a.el.reqs.Add(1)}, reply: make(chan reply, 1), out: make(chan Outcome, 1)}
	rep, err := a.el.await(r.Context(), env)
	if err != nil || rep.refusal != nil {
		a.fail(w, rep, err)
		return
	}
	limit := time.NewTimer(resignWait)
	defer limit.Stop()
	select {
	case out := <-env.out:
		writeJSON(w, http.StatusOK, 0, out)
	case <-limit.C:
		writeJSON(w, http.StatusAccepted, 0, Outcome{Reason: "Consul has not answered yet; the lock is released as soon as it does"})
	case <-r.Context().Done():
	case <-a.el.ended:
		writeJSON(w, http.StatusAccepted, 0, Outcome{Reason: "this elector is shutting down"})
	}
}

func (a *handlers) stepdown(w http.ResponseWriter, r *http.Request, election string) {
	var body struct {
		To string `json:"to"`
	}
	if !readBody(w, r, &body) {
		return
	}
	rep, err := a.el.ask(r.Context(), evStepdown{election, body.To})
	if err != nil || rep.refusal != nil {
		a.fail(w, rep, err)
		return
	}
	for {
		changed := a.el.feed.changed(election)
		v := a.el.feed.view(election)
		if v.Holder == "" || v.Token != rep.grant.Token {
			writeJSON(w, http.StatusOK, v.Index, map[string]any{"election": election, "token": rep.grant.Token, "ended": v.LostReason})
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-a.el.ended:
			return
		}
	}
}

func (a *handlers) leader(w http.ResponseWriter, r *http.Request, election string) {
	v := a.el.feed.view(election)
	if v.Leader == nil || v.Leader.Self && v.Role(a.el.clock.Now()) != Leader {
		ref := refuse(http.StatusNotFound, "vacant", "nobody leads")
		if v.Leader != nil {
			ref.Reason = string(Suspended)
		}
		w.Header().Set("X-Elector-Index", strconv.FormatUint(v.Index, 10))
		writeRefusal(w, ref)
		return
	}
	writeJSON(w, http.StatusOK, v.Index, v.Leader)
}

// role answers health checks and load balancers, by the clock alone.
func (a *handlers) role(w http.ResponseWriter, r *http.Request, election string) {
	v := a.el.feed.view(election)
	role := v.Role(a.el.clock.Now())
	status := http.StatusServiceUnavailable
	if role == Leader {
		status = http.StatusOK
	}
	writeJSON(w, status, v.Index, map[string]Role{"role": role})
}

func (a *handlers) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	if _, err := a.el.ask(ctx, evTick{}); err != nil {
		writeRefusal(w, refuse(http.StatusServiceUnavailable, "stuck", err.Error()))
		return
	}
	writeJSON(w, http.StatusOK, 0, map[string]bool{"ok": true})
}

func (a *handlers) readyz(w http.ResponseWriter, r *http.Request) {
	info := a.el.feed.info.Load()
	if !info.Connected || info.Stopping || !a.el.feed.view(a.el.cfg.Elections[0]).Synced {
		writeRefusal(w, refuse(http.StatusServiceUnavailable, "not_ready", "no session with Consul"))
		return
	}
	writeJSON(w, http.StatusOK, 0, map[string]bool{"ready": true})
}

// answer writes an immediate reply.
func (a *handlers) answer(w http.ResponseWriter, rep reply, err error) {
	if err != nil || rep.refusal != nil {
		a.fail(w, rep, err)
		return
	}
	writeJSON(w, http.StatusOK, rep.grant.Index, rep.grant)
}

func (a *handlers) fail(w http.ResponseWriter, rep reply, err error) {
	switch {
	case errors.Is(err, errEnded):
		writeRefusal(w, refuse(http.StatusServiceUnavailable, "stopping", "this elector is shutting down"))
	case err != nil:
		writeRefusal(w, refuse(http.StatusServiceUnavailable, "unavailable", err.Error()))
	default:
		writeRefusal(w, rep.refusal)
	}
}

// readBody decodes a JSON object. No body at all is an empty object; unknown fields are ignored.
func readBody(w http.ResponseWriter, r *http.Request, into any) bool {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		writeRefusal(w, refuse(http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the body is larger than %d bytes", maxBody)))
		return false
	case err != nil:
		return false // the client is gone
	case len(strings.TrimSpace(string(data))) == 0:
		return true
	}
	if err := json.Unmarshal(data, into); err != nil {
		writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", "the body is not the JSON object expected: "+err.Error()))
		return false
	}
	return true
}

func writeRefusal(w http.ResponseWriter, ref *Refusal) {
	if ref.RetryMS > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(max(1, ref.RetryMS/1000), 10))
	}
	writeJSON(w, ref.Status, 0, ref)
}

func writeJSON(w http.ResponseWriter, status int, index uint64, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if index > 0 {
		w.Header().Set("X-Elector-Index", strconv.FormatUint(index, 10))
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
