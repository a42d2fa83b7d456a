package manage

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Prefix begins the command lines of `nomad alloc exec` that are meant for the driver.
const Prefix = "@retinue"

const execUsage = "usage: nomad alloc exec ALLOC @retinue METHOD /v1/PATH [BODY]\nGET /v1/openapi.json lists the paths\n"

// ServeExec answers `nomad alloc exec ALLOC @retinue METHOD PATH [BODY]`: the body goes to stdout, and the exit code is 0
// for a status of 2xx, 1 for any other, 2 for wrong use. mine is false for a command line that is the task's own.
func ServeExec(ctx context.Context, h http.Handler, argv []string, stdout, stderr io.Writer) (code int, mine bool) {
	if len(argv) == 0 || argv[0] != Prefix {
		return 0, false
	}
	if len(argv) < 3 || len(argv) > 4 || !strings.HasPrefix(argv[2], "/") {
		_, _ = io.WriteString(stderr, execUsage)
		return 2, true
	}
	body := strings.Join(argv[3:], "")
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(argv[1]), "http://retinue"+argv[2], strings.NewReader(body))
	if err != nil {
		fmt.Fprintf(stderr, "%v\n%s", err, execUsage)
		return 2, true
	}
	w := &execWriter{header: http.Header{}, stdout: stdout}
	h.ServeHTTP(w, req)
	if w.status/100 > 2 {
		return 1, true
	}
	return 0, true
}

// execWriter is the answer to a request that came as a command line.
type execWriter struct {
	header http.Header
	status int
	stdout io.Writer
}

func (w *execWriter) Header() http.Header { return w.header }

func (w *execWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *execWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.stdout.Write(p)
}

// Flush does nothing: every write goes out at once.
func (w *execWriter) Flush() {}
