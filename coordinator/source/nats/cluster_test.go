package nats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
)

// Three brokers with copies of a queue lose nothing when one after the other is killed, and go on with two.
func TestThreeBrokers(t *testing.T) {
	t.Parallel()
	var clients, peers []string
	for range 3 {
		clients = append(clients, sourcetest.Loopback(sourcetest.Port(t)))
		peers = append(peers, sourcetest.Loopback(sourcetest.Port(t)))
	}
	var servers []*sourcetest.Server
	for i, addr := range clients {
		of := append([]string{fmt.Sprint("b", i), peers[i]}, append(append([]string{}, peers[:i]...), peers[i+1:]...)...)
		cmd := sourcetest.Role(t, "broker", serverVariable+"="+addr, storeVariable+"="+t.TempDir(), clusterVariable+"="+strings.Join(of, " "))
		servers = append(servers, sourcetest.StartServer(t, cmd, sourcetest.Listens(addr)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	url := "nats://u:p@" + strings.Join(clients, ",nats://u:p@")
	var s *Source
	for s == nil { // until they have found each other
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		var err error
		if s, err = Open(try, Config{URL: url, Replicas: 3, Options: source.Options{Queue: "three", Lease: 2 * time.Second, Prefetch: 50}}); err != nil {
			s = nil
			t.Log(err)
			time.Sleep(200 * time.Millisecond)
		}
		cancel()
		if ctx.Err() != nil {
			t.Fatal("no cluster came about")
		}
	}
	defer s.Close(context.Background())
	expected := map[string]bool{}
	publish := func(round int) {
		var outs []source.Out
		for i := range 50 {
			outs = append(outs, source.Out{ID: fmt.Sprintf("r%d-%d", round, i), Body: []byte("x")})
		}
		for {
			try, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := s.Publish(try, outs...)
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, out := range outs {
			expected[out.ID] = true
		}
	}
	publish(0)
	for i, srv := range servers {
		srv.Kill()
		publish(i + 1) // two of three are enough
		srv.Start()
		time.Sleep(time.Second) // it catches up
	}
	for missing := len(expected); missing > 0; missing = len(expected) {
		try, cancel := context.WithTimeout(ctx, 20*time.Second)
		ms, err := s.Receive(try, 50)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%d messages are lost", missing)
		}
		if err != nil {
			t.Log(err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if err := s.Ack(ctx, ms...); err != nil {
			t.Log(err)
			continue
		}
		for _, m := range ms {
			delete(expected, m.ID)
		}
	}
}
