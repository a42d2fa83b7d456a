// Command fanout is what people write themselves in place of `retinue gather`:
// an HTTP server that asks every leaf, each in a goroutine, and answers with all
// answers behind each other. A leaf call is a bare net/http one, or goes through
// hedgedhttp or failsafe-go, which hedge it on the other replica.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/cristalhq/hedgedhttp"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/hedgepolicy"
	"golang.org/x/sync/errgroup"

	"retinue/tests/bench/script"
)

func main() {
	kind := flag.String("kind", "bare", "bare, hedgedhttp or failsafe-go")
	leaves := flag.String("leaves", "", "file with the URLs of every shard's replicas")
	out := flag.String("out", "", "file that says where this is")
	delay := flag.Duration("delay", time.Second, "after which a call is hedged")
	quantile := flag.Float64("quantile", 0.985, "failsafe-go: of latency, after which a call is hedged; 0: after -delay")
	timeout := flag.Duration("timeout", 10*time.Second, "of a request")
	flag.Parse()
	if err := serve(*kind, *leaves, *out, *delay, *quantile, *timeout); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func serve(kind, leaves, out string, delay time.Duration, quantile float64, timeout time.Duration) error {
	f := &fanOut{timeout: timeout}
	if err := script.Hear(leaves, &f.shards); err != nil {
		return err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true, IdleConnTimeout: 90 * time.Second}
	switch kind {
	case "bare":
		f.call = bare(transport)
	case "hedgedhttp":
		client, err := hedgedhttp.New(hedgedhttp.Config{Transport: toOther{transport}, Upto: 2, Delay: delay})
		if err != nil {
			return err
		}
		f.call = hedged(client)
	case "failsafe-go":
		policy := hedgepolicy.NewWithDelay[[]byte](delay)
		if quantile > 0 { // found by itself, from the last 2,000 calls
			policy = hedgepolicy.NewWithDelayQuantile[[]byte](quantile, 2000, 100)
		}
		f.call = failsafeCall(transport, policy)
	default:
		return fmt.Errorf("-kind %q", kind)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := script.Tell(out, "http://"+l.Addr().String()); err != nil {
		return err
	}
	return http.Serve(l, f)
}

// caller asks a replica of a shard, and perhaps the other one.
type caller func(ctx context.Context, method, first, other, uri string) ([]byte, error)

type fanOut struct {
	shards  [][]string // URLs of the replicas
	timeout time.Duration
	call    caller
}

func (f *fanOut) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), f.timeout)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	bodies, uri := make([][]byte, len(f.shards)), r.URL.RequestURI()
	for i, replicas := range f.shards {
		group.Go(func() (err error) {
			first := rand.IntN(len(replicas))
			bodies[i], err = f.call(ctx, r.Method, replicas[first], replicas[(first+1)%len(replicas)], uri)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		status := http.StatusBadGateway
		if errors.Is(err, context.DeadlineExceeded) {
			status = http.StatusGatewayTimeout
		}
		http.Error(w, err.Error(), status)
		return
	}
	size := 0
	for _, b := range bodies {
		size += len(b)
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", strconv.Itoa(size))
	for _, b := range bodies {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// roundTrip makes one call and reads the answer.
func roundTrip(rt http.RoundTripper, ctx context.Context, method, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	if resp.ContentLength < 0 {
		return io.ReadAll(resp.Body)
	}
	body := bytes.NewBuffer(make([]byte, 0, resp.ContentLength+bytes.MinRead))
	_, err = body.ReadFrom(resp.Body)
	return body.Bytes(), err
}

func bare(rt http.RoundTripper) caller {
	return func(ctx context.Context, method, first, _, uri string) ([]byte, error) {
		return roundTrip(rt, ctx, method, first+uri)
	}
}

// otherKey is the context's key of the other replica's host.
type otherKey struct{}

// toOther sends hedges of hedgedhttp, which repeats a request as it is, to the other replica.
type toOther struct{ http.RoundTripper }

func (t toOther) RoundTrip(req *http.Request) (*http.Response, error) {
	if hedgedhttp.IsHedgedRequest(req) {
		u := *req.URL
		u.Host = req.Context().Value(otherKey{}).(string)
		again := *req // a RoundTripper must not change the request
		again.URL, again.Host = &u, u.Host
		req = &again
	}
	return t.RoundTripper.RoundTrip(req)
}

func hedged(rt http.RoundTripper) caller {
	return func(ctx context.Context, method, first, other, uri string) ([]byte, error) {
		const scheme = "http://"
		return roundTrip(rt, context.WithValue(ctx, otherKey{}, other[len(scheme):]), method, first+uri)
	}
}

func failsafeCall(rt http.RoundTripper, policy hedgepolicy.HedgePolicy[[]byte]) caller {
	executor := failsafe.With(policy)
	return func(ctx context.Context, method, first, other, uri string) ([]byte, error) {
		return executor.WithContext(ctx).GetWithExecution(func(e failsafe.Execution[[]byte]) ([]byte, error) {
			url := first
			if e.IsHedge() {
				url = other
			}
			return roundTrip(rt, e.Context(), method, url+uri)
		})
	}
}
