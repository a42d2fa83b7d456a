//go:build kafka

package dial

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/source"
)

func TestKafka(t *testing.T) {
	for address, want := range map[string]error{
		"kafka://127.0.0.1:1": source.ErrUnavailable,
		"kafkas://u:secret@127.0.0.1:1/work?sasl=plain&partitions=3&replicas=1&session=10s": source.ErrUnavailable,
		"kafka://127.0.0.1:1?acks=1":                           source.ErrConfig,
		"kafka://u:secret@127.0.0.1:1?sasl=x":                  source.ErrConfig,
		"kafka://u@127.0.0.1:1?password_file=/does/not/exist":  source.ErrConfig,
		"kafka://127.0.0.1:1/a b":                              source.ErrConfig,
		"kafka://127.0.0.1:1?session=10":                       source.ErrConfig,
		"kafka://u:secret@127.0.0.1:1,127.0.0.1:2?partitions=": source.ErrUnavailable,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		s, err := Open(ctx, address, source.Options{Queue: "q"})
		cancel()
		if s != nil || !errors.Is(err, want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", address, s, err)
		}
	}
}
