package driver

import (
	"errors"
	"io"
)

// endOfStream is nil for the end that a stream comes to by itself.
func endOfStream(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
