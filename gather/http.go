package gather

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"retinue/internal/clock"
)

// answering is the client's side of one request.
type answering struct {
	root *Root
	w    http.ResponseWriter
	r    *http.Request
	req  *request
	g    *gathering
	out  *stream

	gathered clock.Instant
	merged   clock.Instant
	status   int
	cause    string
	reason   string
	coverage Coverage
}

// ServeHTTP answers one client.
func (root *Root) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/-/healthz", "/-/readyz":
		root.health(w, r.URL.Path == "/-/readyz")
		return
	}
	now := root.clock.Now()
	req, total, ref := root.parseRequest(r, now)
	a := &answering{root: root, w: w, r: r, req: req}
	w.Header()["Retinue-Request-Id"] = []string{req.id}
	defer root.busy.Add(-1)
	if n := root.busy.Add(1); n > int64(root.cfg.MaxConcurrent) {
		ref = &refusal{http.StatusServiceUnavailable, "overloaded", fmt.Sprintf("%d requests are under way already", root.cfg.MaxConcurrent)}
	}
	if ref == nil && !root.fleet.known.Load() {
		ref = &refusal{http.StatusServiceUnavailable, "not_ready", "the catalog has not been read yet"}
	}
	if ref != nil {
		a.refuse(ref)
		return
	}
	a.answer(total)
}

func (root *Root) health(w http.ResponseWriter, ready bool) {
	if ready {
		if ok, why := root.Ready(); !ok {
			writeProblem(w, Problem{Status: http.StatusServiceUnavailable, Cause: "not_ready", Detail: why})
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	fmt.Fprintln(w, `{"ok":true}`)
}

func (a *answering) answer(total time.Duration) {
	root, req := a.root, a.req
	ctx, cancel := context.WithTimeout(a.r.Context(), total)
	defer cancel()
	if a.r.ContentLength != 0 {
		rc := http.NewResponseController(a.w)
		rc.SetReadDeadline(time.Now().Add(total)) // an error here only means that this writer has no deadline
		held := hold{memory: root.memory, of: &req.claim}
		defer held.release()
		ref := root.readBody(ctx, a.r, req, &held)
		rc.SetReadDeadline(time.Time{})
		if ref != nil {
			a.refuse(ref)
			return
		}
	}
	req.deadline = Divide(total, root.reserve(total), root.cfg.PerLevel)
	if ref := root.routeRequest(ctx, a.r, req); ref != nil {
		a.refuse(ref)
		return
	}
	leave, ref := a.admitted(ctx, total*3/4)
	if ref != nil {
		a.refuse(ref)
		return
	}
	defer leave()
	if root.cfg.Stream {
		a.out = newStream(a)
	}
	merge := root.newMerger(ctx, req, a.out)
	defer merge.close()
	a.g = &gathering{root: root, req: req, merge: merge}
	reason := a.g.gather(ctx)
	defer a.g.abandon()
	a.reason = reason
	a.gathered = root.clock.Now()
	a.coverage = a.g.coverage()
	switch {
	case reason == "":
		a.finish(statusClientGone, "client_gone")
	case a.g.mergeErr != nil:
		a.mergeFailed(ctx, a.g.mergeErr)
	case !req.policy.Met(a.coverage):
		a.short()
		a.sendOff()
		a.wasLate(root.clock.Now())
	default:
		if root.merge != nil || root.cfg.Stream { // the rest of the answer takes time, which is measured apart
			a.g.abandon()
			a.wasLate(a.gathered)
			a.deliver(ctx, merge)
			return
		}
		a.deliver(ctx, merge)
		a.sendOff()
		a.wasLate(root.clock.Now())
	}
}

// wasLate notes by how much the end of waiting was missed, when it was the deadline.
func (a *answering) wasLate(now clock.Instant) {
	if a.reason == reasonDeadline {
		a.root.late.Observe(now, min(now.Sub(a.req.start.Add(a.req.deadline.Gather)), latest(a.req.deadline.Total)))
	}
}

// sendOff gives an answer that is complete to the client before the leaf calls that are still out are cancelled: to close that many
// connections takes longer than to answer.
func (a *answering) sendOff() {
	if a.g.outstanding > 0 && !a.g.abandoned {
		_ = http.NewResponseController(a.w).Flush() // a writer that cannot, or a client that is gone: the answer is on its way, or nobody's
	}
}

// admitted waits in line for room, for so long: longer than calls wait for a replica that froze. What is left of the deadline then
// has to do for the leaves.
func (a *answering) admitted(ctx context.Context, limit time.Duration) (leave func(), ref *refusal) {
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	leave, err := a.root.admission.admit(wait, &a.req.claim, len(a.req.shards))
	switch {
	case err == nil:
		return leave, nil
	case a.r.Context().Err() != nil:
		return nil, &refusal{status: statusClientGone, cause: "client_gone", detail: "the client went away"}
	}
	return nil, &refusal{http.StatusServiceUnavailable, "overloaded", "requests under way take all the memory that limit-gathered allows, and three quarters of the deadline passed"}
}

// deliver lets the merge finish, and writes its answer.
func (a *answering) deliver(ctx context.Context, merge merger) {
	end := ending{reason: a.reason, coverage: a.coverage}
	if !a.coverage.Whole() {
		end.shards = a.g.problems()
	}
	rep, err := merge.finish(ctx, end)
	a.merged = a.root.clock.Now()
	if err != nil {
		a.mergeFailed(ctx, err)
		return
	}
	if rep == nil { // streamed
		a.numbers(a.out.trailers())
		a.mergeMeasured()
		a.finish(a.out.status, "")
		return
	}
	defer rep.close()
	h := a.w.Header()
	for name, values := range rep.header {
		h[name] = values
	}
	a.numbers(h)
	size := 0
	for _, part := range rep.parts {
		size += len(part)
	}
	if rep.rest == nil && a.req.method != http.MethodHead && rep.status != http.StatusNoContent && rep.status != http.StatusNotModified {
		h["Content-Length"] = []string{strconv.Itoa(size)}
	}
	a.w.WriteHeader(rep.status)
	for _, part := range rep.parts {
		if _, err := a.w.Write(part); err != nil {
			a.finish(statusClientGone, "client_gone")
			return
		}
	}
	if rep.rest != nil {
		if err := pass(a.w, rep.rest); err != nil {
			a.finish(http.StatusBadGateway, "merge_failed")
			panic(http.ErrAbortHandler) // the client must not take the part that it has for an answer
		}
		a.merged = a.root.clock.Now()
	}
	a.mergeMeasured()
	a.finish(rep.status, "")
}

func (a *answering) mergeMeasured() {
	a.root.mergeTime.Observe(a.merged, a.merged.Sub(a.gathered))
}

func (a *answering) mergeFailed(ctx context.Context, err error) {
	status, cause := http.StatusBadGateway, "merge_failed"
	switch {
	case a.r.Context().Err() != nil:
		status, cause = statusClientGone, "client_gone"
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		status, cause = http.StatusGatewayTimeout, "merge_timeout"
		a.mergeMeasured() // a reserve that was too small grows
	}
	a.root.log.Debug("merge failed", "id", a.req.id, "error", err)
	a.problem(status, cause, "merge: "+err.Error(), nil)
}

// short answers when the policy is not met.
func (a *answering) short() {
	status, cause := a.shortStatus()
	c := a.coverage
	detail := fmt.Sprintf("%d of %d shards are not whole, coverage %s, %s", c.Total-c.OK-c.Empty-c.Skipped, c.Total, FormatFraction(c.Fraction()), a.req.policy)
	if a.req.applied != "" {
		detail += " and the client's " + a.req.applied
	}
	a.problem(status, cause, detail+" not met", a.g.problems())
}

func (a *answering) shortStatus() (int, string) {
	c := a.coverage
	if same := a.refusedByAll(); same != 0 {
		return same, string(Failed)
	}
	switch {
	case c.Failed > 0:
		return http.StatusServiceUnavailable, string(Failed)
	case c.Missing > 0:
		return http.StatusServiceUnavailable, string(Missing)
	case c.Timeout > 0:
		return http.StatusGatewayTimeout, string(Timeout)
	}
	return http.StatusServiceUnavailable, string(Partial)
}

// refusedByAll is the 4xx that every failed shard answered with, when shards are lacking for no other reason.
func (a *answering) refusedByAll() int {
	same := 0
	for i := range a.g.shards {
		switch s := &a.g.shards[i]; s.state {
		case Failed:
			if s.status < 400 || s.status > 499 || s.status == http.StatusTooManyRequests || same != 0 && same != s.status {
				return 0
			}
			same = s.status
		case Missing, Partial:
			return 0
		}
	}
	return same
}

func (a *answering) refuse(ref *refusal) {
	if ref.status == statusClientGone {
		a.finish(ref.status, ref.cause)
		return
	}
	a.problem(ref.status, ref.cause, ref.detail, nil)
}

// problem writes an error, if nothing was written yet; otherwise it cuts the answer off.
func (a *answering) problem(status int, cause, detail string, shards []ShardProblem) {
	a.finish(status, cause)
	if a.out != nil && a.out.stop() {
		panic(http.ErrAbortHandler)
	}
	if status == statusClientGone {
		return
	}
	p := Problem{Status: status, Detail: detail, ID: a.req.id, Cause: cause, Shards: shards}
	if a.g != nil {
		f := a.coverage.Fraction()
		p.Coverage = &f
		a.numbers(a.w.Header())
	}
	writeProblem(a.w, p)
}

// numbers writes what every answer says of itself.
func (a *answering) numbers(h http.Header) {
	c := &a.coverage
	h["Retinue-Coverage"] = []string{FormatFraction(c.Fraction())}
	h["Retinue-Shards"] = []string{c.String()}
	h["Retinue-Hedges"] = []string{strconv.Itoa(a.g.hedges) + "/" + strconv.Itoa(a.g.won)}
	if !c.Whole() {
		h["Retinue-Degraded"] = []string{c.Degraded()}
		h["Cache-Control"] = []string{"no-store"}
	}
	if a.req.applied != "" {
		h["Preference-Applied"] = []string{a.req.applied}
	}
	if a.merged == 0 {
		a.merged = a.gathered
	}
	b := make([]byte, 0, 64)
	b = appendMS(append(b, "leaves;dur="...), a.gathered.Sub(a.req.start))
	b = appendMS(append(b, ", merge;dur="...), a.merged.Sub(a.gathered))
	b = appendMS(append(b, ", total;dur="...), a.merged.Sub(a.req.start))
	h["Server-Timing"] = []string{string(b)}
}

func appendMS(b []byte, d time.Duration) []byte { return strconv.AppendFloat(b, ms(d), 'f', -1, 64) }

// ms is d in milliseconds, with three decimals.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// finish notes how the request ended.
func (a *answering) finish(status int, cause string) {
	a.status, a.cause = status, cause
	root, now := a.root, a.root.clock.Now()
	took := now.Sub(a.req.start)
	degraded := a.g != nil && !a.coverage.Whole()
	root.metrics.request(status, degraded, took)
	if a.g == nil {
		return
	}
	slow, known := root.total.At(0.95)
	root.total.Observe(now, took)
	if a.req.explain || degraded || status >= 500 || !known || took >= slow {
		root.timelines.add(a.timeline(now))
	}
}
