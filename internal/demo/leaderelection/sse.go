package leaderelection

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// readEvents reads a stream of server-sent events and calls next with the name
// of each until it says false, which is no error, or the stream ends, which is.
func readEvents(r io.Reader, next func(event string) bool) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if event, ok := strings.CutPrefix(lines.Text(), "event:"); ok && !next(strings.TrimSpace(event)) {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("event stream: %w", err)
	}
	return io.ErrUnexpectedEOF
}
