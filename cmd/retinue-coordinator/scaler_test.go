package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial/every"
	"retinue/internal/consulkit/consultest"
)

func TestMain(m *testing.M) {
	if os.Getenv("RETINUE_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// nomad is as much of it as a scaler asks: the job thumbs and the count of its workers.
type nomad struct {
	mu    sync.Mutex
	count int
	index uint64
}

func (n *nomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case r.URL.Path == "/v1/jobs":
		json.NewEncoder(w).Encode([]map[string]any{{"ID": "thumbs", "JobModifyIndex": n.index, "ModifyIndex": n.index}})
	case r.URL.Path != "/v1/job/thumbs/scale":
		http.Error(w, "job not found", http.StatusNotFound)
	case r.Method == http.MethodGet:
		json.NewEncoder(w).Encode(map[string]any{"JobModifyIndex": n.index, "TaskGroups": map[string]any{"worker": map[string]int{"Desired": n.count, "Placed": n.count, "Running": n.count}}})
	default:
		var req struct{ Count int }
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		n.count = req.Count
		n.index++
		w.Write([]byte("{}"))
	}
}

func (n *nomad) is(check func(count int) bool) func() error {
	return func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if !check(n.count) {
			return fmt.Errorf("the count is %d", n.count)
		}
		return nil
	}
}

// A queue on Kafka has the workers that its depth asks for: some while there is work, those with items in flight too, then none.
func TestScalerOnKafka(t *testing.T) {
	agent := consultest.Start(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	broker := "kafka://" + cluster.ListenAddrs()[0] + "/queue?partitions=2"
	jobs := &nomad{index: 7}
	api := httptest.NewServer(jobs)
	defer api.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	queue, err := every.Open(ctx, broker, source.Options{Queue: "thumbs", Lease: 10 * time.Second, Prefetch: 8, Classes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer queue.Close(context.WithoutCancel(ctx))

	var log strings.Builder
	scaler := exec.Command(os.Args[0], "scaler", "--queue", "thumbs", "--broker", broker, "--job", "thumbs", "--nomad", api.URL, "--slots", "1", "--max", "3",
		"--target", "1s", "--cooldown", "500ms", "--interval", "200ms", "--listen", "tcp://127.0.0.1:0")
	scaler.Env = append(os.Environ(), "RETINUE_TEST_MAIN=1", "CONSUL_HTTP_ADDR="+agent.Addr, "NOMAD_TOKEN=a-workload-identity")
	scaler.Stdout, scaler.Stderr = &log, &log
	if err := scaler.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			scaler.Process.Signal(syscall.SIGTERM)
			if err := scaler.Wait(); err != nil {
				t.Errorf("the scaler ended with %v", err)
			}
		}
	}
	defer func() {
		end()
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	await := func(what string, is func() error) {
		t.Helper()
		for last := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			err := is()
			if err == nil {
				return
			}
			if time.Now().After(last) {
				t.Fatalf("not within 40 s: %s: %v", what, err)
			}
		}
	}

	var outs []source.Out
	for i := range 6 {
		outs = append(outs, source.Out{ID: fmt.Sprint("i", i), Body: []byte("x")})
	}
	if err := queue.Publish(ctx, outs...); err != nil {
		t.Fatal(err)
	}
	await("three workers for six items of a second", jobs.is(func(n int) bool { return n == 3 }))
	var taken []*source.Message
	for len(taken) < 6 {
		ms, err := queue.Receive(ctx, 8)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, ms...)
	}
	if err := queue.Ack(ctx, taken[:5]...); err != nil {
		t.Fatal(err)
	}
	await("one worker for the item in flight", jobs.is(func(n int) bool { return n == 1 }))
	if err := queue.Ack(ctx, taken[5]); err != nil {
		t.Fatal(err)
	}
	await("none for nothing", jobs.is(func(n int) bool { return n == 0 }))
	end()
}
