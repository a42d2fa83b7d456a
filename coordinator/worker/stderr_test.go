package worker

import (
	"strings"
	"testing"
	"time"

	"retinue/coordinator/item"
)

// The end of stderr is kept, however much it is, and who left the process group with it in hand is not waited for.
func TestStderr(t *testing.T) {
	for script, end := range map[string]string{
		"seq 1 200000 >&2; exit 1":                               "\n199999\n200000\n",
		"seq 1 200000 | head -c 8191 >&2; exit 1":                "",
		"echo first >&2; setsid sleep 5 >&2 & sleep 0.2; exit 1": "first\n",
		"exec 2>&-; exit 1":                                      "",
	} {
		w := shell(t, script, nil)
		start := time.Now()
		v := w.Call(t.Context(), []*item.Task{task("i", "x")})[0]
		w.Discard(v.Output)
		if took := time.Since(start); v.Kind != Retry || !strings.HasSuffix(v.Stderr, end) || len(v.Stderr) > keptStderr || took > 4*time.Second {
			t.Errorf("%s: %s %q after %s", script, v.Kind, v.Stderr, took)
		}
		if want := min(len(end), 1); strings.Contains(script, "seq") && len(v.Stderr) < keptStderr-100 || len(v.Stderr) < want {
			t.Errorf("%s: only %d bytes of stderr", script, len(v.Stderr))
		}
	}
}
