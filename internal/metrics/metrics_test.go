package metrics

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Prometheus' own parser reads what is shown, and finds in it what was counted.
func TestPage(t *testing.T) {
	a, b := New("queue", `q"1\`+"\n"), New()
	c := a.Counters("x_total", "How often.\nSecond \\ line.", "kind", "how")
	c.With("a", "b").Inc()
	c.With("a", "b").Add(2)
	c.With("a", "c").Inc()
	b.Counter("alone_total", "One.").Inc()
	h := a.Histograms("took_seconds", "How long.", Exponential(0.001, 10, 3), "verdict")
	h.With("ok").Observe(time.Millisecond)
	h.With("ok").Observe(2 * time.Millisecond)
	h.With("ok").Observe(time.Hour)
	b.Histogram("empty_seconds", "Nothing yet.", []float64{1})
	a.Gauge("depth", "Now.", func() float64 { return -1.5 })
	b.Scrape(func(p *Page) {
		p.Gauge("depth", "Now.", 3e9, "state", "other")
		p.Counter("read_total", "Read.", 7)
	})
	w := httptest.NewRecorder()
	Handler(a, b).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	label := func(name string, metric int) map[string]string {
		got := map[string]string{}
		for _, l := range families[name].Metric[metric].Label {
			got[l.GetName()] = l.GetValue()
		}
		return got
	}
	x := families["x_total"]
	if x.GetHelp() != "How often.\nSecond \\ line." || x.GetType().String() != "COUNTER" || len(x.Metric) != 2 || x.Metric[0].Counter.GetValue() != 3 {
		t.Errorf("%v", x)
	}
	if l := label("x_total", 1); l["queue"] != `q"1\`+"\n" || l["kind"] != "a" || l["how"] != "c" {
		t.Errorf("%v", l)
	}
	took := families["took_seconds"].Metric[0].Histogram
	if took.GetSampleCount() != 3 || took.GetSampleSum() < 3600 || len(took.Bucket) != 4 || took.Bucket[0].GetCumulativeCount() != 1 || took.Bucket[1].GetCumulativeCount() != 2 || took.Bucket[3].GetCumulativeCount() != 3 {
		t.Errorf("%v", took)
	}
	if d := families["depth"]; len(d.Metric) != 2 || d.Metric[0].Gauge.GetValue() != -1.5 || d.Metric[1].Gauge.GetValue() != 3e9 {
		t.Errorf("%v", d)
	}
	for _, name := range []string{"alone_total", "read_total", "empty_seconds", "process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total", "go_goroutines", "go_memstats_heap_inuse_bytes"} {
		if families[name] == nil {
			t.Errorf("%s is missing in\n%s", name, text)
		}
	}
}
