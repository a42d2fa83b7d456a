package coordinator

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/coordinator/commit"
	"retinue/coordinator/source"
	"retinue/coordinator/worker"
	"retinue/internal/clock"
)

// The benchmarks put the coordinator beside what one would write by hand: receive, call the worker, ack, with as many goroutines as
// there are slots. Both have the same queue (a list under a lock, which costs next to nothing), the same worker and the same client.
//
//	go test ./coordinator -run XXX -bench . -benchtime 20000x

const benchSlots = 8

// list is a queue of n items that does nothing but hand them out.
type list struct {
	mu     sync.Mutex
	left   int
	total  int
	body   []byte
	acked  int
	all    chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newList(n int, body []byte) *list {
	return &list{left: n, total: n, body: body, all: make(chan struct{}), closed: make(chan struct{})}
}

func (l *list) Receive(ctx context.Context, max int) ([]*source.Message, error) {
	l.mu.Lock()
	n := min(max, l.left)
	first := l.total - l.left
	l.left -= n
	l.mu.Unlock()
	if n == 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.closed:
			return nil, source.ErrClosed
		}
	}
	msgs := make([]*source.Message, n)
	for i := range msgs {
		msgs[i] = &source.Message{ID: fmt.Sprintf("i%d", first+i), Body: l.body, Headers: map[string]string{}, Deliveries: 1}
	}
	return msgs, nil
}

func (l *list) Ack(_ context.Context, ms ...*source.Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.acked += len(ms); l.acked == l.total {
		close(l.all)
	}
	return nil
}

func (l *list) Extend(context.Context, ...*source.Message) error                 { return nil }
func (l *list) Release(context.Context, time.Duration, ...*source.Message) error { return nil }
func (l *list) Publish(context.Context, ...source.Out) error                     { return nil }
func (l *list) Depth(context.Context) (source.Depth, error)                      { return source.Depth{}, nil }
func (l *list) Idle(context.Context) error                                       { return nil }
func (l *list) Caps() source.Caps                                                { return source.Caps{} }
func (l *list) Close(context.Context) error                                      { l.once.Do(func() { close(l.closed) }); return nil }

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measure runs n items through either side and reports items a second and processor time an item (of both ends of a call).
func measure(b *testing.B, q *list, start func() (stop func())) {
	before := cpu(b)
	b.ResetTimer()
	stop := start()
	<-q.all
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "items/s")
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/item")
	stop()
}

func runCoordinator(b *testing.B, q *list, batch int, point commit.Point, w worker.Worker) {
	cfg := testConfig()
	cfg.Slots, cfg.Batch, cfg.Dead = benchSlots, batch, "q-dead"
	c, err := New(cfg, Parts{Open: func(source.Options) (source.Source, error) { return q, nil }, Point: point, Worker: w, Clock: clock.Boot(), Log: hclog.NewNullLogger()})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	measure(b, q, func() func() {
		go func() { ended <- c.Run(ctx, context.Background()) }()
		return func() {
			stop()
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
	})
}

// runLoop is the loop by hand.
func runLoop(b *testing.B, q *list, batch int, call func([]*source.Message) error) {
	measure(b, q, func() func() {
		var wg sync.WaitGroup
		for range benchSlots {
			wg.Go(func() {
				for {
					msgs, err := q.Receive(context.Background(), batch)
					if err != nil {
						return
					}
					if err := call(msgs); err != nil {
						b.Error(err)
					}
					if err := q.Ack(context.Background(), msgs...); err != nil {
						b.Error(err)
					}
				}
			})
		}
		return func() { q.Close(context.Background()); wg.Wait() }
	})
}

func upperServer(b *testing.B) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.Header.Get("Content-Type") == "application/x-ndjson" {
			for line := range bytes.Lines(body) {
				id, _, _ := bytes.Cut(line[len(`{"id":"`):], []byte(`"`))
				fmt.Fprintf(w, "{\"id\":%q}\n", id)
			}
			return
		}
		w.Write(body)
	}))
	b.Cleanup(srv.Close)
	return srv
}

func handClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: benchSlots, DisableCompression: true}}
}

func post(b *testing.B, client *http.Client, url, kind string, body []byte) error {
	resp, err := client.Post(url, kind, bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	return err
}

func BenchmarkHTTP(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1024)
	b.Run("loop", func(b *testing.B) {
		srv, client := upperServer(b), handClient()
		runLoop(b, newList(b.N, body), 1, func(ms []*source.Message) error {
			return post(b, client, srv.URL, "application/octet-stream", ms[0].Body)
		})
	})
	b.Run("coordinator", func(b *testing.B) {
		runCoordinator(b, newList(b.N, body), 1, nil, worker.NewHTTP(upperServer(b).URL))
	})
	b.Run("coordinator+journal", func(b *testing.B) {
		runCoordinator(b, newList(b.N, body), 1, commit.Journal{KV: &memoryKV{}}, worker.NewHTTP(upperServer(b).URL))
	})
}

func BenchmarkBatch100(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1024)
	b.Run("loop", func(b *testing.B) {
		srv, client := upperServer(b), handClient()
		runLoop(b, newList(b.N, body), 100, func(ms []*source.Message) error {
			var buf bytes.Buffer
			for _, m := range ms {
				fmt.Fprintf(&buf, "{\"id\":%q,\"body\":%q}\n", m.ID, m.Body)
			}
			return post(b, client, srv.URL, "application/x-ndjson", buf.Bytes())
		})
	})
	b.Run("coordinator", func(b *testing.B) {
		w := worker.NewHTTP(upperServer(b).URL)
		w.Batch = 100
		runCoordinator(b, newList(b.N, body), 100, nil, w)
	})
}

func BenchmarkExec(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 1024)
	b.Run("loop", func(b *testing.B) {
		work, done := b.TempDir(), b.TempDir()
		runLoop(b, newList(b.N, body), 1, func(ms []*source.Message) error { return execByHand(work, done, ms[0]) })
	})
	for name, sync := range map[string]bool{"coordinator": false, "coordinator+fsync": true} {
		b.Run(name, func(b *testing.B) {
			w := &worker.Exec{Folders: worker.Folders{Work: b.TempDir()}, Command: []string{"/bin/cp", "input", "out/copy"}, Codes: worker.DefaultExitCodes(), Grace: time.Second}
			if err := w.Open(); err != nil {
				b.Fatal(err)
			}
			runCoordinator(b, newList(b.N, body), 1, commit.Rename{Dir: b.TempDir(), Sync: sync}, w)
		})
	}
}

// execByHand is the same without any care: a folder, the input, the command, and a rename.
func execByHand(work, done string, m *source.Message) error {
	dir := filepath.Join(work, m.ID)
	if err := os.MkdirAll(filepath.Join(dir, "out"), 0o777); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "input"), m.Body, 0o666); err != nil {
		return err
	}
	p, err := os.StartProcess("/bin/cp", []string{"cp", "input", "out/copy"}, &os.ProcAttr{Dir: dir})
	if err != nil {
		return err
	}
	if _, err := p.Wait(); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "out"), filepath.Join(done, m.ID)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
