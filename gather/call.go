package gather

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"retinue/internal/clock"
)

// outcome of a leaf call.
type outcome string

const (
	gotAnswer   outcome = "ok"
	gotEmpty    outcome = "empty"
	gotPartial  outcome = "partial"
	refused     outcome = "refused"   // 4xx: the request is at fault
	pushedBack  outcome = "pushback"  // 429 or 503
	serverError outcome = "error"     // another status that is no answer
	unreached   outcome = "connect"   // no connection: certainly not worked on
	broken      outcome = "reset"     // the connection broke
	malformed   outcome = "malformed" // an answer that makes no sense
	tooLarge    outcome = "too_large" // above the limit
	timedOut    outcome = "timeout"   // no answer in time
	lostHedge   outcome = "lost"      // the other copy was faster
	cancelled   outcome = "cancelled" // not needed any more
	underWay    outcome = "in_flight"
)

// attempt is one leaf call. Only the owner of the request changes it.
type attempt struct {
	shard   *shard
	replica *replica
	why     purpose
	probe   bool
	second  bool   // another copy of it is under way
	blamed  bool   // it was held against the replica
	won     bool   // it is a hedge that was answered first
	check   string // of a replica that is a last resort
	start   clock.Instant
	cancel  context.CancelFunc

	end     clock.Instant
	outcome outcome
	status  int
	size    int
	detail  string

	result result // by the call's goroutine, which then gives the attempt back
}

// result is how an attempt ended, as its goroutine tells the owner.
type result struct {
	end     clock.Instant
	outcome outcome
	status  int
	detail  string
	later   time.Duration // Retry-After of a pushback
	answer  *answer
}

// run makes the call and reports it.
func (g *gathering) run(ctx context.Context, att *attempt) {
	r := g.exchange(ctx, att)
	r.end = g.root.clock.Now()
	if r.status != 0 {
		att.replica.heard.Store(int64(r.end))
	}
	if r.answer != nil {
		r.answer.took = r.end.Sub(att.start)
	}
	att.result = r
	att.replica.inflight.Add(-1)
	att.cancel()
	g.done <- att
}

func (g *gathering) exchange(ctx context.Context, att *attempt) result {
	resp, err := g.root.leaves.RoundTrip(g.leafRequest(ctx, att))
	if err != nil {
		return result{outcome: classify(ctx, err), detail: err.Error()}
	}
	defer resp.Body.Close()
	r := judgeStatus(resp)
	switch r.outcome {
	case gotAnswer, gotEmpty, refused:
	default:
		io.CopyN(io.Discard, resp.Body, 4<<10) // a short one lets the connection live
		return r
	}
	share, err := ParseCoverage(resp.Header.Get("Retinue-Coverage"))
	if err != nil && r.outcome != refused {
		return result{outcome: malformed, status: r.status, detail: err.Error()}
	}
	if share < 1 && r.outcome != refused {
		r.outcome = gotPartial
	}
	a := &answer{shard: att.shard.id, status: resp.StatusCode, header: resp.Header, coverage: share, replica: att.replica.name, hold: hold{memory: g.root.memory, of: &g.req.claim}}
	if err := a.read(ctx, resp, g.root.cfg.MaxLeaf); err != nil {
		a.release()
		if errors.Is(err, errTooLarge) {
			return result{outcome: tooLarge, status: r.status, detail: err.Error()}
		}
		return result{outcome: classify(ctx, err), status: r.status, detail: err.Error()}
	}
	if a.status != http.StatusNoContent && r.outcome != refused {
		if err := g.merge.prepare(a); err != nil {
			a.release()
			return result{outcome: malformed, status: r.status, detail: err.Error()}
		}
	}
	if r.outcome == refused {
		r.detail = fmt.Sprintf("status %d: %.200s", r.status, a.body)
		a.release()
		return r
	}
	r.answer = a
	return r
}

// judgeStatus says what a status means, before the body is read.
func judgeStatus(resp *http.Response) result {
	r := result{status: resp.StatusCode, outcome: serverError}
	switch s := resp.StatusCode; {
	case s == http.StatusNoContent:
		r.outcome = gotEmpty
		return r
	case s >= 200 && s < 300 && s != http.StatusPartialContent:
		r.outcome = gotAnswer
		return r
	case s == http.StatusTooManyRequests || s == http.StatusServiceUnavailable:
		r.outcome = pushedBack
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
			r.later = time.Duration(min(n, 10)) * time.Second
		}
	case s >= 400 && s < 500 && s != http.StatusRequestTimeout && s != http.StatusTooEarly:
		r.outcome = refused
	}
	r.detail = "status " + strconv.Itoa(resp.StatusCode)
	return r
}

func classify(ctx context.Context, err error) outcome {
	var op *net.OpError
	switch {
	case ctx.Err() != nil:
		return cancelled
	case errors.As(err, &op) && op.Op == "dial":
		return unreached
	}
	return broken
}

// leafRequest is the client's request as one leaf gets it. A request of a hundred shards makes a hundred of them: what they have in
// common is made once, and the map has room for no more than it gets (up to eight headers it is one small block).
func (g *gathering) leafRequest(ctx context.Context, att *attempt) *http.Request {
	req := g.req
	h := make(http.Header, len(req.header)+ownHeaders)
	maps.Copy(h, req.header)
	own := &[ownHeaders - 1]string{req.trace.Span(), "0", FormatDeadline(req.deadline.Leaf - att.start.Sub(req.start))}
	if att.second {
		own[1] = "1"
	}
	h["Retinue-Shard"] = att.shard.pool.label
	h["Traceparent"], h["Retinue-Hedge"], h["Retinue-Deadline-Ms"] = own[0:1:1], own[1:2:2], own[2:3:3]
	base := att.replica.base
	u := &url.URL{Scheme: base.Scheme, Host: base.Host, Path: base.Path + g.root.cfg.Path + req.path, RawQuery: req.query}
	if req.rawPath != "" {
		u.RawPath = base.EscapedPath() + g.root.cfg.Path + req.rawPath
	}
	out := g.common.WithContext(ctx)
	out.URL, out.Host, out.Header = u, base.Host, h
	if len(req.body) > 0 {
		out.Body, out.GetBody = bodyReader(req.body)
	}
	return out
}

// ownHeaders is how many headers leafRequest adds.
const ownHeaders = 4

var errTooLarge = errors.New("the body is larger than the limit")

// read takes the body into memory, as far as the bounds allow.
func (a *answer) read(ctx context.Context, resp *http.Response, limit int64) (err error) {
	if resp.StatusCode == http.StatusNoContent || resp.ContentLength == 0 || resp.Body == http.NoBody { // HEAD has a length, but no body
		return nil
	}
	a.body, err = readBounded(ctx, resp.Body, resp.ContentLength, limit, &a.hold)
	return err
}

// readBounded reads all of r, whose length is known or -1, and takes memory for it as it comes.
func readBounded(ctx context.Context, r io.Reader, length, limit int64, held *hold) (body []byte, err error) {
	if length > limit {
		return nil, fmt.Errorf("%w of %d bytes", errTooLarge, limit)
	}
	size := min(int64(4<<10), limit+1)
	if length >= 0 {
		size = length
	}
	for {
		if err := held.grow(ctx, size); err != nil {
			return body, err
		}
		// One more than counted: the end of a body of known length is read with its last byte, and a newline can be added.
		next := append(held.memory.buffers.get(size+1), body...)
		held.memory.buffers.put(body)
		body = next
		for int64(len(body)) < size {
			n, err := r.Read(body[len(body):size])
			body = body[:int64(len(body))+int64(n)]
			if err == io.EOF {
				switch {
				case int64(len(body)) > limit:
					return body, fmt.Errorf("%w of %d bytes", errTooLarge, limit)
				case length >= 0 && int64(len(body)) < length:
					return body, io.ErrUnexpectedEOF
				}
				return body, nil
			}
			if err != nil {
				return body, err
			}
		}
		if length >= 0 {
			n, err := r.Read(body[len(body) : len(body)+1]) // the end, so that the connection can be used again
			if n == 0 && (err == io.EOF || err == nil) {
				return body, nil
			}
			return body, err
		}
		if size > limit {
			return body, fmt.Errorf("%w of %d bytes", errTooLarge, limit)
		}
		size = min(size*2, limit+1)
	}
}
