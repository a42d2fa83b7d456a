package gather

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"

	"retinue/internal/hint"
)

// Settings are the configuration of a root as people write it, in flags or in a file. Config is what they mean.
type Settings struct {
	Name     string            `hcl:"name,label"`
	Listen   string            `hcl:"listen,optional"`
	Admin    []string          `hcl:"admin,optional"`
	Stream   bool              `hcl:"stream,optional"`
	MaxHops  int               `hcl:"max_hops,optional"`
	Leaf     *LeafSettings     `hcl:"leaf,block"`
	Merge    *MergeSettings    `hcl:"merge,block"`
	Route    *RouteSettings    `hcl:"route,block"`
	Deadline *DeadlineSettings `hcl:"deadline,block"`
	Hedge    *HedgeSettings    `hcl:"hedge,block"`
	Retry    *RetrySettings    `hcl:"retry,block"`
	Eject    *EjectSettings    `hcl:"eject,block"`
	Partial  *PartialSettings  `hcl:"partial,block"`
	Limits   *LimitSettings    `hcl:"limits,block"`
}

// LeafSettings say where the leaves are.
type LeafSettings struct {
	Service string   `hcl:"service,optional"`
	Shards  int      `hcl:"shards,optional"`
	Static  []string `hcl:"static,optional"`
	Weights []string `hcl:"weights,optional"`
	Path    string   `hcl:"path,optional"`
	Headers []string `hcl:"headers,optional"`
}

// MergeSettings say what makes one answer of many.
type MergeSettings struct {
	URL     string `hcl:"url,optional"`
	Format  string `hcl:"format,optional"`
	Reserve string `hcl:"reserve,optional"`
}

// RouteSettings say which shards a request needs.
type RouteSettings struct {
	ShardBy string `hcl:"shard_by,optional"`
	URL     string `hcl:"url,optional"`
}

// DeadlineSettings bound the time of a request.
type DeadlineSettings struct {
	Default  string `hcl:"default,optional"`
	Max      string `hcl:"max,optional"`
	PerLevel string `hcl:"per_level,optional"`
}

// HedgeSettings say when a slow leaf call gets a second copy.
type HedgeSettings struct {
	Quantile   string   `hcl:"quantile,optional"`
	Budget     string   `hcl:"budget,optional"`
	Min        string   `hcl:"min,optional"`
	MaxPerLeaf int      `hcl:"max_per_leaf,optional"`
	Methods    []string `hcl:"methods,optional"`
}

// RetrySettings bound retries of failed leaf calls.
type RetrySettings struct {
	Budget string `hcl:"budget,optional"`
}

// EjectSettings say when a replica is left alone for a while.
type EjectSettings struct {
	Consecutive int    `hcl:"consecutive,optional"`
	Ratio       string `hcl:"ratio,optional"`
	Max         string `hcl:"max,optional"`
	For         string `hcl:"for,optional"`
}

// PartialSettings say which partial answers are answers.
type PartialSettings struct {
	Policy    string `hcl:"policy,optional"`
	WaitAfter string `hcl:"wait_after,optional"`
}

// LimitSettings bound memory and concurrency.
type LimitSettings struct {
	Request      string `hcl:"request,optional"`
	LeafResponse string `hcl:"leaf_response,optional"`
	Gathered     string `hcl:"gathered,optional"`
	Concurrent   int    `hcl:"concurrent,optional"`
}

// DefaultSettings are what a root does when nothing is said.
func DefaultSettings() Settings {
	return Settings{
		Name: "gather", Listen: ":8080", MaxHops: 8,
		Leaf:     &LeafSettings{},
		Merge:    &MergeSettings{URL: "concat-ndjson", Format: string(FormatNDJSON), Reserve: "auto"},
		Route:    &RouteSettings{},
		Deadline: &DeadlineSettings{Default: "500ms", Max: "2s", PerLevel: "5ms"},
		Hedge:    &HedgeSettings{Quantile: "auto", Budget: "3%", Min: "2ms", Methods: []string{"GET", "HEAD"}},
		Retry:    &RetrySettings{Budget: "10%"},
		Eject:    &EjectSettings{Consecutive: 5, Ratio: "50%", Max: "30%", For: "10s..5m"},
		Partial:  &PartialSettings{Policy: "fail", WaitAfter: "0..0.3"},
		Limits:   &LimitSettings{Request: "1MiB", LeafResponse: "8MiB", Gathered: "64MiB", Concurrent: 256},
	}
}

// ReadFile reads a configuration file over the settings there are.
func (s *Settings) ReadFile(path string) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return hint.Wrap(fmt.Errorf("read the configuration: %w", err), "--config names an HCL file with one scatter block")
	}
	return s.Decode(filepath.Base(path), src)
}

// Decode reads one `scatter "NAME" { ... }` block over the settings there are. What the block does not say stays as it is.
func (s *Settings) Decode(name string, src []byte) error {
	file, diags := hclparse.NewParser().ParseHCL(src, name)
	if diags.HasErrors() {
		return diagnose(diags, src)
	}
	content, diags := file.Body.Content(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "scatter", LabelNames: []string{"name"}}}})
	if diags.HasErrors() {
		return diagnose(diags, src)
	}
	if len(content.Blocks) != 1 {
		return hint.Wrap(fmt.Errorf("%s has %d scatter blocks", name, len(content.Blocks)), "write exactly one: scatter \"NAME\" { ... }")
	}
	block := content.Blocks[0]
	if diags := gohcl.DecodeBody(block.Body, nil, s); diags.HasErrors() {
		return diagnose(diags, src)
	}
	s.Name = block.Labels[0]
	return nil
}

// diagnose turns HCL's first complaint into an error that shows the line.
func diagnose(diags hcl.Diagnostics, src []byte) error {
	d := diags.Errs()[0]
	first, ok := d.(*hcl.Diagnostic)
	if !ok || first.Subject == nil {
		return d
	}
	line := ""
	if lines := strings.Split(string(src), "\n"); first.Subject.Start.Line-1 < len(lines) && first.Subject.Start.Line > 0 {
		line = strings.TrimSpace(lines[first.Subject.Start.Line-1])
	}
	detail := strings.TrimSpace(first.Detail)
	return hint.Wrap(fmt.Errorf("%s:%d: %s: %s", first.Subject.Filename, first.Subject.Start.Line, first.Summary, line), "%s", detail)
}
