//go:build !kafka

package dial

import (
	"context"
	"fmt"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// openKafka says why there is none: its client would cost every helper 1.5 MB of memory, which is more than is left.
func openKafka(context.Context, params, source.Options) (source.Source, error) {
	return nil, hint.Wrap(fmt.Errorf("%w: this program was built without Kafka", source.ErrConfig), "build it with: go build -tags kafka ./cmd/retinue")
}
