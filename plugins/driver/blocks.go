package driver

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"time"

	baseproto "github.com/hashicorp/nomad/plugins/base/proto"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/vmihailenco/msgpack/v5"

	"retinue/internal/lifecycle"
)

// taskBlock is the lifecycle block of a task in Nomad's schema language.
func taskBlock() *hclspec.Spec { return blockSpec(lifecycle.Schema()) }

func blockSpec(b lifecycle.Block) *hclspec.Spec {
	attrs := make(map[string]*hclspec.Spec, len(b.Attrs)+len(b.Blocks))
	for _, a := range b.Attrs {
		attrs[a.Name] = hclspec.NewAttr(a.Name, string(a.Type), false)
	}
	for _, sub := range b.Blocks {
		attrs[sub.Name] = blockSpec(sub)
	}
	return hclspec.NewBlock(b.Name, false, hclspec.NewObject(attrs))
}

// settings are the lifecycle block of the plugin's own configuration.
type settings struct {
	stopBudget time.Duration // the longest that the hooks of one stop may take, whatever the job says
	stateDirs  []string      // folders of the host that jobs may save state in
	consul     string        // address of Consul, for saved state
	engine     dockerEngine  // of an inner driver that is docker's
}

func defaultSettings() settings {
	return settings{stopBudget: lifecycle.DefaultStopBudget, consul: "127.0.0.1:8500", engine: engineAt("")}
}

func pluginBlock() *hclspec.Spec {
	return hclspec.NewBlock(lifecycleKey, false, hclspec.NewObject(map[string]*hclspec.Spec{
		"stop_budget":    hclspec.NewAttr("stop_budget", "string", false),
		"state_dirs":     hclspec.NewAttr("state_dirs", "list(string)", false),
		"consul_address": hclspec.NewAttr("consul_address", "string", false),
	}))
}

// readSettings reads the block as the agent encodes it; nothing is the default.
func readSettings(raw []byte) (settings, error) {
	s := defaultSettings()
	if raw == nil {
		return s, nil
	}
	var block *struct {
		StopBudget string   `msgpack:"stop_budget"`
		StateDirs  []string `msgpack:"state_dirs"`
		Consul     string   `msgpack:"consul_address"`
	}
	if err := msgpack.Unmarshal(raw, &block); err != nil {
		return s, fmt.Errorf("lifecycle: %w", err)
	}
	if block == nil {
		return s, nil
	}
	if text := block.StopBudget; text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 || d > lifecycle.MaxTimeout {
			return s, fmt.Errorf("lifecycle.stop_budget: give a time such as 90s or 5m, up to %s, not %q", lifecycle.MaxTimeout, text)
		}
		s.stopBudget = d
	}
	for _, dir := range block.StateDirs {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			return s, fmt.Errorf("lifecycle.state_dirs: give absolute paths of folders, not %q", dir)
		}
	}
	s.stateDirs = block.StateDirs
	s.consul = cmp.Or(block.Consul, s.consul)
	return s, nil
}

// setConfig takes this driver's block out of the plugin's configuration: the inner
// driver gets the bytes that it would have got from the agent.
func (d *Driver) setConfig(ctx context.Context, req *baseproto.SetConfigRequest) (*baseproto.SetConfigResponse, error) {
	rest, raw, err := cutKey(req.MsgpackConfig, lifecycleKey)
	if err != nil {
		return nil, fmt.Errorf("configuration of the plugin: %w", err)
	}
	s, err := readSettings(raw)
	if err != nil {
		return nil, fmt.Errorf("configuration of the plugin: %w", err)
	}
	s.engine = engineAt(engineEndpoint(rest))
	d.mu.Lock()
	d.settings = s
	d.mu.Unlock()
	req.MsgpackConfig = rest
	return d.base.SetConfig(ctx, req)
}
