package standin

import (
	"context"
	"strings"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// nomadPolicy is nomad_acl_policy.
type nomadPolicy struct{ client *nomad.Client }

type nomadPolicyModel struct {
	ID          types.String  `tfsdk:"id"`
	Name        types.String  `tfsdk:"name"`
	Description types.String  `tfsdk:"description"`
	RulesHCL    types.String  `tfsdk:"rules_hcl"`
	JobACL      []jobACLModel `tfsdk:"job_acl"`
}

type jobACLModel struct {
	Namespace types.String `tfsdk:"namespace"`
	JobID     types.String `tfsdk:"job_id"`
	Group     types.String `tfsdk:"group"`
	Task      types.String `tfsdk:"task"`
}

func (p *nomadPolicy) Metadata(_ context.Context, _ resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = "nomad_acl_policy"
}

func (p *nomadPolicy) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	optional := schema.StringAttribute{Optional: true}
	resp.Schema = schema.Schema{
		Attributes: map[string]schema.Attribute{
			"id":          schema.StringAttribute{Computed: true},
			"name":        schema.StringAttribute{Required: true},
			"description": optional,
			"rules_hcl":   schema.StringAttribute{Required: true},
		},
		Blocks: map[string]schema.Block{
			"job_acl": schema.ListNestedBlock{NestedObject: schema.NestedBlockObject{Attributes: map[string]schema.Attribute{
				"namespace": optional, "job_id": schema.StringAttribute{Required: true}, "group": optional, "task": optional,
			}}},
		},
	}
}

func (p *nomadPolicy) Configure(_ context.Context, req resource.ConfigureRequest, _ *resource.ConfigureResponse) {
	p.client, _ = req.ProviderData.(*nomad.Client)
}

func (p *nomadPolicy) put(m *nomadPolicyModel) error {
	policy := &nomad.ACLPolicy{Name: m.Name.ValueString(), Description: m.Description.ValueString(), Rules: m.RulesHCL.ValueString()}
	for _, job := range m.JobACL {
		policy.JobACL = &nomad.JobACL{Namespace: job.Namespace.ValueString(), JobID: job.JobID.ValueString(), Group: job.Group.ValueString(), Task: job.Task.ValueString()}
	}
	m.ID = m.Name
	_, err := p.client.ACLPolicies().Upsert(policy, nil)
	return err
}

func (p *nomadPolicy) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var m nomadPolicyModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	if err := p.put(&m); err != nil {
		resp.Diagnostics.AddError("create nomad_acl_policy", err.Error())
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
}

func (p *nomadPolicy) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var m nomadPolicyModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	if err := p.put(&m); err != nil {
		resp.Diagnostics.AddError("update nomad_acl_policy", err.Error())
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
}

func (p *nomadPolicy) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var m nomadPolicyModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	policy, _, err := p.client.ACLPolicies().Info(m.Name.ValueString(), nil)
	switch {
	case err != nil && strings.Contains(err.Error(), "404"):
		resp.State.RemoveResource(ctx)
		return
	case err != nil:
		resp.Diagnostics.AddError("read nomad_acl_policy", err.Error())
		return
	}
	m.Description, m.RulesHCL = optional(policy.Description), types.StringValue(policy.Rules)
	resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
}

func (p *nomadPolicy) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var m nomadPolicyModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	if _, err := p.client.ACLPolicies().Delete(m.Name.ValueString(), nil); err != nil {
		resp.Diagnostics.AddError("delete nomad_acl_policy", err.Error())
	}
}
