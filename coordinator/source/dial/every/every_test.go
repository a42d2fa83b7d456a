package every

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest/sqsfake"
)

func TestAddresses(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "good")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	for address, want := range map[string]error{
		"kafka://127.0.0.1:1": source.ErrUnavailable,
		"kafkas://u:secret@127.0.0.1:1/work?sasl=plain&partitions=3&replicas=1&session=10s": source.ErrUnavailable,
		"kafka://127.0.0.1:1?acks=1":                           source.ErrConfig,
		"kafka://u:secret@127.0.0.1:1?sasl=x":                  source.ErrConfig,
		"kafka://u@127.0.0.1:1?password_file=/does/not/exist":  source.ErrConfig,
		"kafka://127.0.0.1:1/a b":                              source.ErrConfig,
		"kafka://127.0.0.1:1?session=10":                       source.ErrConfig,
		"kafka://u:secret@127.0.0.1:1,127.0.0.1:2?partitions=": source.ErrUnavailable,
		"sqs://us-east-1?endpoint=http://127.0.0.1:1":          source.ErrUnavailable,
		"sqs://us-east-1/queue":                                source.ErrConfig,
		"sqs://key:secret@us-east-1":                           source.ErrConfig,
		"sqs://us-east-1?fifo=perhaps":                         source.ErrConfig,
		"nats://127.0.0.1:1":                                   source.ErrUnavailable,
		"ftp://127.0.0.1:1":                                    source.ErrConfig,
		"sqs://u:secret@[::1":                                  source.ErrConfig,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		s, err := Open(ctx, address, source.Options{Queue: "q"})
		cancel()
		if s != nil || !errors.Is(err, want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", address, s, err)
		}
	}
}

// The address reaches the queues that it names.
func TestSQS(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "good")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	fake, err := sqsfake.New(t.TempDir(), "good", 12*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(fake)
	defer server.Close()
	for _, address := range []string{"sqs://us-east-1?endpoint=" + server.URL, "sqs://us-east-1/?fifo=true&endpoint=" + server.URL} {
		s, err := Open(t.Context(), address, source.Options{Queue: "q"})
		if err != nil {
			t.Fatal(err)
		}
		fifo := strings.Contains(address, "fifo")
		if c := s.Caps(); c.Broker != "sqs" || c.KeyOrder != fifo {
			t.Errorf("%s: %+v", address, c)
		}
		if err := s.Publish(t.Context(), source.Out{ID: "a", Body: []byte("x")}); err != nil {
			t.Error(err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
