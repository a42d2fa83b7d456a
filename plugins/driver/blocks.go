package driver

import (
	"context"
	"fmt"
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

// pluginConfig is the lifecycle block of the plugin's own configuration.
type pluginConfig struct {
	// StopBudget is the longest time that the hooks of one stop may take, whatever the
	// job says: no job can hold the drain of a node for longer.
	StopBudget string `msgpack:"stop_budget"`
}

func pluginBlock() *hclspec.Spec {
	return hclspec.NewBlock(lifecycleKey, false, hclspec.NewObject(map[string]*hclspec.Spec{
		"stop_budget": hclspec.NewAttr("stop_budget", "string", false),
	}))
}

// setConfig takes this driver's block out of the plugin's configuration: the inner
// driver gets the bytes that it would have got from the agent.
func (d *Driver) setConfig(ctx context.Context, req *baseproto.SetConfigRequest) (*baseproto.SetConfigResponse, error) {
	rest, raw, err := cutKey(req.MsgpackConfig, lifecycleKey)
	if err != nil {
		return nil, fmt.Errorf("configuration of the plugin: %w", err)
	}
	var config *pluginConfig
	if raw != nil {
		if err := msgpack.Unmarshal(raw, &config); err != nil {
			return nil, fmt.Errorf("configuration of the plugin: lifecycle: %w", err)
		}
	}
	budget := lifecycle.DefaultStopBudget
	if config != nil && config.StopBudget != "" {
		if budget, err = time.ParseDuration(config.StopBudget); err != nil || budget <= 0 || budget > lifecycle.MaxTimeout {
			return nil, fmt.Errorf("configuration of the plugin: lifecycle.stop_budget: give a time such as 90s or 5m, up to %s, not %q", lifecycle.MaxTimeout, config.StopBudget)
		}
	}
	d.mu.Lock()
	d.stopBudget = budget
	d.mu.Unlock()
	req.MsgpackConfig = rest
	return d.base.SetConfig(ctx, req)
}
