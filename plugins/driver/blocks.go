package driver

import (
	"context"
	"fmt"

	baseproto "github.com/hashicorp/nomad/plugins/base/proto"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

func taskBlock() *hclspec.Spec {
	return hclspec.NewBlock(lifecycleKey, false, hclspec.NewObject(map[string]*hclspec.Spec{"budget": str("budget")}))
}
func pluginBlock() *hclspec.Spec {
	return hclspec.NewBlock(lifecycleKey, false, hclspec.NewObject(map[string]*hclspec.Spec{"stop_budget": str("stop_budget")}))
}

// setConfig takes this driver's block out of the plugin's configuration: the inner
// driver gets the bytes that it would have got from the agent.
func (d *Driver) setConfig(ctx context.Context, req *baseproto.SetConfigRequest) (*baseproto.SetConfigResponse, error) {
	rest, _, err := cutKey(req.MsgpackConfig, lifecycleKey)
	if err != nil {
		return nil, fmt.Errorf("configuration of the plugin: %w", err)
	}
	req.MsgpackConfig = rest
	return d.base.SetConfig(ctx, req)
}
