// Package obs is how a helper speaks to the people who run it: one logger
// with the field's format (JSON lines beside a container, text on a
// terminal), state changes at Info and everything else at Debug.
package obs

import (
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/term"

	"retinue/internal/hint"
)

// Logger writes to w, named name, at level (trace, debug, info, warn, error). On a terminal it writes text, elsewhere JSON.
func Logger(w io.Writer, name, level string) (hclog.Logger, error) {
	l := hclog.LevelFromString(level)
	if l == hclog.NoLevel {
		return nil, hint.Wrap(fmt.Errorf("log level %q is unknown", level), "use trace, debug, info, warn or error")
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: l, Output: w, JSONFormat: !terminal(w)}), nil
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
