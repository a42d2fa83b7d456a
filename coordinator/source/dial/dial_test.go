package dial

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/broker"
	"retinue/coordinator/source"
)

func TestAddressesAreChecked(t *testing.T) {
	for _, address := range []string{
		"", "127.0.0.1:4222", "http://127.0.0.1", "nats://127.0.0.1:1?replicas=x", "redis://127.0.0.1:1?fifo=true", "amqp://127.0.0.1:1/?consumer_timeout=30",
		"nats://u:secret@[::1", "stomp://127.0.0.1:1?fifo=true", "kafka://127.0.0.1:1?acks=1", "stomp://u:secret@127.0.0.1:1/vhost",
	} {
		s, err := Open(t.Context(), address, source.Options{Queue: "q"})
		if s != nil || !errors.Is(err, source.ErrConfig) {
			t.Errorf("%s: %v, %v", address, s, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the password stands in %q", err)
		}
	}
}

// Where nobody listens, every broker says so, and a nil source stays nil.
func TestNobodyListens(t *testing.T) {
	for _, address := range []string{"nats://127.0.0.1:1", "redis://127.0.0.1:1", "amqp://127.0.0.1:1/", "stomp://127.0.0.1:1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		s, err := Open(ctx, address, source.Options{Queue: "q"})
		cancel()
		if s != nil || !errors.Is(err, source.ErrUnavailable) {
			t.Errorf("%s: %v, %v", address, s, err)
		}
	}
}

func TestOpen(t *testing.T) {
	b, err := broker.Start(t.Context(), broker.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", User: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	s, err := Open(t.Context(), "nats://u:p@"+b.Addr()+"?replicas=1", source.Options{Queue: "q"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Caps().Broker != "nats" {
		t.Errorf("it is %+v", s.Caps())
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
