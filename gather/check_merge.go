package gather

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"slices"
	"sync"
	"time"
)

// mergeKit sends a merge what a root would send it.
type mergeKit struct {
	findings
	local  *local
	format Format
	bodies [][]byte
	kind   string
}

// CheckMerge tries the merge contract on the container at address. bodies are answers of leaves that it understands, with their
// Content-Type; without any it gets simple JSON objects.
func CheckMerge(ctx context.Context, address, format string, bodies [][]byte, contentType string) ([]Finding, error) {
	spec, err := ParseMerge(address, format)
	if err != nil {
		return nil, err
	}
	if spec.Kind != MergeContainer {
		return nil, fmt.Errorf("%s is built in: there is nothing to check", spec)
	}
	k := &mergeKit{findings: findings{subject: "merge"}, local: newLocal(spec.endpoint, 32), format: spec.Format, bodies: bodies, kind: contentType}
	if len(k.bodies) == 0 {
		k.kind = "application/json"
		for i := range 4 {
			k.bodies = append(k.bodies, fmt.Appendf(nil, `{"id":%d,"score":%d}`, i, i*7%5))
		}
	}
	defer k.local.transport.CloseIdleConnections()
	if !k.simple(ctx) {
		return k.list, nil
	}
	k.order(ctx)
	k.duplicate(ctx)
	k.degraded(ctx)
	k.future(ctx)
	k.slow(ctx)
	k.many(ctx)
	k.parallel(ctx)
	k.abandoned(ctx)
	return k.list, nil
}

// input is what one call of a merge is made of.
type input struct {
	leaves []LeafLine
	raw    [][]byte // their bodies
	end    *EndLine // nil: cut off without one
	pause  time.Duration
	extra  bool // fields that this version does not know
}

// inputOf makes whole answers of bodies, one for each shard.
func (k *mergeKit) inputOf(bodies [][]byte) input {
	var in input
	for i, b := range bodies {
		in.leaves = append(in.leaves, LeafLine{Shard: i, Status: 200, MS: 1, Replica: fmt.Sprint("replica-", i), Coverage: 1, Headers: map[string]string{"Content-Type": k.kind}})
		in.raw = append(in.raw, b)
	}
	n := len(bodies)
	in.end = &EndLine{End: true, Reason: reasonComplete, Coverage: CoverageLine{Fraction: 1, Total: n, OK: n}}
	return in
}

func (k *mergeKit) shuffled(in input) input {
	out := input{end: in.end}
	for _, i := range rand.Perm(len(in.leaves)) {
		out.leaves, out.raw = append(out.leaves, in.leaves[i]), append(out.raw, in.raw[i])
	}
	return out
}

type mergeAnswer struct {
	status int
	body   []byte
	took   time.Duration
}

func (a mergeAnswer) String() string { return fmt.Sprintf("status %d, %s", a.status, brief(a.body)) }

func (a mergeAnswer) ok() bool { return a.status >= 200 && a.status < 300 }

// send makes one call, in the merge's format.
func (k *mergeKit) send(ctx context.Context, in input) (a mergeAnswer, err error) {
	patience := checkPatience + in.pause*time.Duration(len(in.leaves))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body, pipe := io.Pipe()
	contentType := "application/x-ndjson"
	var parts *multipart.Writer
	switch k.format {
	case FormatMultipart:
		parts = multipart.NewWriter(pipe)
		contentType = "multipart/mixed; boundary=" + parts.Boundary()
	case FormatBatch:
		contentType = "application/json"
	}
	go func() { pipe.CloseWithError(k.write(pipe, parts, in)) }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.local.url, body)
	if err != nil {
		return a, err
	}
	req.Header = http.Header{"Content-Type": {contentType}, "Retinue-Request-Id": {"check"}, "Retinue-Deadline-Ms": {FormatDeadline(patience)}, "Traceparent": {ParseTrace("").Span()}}
	start := time.Now()
	resp, err := k.local.transport.RoundTrip(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	a.status, a.took = resp.StatusCode, time.Since(start)
	return a, err
}

// write writes all objects of a call. It returns nil at the end, which ends the body.
func (k *mergeKit) write(w io.Writer, parts *multipart.Writer, in input) error {
	n := 0
	object := func(v any, raw []byte) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if in.extra {
			b = append([]byte(`{"from_the_future":{"x":[1]},`), b[1:]...)
		}
		n++
		switch {
		case parts != nil:
			p, err := parts.CreatePart(textproto.MIMEHeader{"Retinue-Part": {string(b)}, "Content-Type": {k.kind}})
			if err == nil {
				_, err = p.Write(raw)
			}
			return err
		case k.format == FormatBatch:
			lead := ","
			if n == 1 {
				lead = "["
			}
			_, err = fmt.Fprintf(w, "%s%s", lead, b)
		default:
			_, err = fmt.Fprintf(w, "%s\n", b)
		}
		return err
	}
	line := RequestLine{ID: "check", Root: "check", Method: "GET", Path: "/", Headers: map[string]string{}, DeadlineMS: checkPatience.Milliseconds(), Shards: len(in.leaves)}
	if err := object(map[string]RequestLine{"request": line}, nil); err != nil {
		return err
	}
	for i, l := range in.leaves {
		if parts == nil && len(in.raw[i]) > 0 {
			l.Body, l.Encoding = encodeBody(k.kind, in.raw[i])
		}
		time.Sleep(in.pause)
		if err := object(l, in.raw[i]); err != nil {
			return err
		}
	}
	if in.end != nil {
		if err := object(in.end, nil); err != nil {
			return err
		}
	}
	switch {
	case parts != nil:
		return parts.Close()
	case k.format == FormatBatch:
		_, err := io.WriteString(w, "]")
		return err
	}
	return nil
}

// tell makes a detail of an answer or an error.
func tell(a mergeAnswer, err error) string {
	if err != nil {
		return err.Error()
	}
	return a.String()
}

func (k *mergeKit) simple(ctx context.Context) bool {
	one, err := k.send(ctx, k.inputOf(k.bodies[:1]))
	k.want(err == nil && one.ok(), "one leaf", tell(one, err), "POST with a request, one leaf and an end is answered with 2xx; is the format ("+string(k.format)+") the merge's, and chunked encoding understood?")
	if err != nil || !one.ok() {
		return false
	}
	all, err := k.send(ctx, k.inputOf(k.bodies))
	k.want(err == nil && all.ok(), "several leaves", tell(all, err), "")
	none, err := k.send(ctx, k.inputOf(nil))
	k.want(err == nil && none.ok(), "no leaf", tell(none, err), "when no shard has anything to say the merge still answers, with an empty result")
	in := k.inputOf(k.bodies[:1])
	in.leaves[0].Status, in.raw[0] = http.StatusNoContent, nil
	in.end.Coverage.OK, in.end.Coverage.Empty = 0, 1
	empty, err := k.send(ctx, in)
	k.want(err == nil && empty.ok(), "204", tell(empty, err), "a leaf with status 204 has no body: it adds nothing")
	return true
}

func (k *mergeKit) order(ctx context.Context) {
	in := k.inputOf(k.bodies)
	if len(k.bodies) == 1 {
		in = k.inputOf([][]byte{k.bodies[0], k.bodies[0], k.bodies[0]})
	}
	first, err := k.send(ctx, in)
	for i := 0; i < 8 && err == nil; i++ {
		var a mergeAnswer
		if a, err = k.send(ctx, k.shuffled(in)); err == nil && !sameBody(a.body, first.body) {
			err = fmt.Errorf("%s, and in another order of leaves %s", first, a)
		}
	}
	k.want(err == nil, "order of leaves", tell(first, err), "leaves come in the order in which they answer: sort by the data, and equal ones by shard")
}

func (k *mergeKit) duplicate(ctx context.Context) {
	a, err := k.send(ctx, k.inputOf([][]byte{k.bodies[0], k.bodies[0]}))
	k.want(err == nil && a.ok(), "the same body twice", tell(a, err), "two shards may say the same")
}

func (k *mergeKit) degraded(ctx context.Context) {
	in := k.inputOf(k.bodies[:1])
	in.leaves[0].Coverage = 0.5
	in.end = &EndLine{End: true, Reason: reasonPolicy, Coverage: CoverageLine{Fraction: 0.25, Total: 2, Partial: 1, Timeout: 1},
		Shards: []ShardProblem{{Shard: 0, State: Partial, Coverage: 0.5}, {Shard: 1, State: Timeout, Error: "no answer in the time there was"}}}
	a, err := k.send(ctx, in)
	k.want(err == nil && a.ok(), "partial coverage", tell(a, err), "a partial answer is merged like any other: the root's policy has allowed it")
}

func (k *mergeKit) future(ctx context.Context) {
	want, err := k.send(ctx, k.inputOf(k.bodies))
	in := k.inputOf(k.bodies)
	in.extra = true
	var a mergeAnswer
	if err == nil {
		a, err = k.send(ctx, in)
	}
	k.want(err == nil && a.ok() && sameBody(a.body, want.body), "unknown fields", tell(a, err), "a later root may send more fields: ignore what is not known")
}

func (k *mergeKit) slow(ctx context.Context) {
	want, err := k.send(ctx, k.inputOf(k.bodies))
	in := k.inputOf(k.bodies)
	in.pause = 200 * time.Millisecond
	var a mergeAnswer
	if err == nil {
		a, err = k.send(ctx, in)
	}
	k.want(err == nil && a.ok() && sameBody(a.body, want.body), "slow leaves", tell(a, err), "wait for the end line, however long it takes: the root keeps the deadline")
}

func (k *mergeKit) many(ctx context.Context) {
	var bodies [][]byte
	size := 0
	for i := 0; i < 1000 && size < 16<<20; i++ {
		bodies = append(bodies, k.bodies[i%len(k.bodies)])
		size += len(bodies[i])
	}
	a, err := k.send(ctx, k.inputOf(bodies))
	k.want(err == nil && a.ok(), "many leaves", fmt.Sprintf("%d leaves, %d bytes: %s after %s", len(bodies), size, tell(a, err), a.took.Round(time.Millisecond)), "a thousand leaves are possible: read line by line, and limit neither their number nor a line's length")
}

// parallel sends two different requests many times at once: they must not mix.
func (k *mergeKit) parallel(ctx context.Context) {
	inputs := []input{k.inputOf(k.bodies), k.inputOf(k.bodies[:1])}
	var want [2]mergeAnswer
	for i, in := range inputs {
		var err error
		if want[i], err = k.send(ctx, in); err != nil {
			k.add("in parallel", CheckFail, err.Error(), "")
			return
		}
	}
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			a, err := k.send(ctx, inputs[i%2])
			if err == nil && !sameBody(a.body, want[i%2].body) {
				err = fmt.Errorf("%s, alone %s", a, want[i%2])
			}
			errs[i] = err
		})
	}
	wg.Wait()
	err := errors.Join(slices.DeleteFunc(errs, func(err error) bool { return err == nil })...)
	k.want(err == nil, "in parallel", tell(want[0], err), "requests come at the same time: keep nothing of one in what the next can see")
}

// abandoned ends a body without an end, and then asks again.
func (k *mergeKit) abandoned(ctx context.Context) {
	in := k.inputOf(k.bodies)
	in.end = nil
	a, err := k.send(ctx, in)
	k.want(err != nil || !a.ok(), "no end line", tell(a, err), "a body without the end was abandoned: answer 4xx or 5xx, or close the connection, but no result")
	want, errWant := k.send(ctx, k.inputOf(k.bodies[:1]))
	garbage := k.inputOf([][]byte{[]byte("\x00 no answer of a leaf \xff")})
	_, _ = k.send(ctx, garbage) // whatever it says
	again, err := k.send(ctx, k.inputOf(k.bodies[:1]))
	k.want(errWant == nil && err == nil && again.ok() && bytes.Equal(again.body, want.body), "after a bad body", tell(again, err), "what one request did must not hurt the next")
}
