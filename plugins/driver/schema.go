package driver

import (
	"context"
	"fmt"

	baseproto "github.com/hashicorp/nomad/plugins/base/proto"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// lifecycleKey is the block that this driver adds to the configuration of a task and
// to that of the plugin.
const lifecycleKey = "lifecycle"

func (d *Driver) taskConfigSchema(ctx context.Context, req *proto.TaskConfigSchemaRequest) (*proto.TaskConfigSchemaResponse, error) {
	resp, err := d.tasks.TaskConfigSchema(ctx, req)
	if err != nil {
		return nil, err
	}
	if resp.Spec, err = withBlock(resp.Spec, taskBlock()); err != nil {
		return nil, fmt.Errorf("task configuration of driver %s: %w", d.name, err)
	}
	return resp, nil
}

func (d *Driver) configSchema(ctx context.Context, req *baseproto.ConfigSchemaRequest) (*baseproto.ConfigSchemaResponse, error) {
	resp, err := d.base.ConfigSchema(ctx, req)
	if err != nil {
		return nil, err
	}
	if resp.Spec, err = withBlock(resp.Spec, pluginBlock()); err != nil {
		return nil, fmt.Errorf("plugin configuration of driver %s: %w", d.name, err)
	}
	return resp, nil
}

// withBlock adds the lifecycle block to a schema, which is an object, or nothing at
// all for a driver without configuration.
func withBlock(spec, block *hclspec.Spec) (*hclspec.Spec, error) {
	if spec == nil {
		spec = hclspec.NewObject(nil)
	}
	object := spec.GetObject()
	if object == nil {
		return nil, fmt.Errorf("its schema is not an object but %T", spec.GetBlock())
	}
	if _, ok := object.Attributes[lifecycleKey]; ok {
		return nil, fmt.Errorf("it has a %q of its own, so the driver cannot be decorated", lifecycleKey)
	}
	if object.Attributes == nil {
		object.Attributes = map[string]*hclspec.Spec{}
	}
	object.Attributes[lifecycleKey] = block
	return spec, nil
}
