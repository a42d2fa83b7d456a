package gather

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"retinue/internal/hint"
)

func static(s *Settings) {
	s.Leaf.Static = []string{"0=http://127.0.0.1:1", "1=http://127.0.0.1:2,http://127.0.0.1:3"}
}

func TestDefaults(t *testing.T) {
	s := DefaultSettings()
	static(&s)
	c, err := s.Config()
	if err != nil {
		t.Fatal(err)
	}
	if c.Shards != 2 || len(c.Static[1]) != 2 || c.Hedge.Quantile != 0.985 || c.Hedge.Max != 1 || c.Policy.Kind != PolicyFail || c.MaxGathered != 64<<20 || c.Eject.Limit != 5*time.Minute || c.Reserve != 0 {
		t.Errorf("%+v", c)
	}
	s.Leaf.Shards = 101
	if c, _ = s.Config(); c.Hedge.Max != 2 {
		t.Errorf("%d hedges with 101 shards", c.Hedge.Max)
	}
}

// TestTheReadmesFile reads the example of the README.
func TestTheReadmesFile(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```hcl\n(.*?)```").FindSubmatch(readme)
	s := DefaultSettings()
	if err := s.Decode("readme.hcl", block[1]); err != nil {
		t.Fatal(err)
	}
	c, err := s.Config()
	if err != nil || c.Name != "search" || c.Service != "search-leaf" || c.Shards != 16 || !c.Hedge.Methods["POST"] || c.Policy.MinCoverage != 0.95 || c.Hedge.Min != 2*time.Millisecond || c.Merge.Kind != MergeContainer {
		t.Errorf("%+v %v", c, err)
	}
}

func TestWrongFile(t *testing.T) {
	for src, want := range map[string]string{
		`scatter "x" { lisen = ":1" }`:             "x.hcl:1",
		"scatter \"x\" {\n  hedge {\n    budget =": "x.hcl:3",
		"scatter \"x\" {}\nscatter \"y\" {}\n":     "2 scatter blocks",
		``:                                         "0 scatter blocks",
		`scatter "x" { leaf { shards = "many" } }`: "x.hcl:1",
	} {
		s := DefaultSettings()
		if err := s.Decode("x.hcl", []byte(src)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", src, err, want)
		}
	}
}

func TestWrongSettings(t *testing.T) {
	for name, change := range map[string]func(*Settings){
		"no leaves":         func(s *Settings) { s.Leaf.Static = nil },
		"service, no count": func(s *Settings) { s.Leaf.Static, s.Leaf.Service = nil, "x" },
		"shard above":       func(s *Settings) { s.Leaf.Shards = 1 },
		"a gap":             func(s *Settings) { s.Leaf.Static = []string{"0=http://127.0.0.1:1", "2=http://127.0.0.1:1"} },
		"leaf":              func(s *Settings) { s.Leaf.Static = []string{"0=127.0.0.1:1"} },
		"leaf https":        func(s *Settings) { s.Leaf.Static = []string{"0=https://127.0.0.1:1"} },
		"weight":            func(s *Settings) { s.Leaf.Weights = []string{"0=0"} },
		"weight NaN":        func(s *Settings) { s.Leaf.Weights = []string{"0=NaN"} },
		"weight above":      func(s *Settings) { s.Leaf.Weights = []string{"7=1"} },
		"own header":        func(s *Settings) { s.Leaf.Headers = []string{"retinue-hop"} },
		"merge":             func(s *Settings) { s.Merge.URL = "average" },
		"top-k":             func(s *Settings) { s.Merge.URL = "top-k()" },
		"format":            func(s *Settings) { s.Merge.Format = "xml" },
		"policy":            func(s *Settings) { s.Partial.Policy = "most" },
		"quorum":            func(s *Settings) { s.Partial.Policy = "quorum(3)" },
		"shard key":         func(s *Settings) { s.Route.ShardBy = "cookie:x" },
		"two routes":        func(s *Settings) { s.Route.ShardBy, s.Route.URL = "query:x", "http://127.0.0.1:1" },
		"deadline":          func(s *Settings) { s.Deadline.Default = "3s" },
		"reserve":           func(s *Settings) { s.Merge.Reserve = "1s" },
		"budget":            func(s *Settings) { s.Hedge.Budget = "101%" },
		"quantile":          func(s *Settings) { s.Hedge.Quantile = "0" },
		"methods":           func(s *Settings) { s.Hedge.Methods = []string{"POST"} },
		"eject":             func(s *Settings) { s.Eject.For = "5m..10s" },
		"wait":              func(s *Settings) { s.Partial.WaitAfter = "0.3" },
		"limits":            func(s *Settings) { s.Limits.Gathered = "1MiB" },
		"bytes":             func(s *Settings) { s.Limits.Request = "9999999999999999999" },
		"listen":            func(s *Settings) { s.Listen = "8080" },
		"name":              func(s *Settings) { s.Name = "a b" },
	} {
		s := DefaultSettings()
		static(&s)
		change(&s)
		if _, err := s.Config(); err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error()+hint.Of(err), "%!") {
			t.Errorf("%s: %v (%s)", name, err, hint.Of(err))
		}
	}
}
