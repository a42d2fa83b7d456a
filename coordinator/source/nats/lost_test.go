package nats

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"retinue/coordinator/source"
)

// silentBroker answers as JetStream does for a queue with one class, and leaves out what silent says.
type silentBroker struct {
	t  *testing.T
	nc *nats.Conn

	mu     sync.Mutex
	seen   map[string]int
	silent func(call string, n int) bool
	// leaderless: nobody is there for requests, as the server itself tells then
	leaderless atomic.Bool
}

// startSilent starts it on a server of its own; silent is called with the call's name and its number among those of that name.
func startSilent(t *testing.T, silent func(call string, n int) bool) (*silentBroker, string) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(srv.Shutdown)
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("no server")
	}
	b := &silentBroker{t: t, seen: map[string]int{}, silent: silent}
	if b.nc, err = nats.Connect(srv.ClientURL()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.nc.Close)
	if _, err := b.nc.Subscribe("$JS.API.>", b.answer); err != nil {
		t.Fatal(err)
	}
	if err := b.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return b, srv.ClientURL()
}

func (b *silentBroker) answer(msg *nats.Msg) {
	words := strings.Split(msg.Subject, ".")
	call := strings.Join(words[2:4], ".")
	if call == "CONSUMER.MSG" {
		call = "NEXT"
		if strings.Contains(string(msg.Data), "no_wait") {
			call = "NOW"
		}
	}
	b.mu.Lock()
	b.seen[call]++
	n := b.seen[call]
	b.mu.Unlock()
	if b.silent(call, n) {
		return
	}
	if b.leaderless.Load() && (call == "NEXT" || call == "NOW") {
		b.status(msg.Reply, "503")
		return
	}
	var answer any
	switch call {
	case "NEXT":
		return // nothing comes
	case "NOW":
		b.status(msg.Reply, "404")
		return
	case "STREAM.INFO":
		answer = map[string]any{"config": map[string]any{"name": "QUEUE_q"}}
	case "CONSUMER.INFO", "CONSUMER.CREATE":
		answer = map[string]any{"name": "class0", "stream_name": "QUEUE_q", "config": map[string]any{"durable_name": "class0", "ack_wait": time.Minute}}
	}
	data, err := json.Marshal(answer)
	if err != nil {
		b.t.Error(err)
	}
	if err := msg.Respond(data); err != nil {
		b.t.Error(err)
	}
}

func (b *silentBroker) status(to, code string) {
	if err := b.nc.PublishMsg(&nats.Msg{Subject: to, Header: nats.Header{"Status": {code}}}); err != nil {
		b.t.Error(err)
	}
}

func (b *silentBroker) count(call string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[call]
}

func openSilent(t *testing.T, url string, lease time.Duration) *Source {
	t.Helper()
	s, err := Open(t.Context(), Config{URL: url, Options: source.Options{Queue: "q", Lease: lease}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(t.Context()) })
	return s
}

// The broker that knew of a Receive that waits was killed: another is asked soon, not when the request would have ended.
func TestForgottenRequestIsRepeated(t *testing.T) {
	t.Parallel()
	b, url := startSilent(t, func(string, int) bool { return false })
	took := b.receive(openSilent(t, url, time.Minute), 2)
	if took < silence-time.Second || took > waitFor/2 {
		t.Errorf("asked again after %v, want %v", took, silence)
	}
}

// receive waits in a Receive until that has asked n times, and returns how long it took.
func (b *silentBroker) receive(s *Source, n int) time.Duration {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*waitFor)
	defer cancel()
	go func() {
		for b.count("NEXT") < n && pause(ctx, time.Millisecond) {
		}
		cancel()
	}()
	began := time.Now()
	if _, err := s.Receive(ctx, 1); !errors.Is(err, context.Canceled) {
		b.t.Errorf("asked %d times, %v", b.count("NEXT"), err)
	}
	return time.Since(began)
}

// Nobody leads the brokers: what only their leader answers fails after a while, so that it is asked again.
func TestUnansweredQuestionIsGivenUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		silent string
		do     func(*Source) error
	}{
		"receive looks":   {"CONSUMER.INFO", func(s *Source) error { _, err := s.Receive(t.Context(), 1); return err }},
		"receive changes": {"CONSUMER.CREATE", func(s *Source) error { _, err := s.Receive(t.Context(), 1); return err }},
		"depth":           {"STREAM.INFO", func(s *Source) error { _, err := s.Depth(t.Context()); return err }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var from sync.Map
			_, url := startSilent(t, func(call string, _ int) bool { _, on := from.Load(call); return on })
			s := openSilent(t, url, 30*time.Second) // not what the consumer has
			from.Store(c.silent, true)
			done := make(chan error, 1)
			go func() { done <- c.do(s) }()
			select {
			case err := <-done:
				if !errors.Is(err, source.ErrUnavailable) {
					t.Errorf("got %v", err)
				}
			case <-time.After(3 * patience):
				t.Error("it waits on")
			}
		})
	}
}

// Who has the lease that the consumer has changes nothing: that would need the leader of all brokers.
func TestReceiveWithoutALeaderOfAll(t *testing.T) {
	t.Parallel()
	b, url := startSilent(t, func(call string, _ int) bool { return call == "CONSUMER.CREATE" })
	b.receive(openSilent(t, url, time.Minute), 1)
	if n := b.count("CONSUMER.CREATE"); n != 0 {
		t.Errorf("the consumer was changed %d times", n)
	}
}

// While nobody leads the consumer the broker is asked now and then, not all the time.
func TestNobodyLeadsTheConsumer(t *testing.T) {
	t.Parallel()
	b, url := startSilent(t, func(string, int) bool { return false })
	s := openSilent(t, url, time.Minute)
	b.leaderless.Store(true)
	const n = 8
	if took := b.receive(s, n); took < (n-2)*again || took > 10*n*again {
		t.Errorf("asked %d times in %v", n, took)
	}
}
