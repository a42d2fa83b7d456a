package gather

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
)

// bare is what somebody writes without this package: a goroutine for each leaf, all answers behind each other.
func bare(client *http.Client, urls []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
		defer cancel()
		bodies, errs := make([][]byte, len(urls)), make([]error, len(urls))
		var wg sync.WaitGroup
		for i, u := range urls {
			wg.Go(func() {
				req, err := http.NewRequestWithContext(ctx, r.Method, u+r.URL.RequestURI(), nil)
				if err != nil {
					errs[i] = err
					return
				}
				resp, err := client.Do(req)
				if err != nil {
					errs[i] = err
					return
				}
				defer resp.Body.Close()
				bodies[i], errs[i] = io.ReadAll(resp.Body)
			})
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
		}
		for _, b := range bodies {
			w.Write(b)
		}
	})
}

// BenchmarkFanOut compares the root with the bare fan-out over the same leaves, one request after the other, in turns: what the
// machine does meanwhile hits both.
func BenchmarkFanOut(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			body := strings.Repeat("x", 1023) + "\n"
			var urls, settings []string
			for i := range n {
				leaf := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }))
				defer leaf.Close()
				urls = append(urls, leaf.URL)
				settings = append(settings, fmt.Sprintf("%d=%s", i, leaf.URL))
			}
			s := DefaultSettings()
			s.Leaf.Static, s.Deadline.Default, s.Deadline.Max = settings, "10s", "10s"
			cfg, err := s.Config()
			if err != nil {
				b.Fatal(err)
			}
			root, err := New(cfg, clock.Boot(), hclog.NewNullLogger())
			if err != nil {
				b.Fatal(err)
			}
			transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
			defer transport.CloseIdleConnections()
			defer root.Close()
			servers := [2]*httptest.Server{httptest.NewServer(bare(&http.Client{Transport: transport}, urls)), httptest.NewServer(root)}
			var took [2][]time.Duration
			ask := func(which int) {
				start := time.Now()
				resp, err := servers[which].Client().Get(servers[which].URL + "/q")
				if err != nil {
					b.Fatal(err)
				}
				got, _ := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if got != int64(n*len(body)) {
					b.Fatalf("%d bytes: %s", got, resp.Status)
				}
				took[which] = append(took[which], time.Since(start))
			}
			for range 50 {
				ask(0)
				ask(1)
			}
			took = [2][]time.Duration{}
			var cpu [2]time.Duration
			for b.Loop() {
				for which := range servers {
					before := processorTime(b)
					ask(which)
					cpu[which] += processorTime(b) - before
				}
			}
			for i, server := range servers {
				server.Close()
				slices.Sort(took[i])
			}
			at := func(i int, q float64) float64 { return ms(took[i][int(q*float64(len(took[i])-1))]) }
			b.ReportMetric(at(0, 0.5), "bare-p50-ms")
			b.ReportMetric(at(1, 0.5)-at(0, 0.5), "added-p50-ms")
			b.ReportMetric(at(0, 0.99), "bare-p99-ms")
			b.ReportMetric(at(1, 0.99)-at(0, 0.99), "added-p99-ms")
			b.ReportMetric(float64(cpu[1])/float64(cpu[0]), "cpu-ratio") // with the leaves' own, which is the same in both
		})
	}
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPick is the choice of a replica.
func BenchmarkPick(b *testing.B) {
	p := &pool{cfg: &EjectConfig{}}
	p.set([]*replica{{key: "a"}, {key: "b"}, {key: "c"}})
	now := clock.Boot().Now()
	for i := uint64(0); b.Loop(); i++ {
		p.pick(now, primary, nil, i*0x9e3779b97f4a7c15)
	}
}
