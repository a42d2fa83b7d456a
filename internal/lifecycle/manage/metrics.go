package manage

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"retinue/internal/lifecycle"
)

// metrics gives the application's own metrics, and the driver's of the task after them, in the text format of Prometheus.
func (h *handlers) metrics(w http.ResponseWriter, r *http.Request) {
	source := r.URL.Query().Get("source")
	if !slices.Contains([]string{"", "application", "driver"}, source) {
		refuse(w, http.StatusBadRequest, "bad_request", "source="+source, "source is application or driver; without it both are given")
		return
	}
	if source != "driver" {
		passed := h.app.pass(w, r, "/metrics")
		if !passed && source == "application" {
			refuse(w, http.StatusNotFound, "no_metrics", "the application has no /metrics on its socket", "serve it on $RETINUE_SOCK, or ask for source=driver")
			return
		}
		if source == "application" {
			return
		}
		if passed {
			// The application's text may end without a newline.
			_, _ = w.Write([]byte("\n"))
		}
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	}
	_, _ = w.Write(h.driverMetrics(r))
}

// driverMetrics writes the text format by hand: the names are few, and the application's text has to stand before it.
func (h *handlers) driverMetrics(r *http.Request) []byte {
	var b bytes.Buffer
	info := h.task.Info()
	labels := fmt.Sprintf("{job=%s,group=%s,task=%s,alloc=%s}", label(info.Job), label(info.Group), label(info.Task), label(info.Alloc))
	gauge := func(name, kind, help string, value float64) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s%s %s\n", name, help, name, kind, name, labels, strconv.FormatFloat(value, 'g', -1, 64))
	}
	s := h.task.Engine().Status()
	if u, err := h.task.Usage(r.Context()); err == nil {
		gauge("retinue_task_cpu_seconds_total", "counter", "CPU time the task has used.", u.CPUSeconds)
		gauge("retinue_task_memory_bytes", "gauge", "Memory the task uses.", float64(u.MemoryBytes))
		gauge("retinue_task_processes", "gauge", "Processes of the task.", float64(u.Processes))
		if u.Threads > 0 {
			gauge("retinue_task_threads", "gauge", "Threads of the task.", float64(u.Threads))
		}
	}
	ready := 0.0
	if s.Ready {
		ready = 1
	}
	gauge("retinue_task_ready", "gauge", "1 while the task takes requests.", ready)
	gauge("retinue_task_phase_seconds", "gauge", "How long the task has been in its phase.", s.For.Seconds())
	fmt.Fprintf(&b, "# HELP retinue_task_phase 1 for the phase the task is in.\n# TYPE retinue_task_phase gauge\nretinue_task_phase%s,phase=%s} 1\n", strings.TrimSuffix(labels, "}"), label(string(s.Phase)))
	if len(s.Hooks) > 0 {
		b.WriteString("# HELP retinue_task_hook_seconds How long a hook took the last time.\n# TYPE retinue_task_hook_seconds gauge\n")
		for _, spec := range lifecycle.Hooks() {
			if report, ok := s.Hooks[spec.Name]; ok {
				result := "ok"
				if report.Result != "ok" {
					result = "failed"
				}
				fmt.Fprintf(&b, "retinue_task_hook_seconds%s,hook=%s,result=%s} %s\n", strings.TrimSuffix(labels, "}"), label(string(spec.Name)), label(result), strconv.FormatFloat(report.Took.Seconds(), 'g', -1, 64))
			}
		}
	}
	return b.Bytes()
}

// label quotes a label's value.
func label(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(s) + `"`
}
