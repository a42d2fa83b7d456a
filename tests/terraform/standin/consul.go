package standin

import (
	"context"
	"strings"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	providerschema "github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

type consulProvider struct{ env Env }

func (p *consulProvider) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName = "consul"
}

func (p *consulProvider) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	resp.Schema = providerschema.Schema{Attributes: map[string]providerschema.Attribute{
		"address":    providerschema.StringAttribute{Optional: true},
		"datacenter": providerschema.StringAttribute{Optional: true},
		"token":      providerschema.StringAttribute{Optional: true, Sensitive: true},
	}}
}

func (p *consulProvider) Configure(ctx context.Context, req provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var model struct {
		Address    types.String `tfsdk:"address"`
		Datacenter types.String `tfsdk:"datacenter"`
		Token      types.String `tfsdk:"token"`
	}
	resp.Diagnostics.Append(req.Config.Get(ctx, &model)...)
	config := consul.DefaultConfig()
	config.Address, config.Token = p.env["CONSUL_HTTP_ADDR"], p.env["CONSUL_HTTP_TOKEN"]
	if v := model.Address.ValueString(); v != "" {
		config.Address = v
	}
	if v := model.Token.ValueString(); v != "" {
		config.Token = v
	}
	config.Datacenter = model.Datacenter.ValueString()
	client, err := consul.NewClient(config)
	if err != nil {
		resp.Diagnostics.AddError("Consul client", err.Error())
		return
	}
	resp.ResourceData = client
}

func (p *consulProvider) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{
		func() resource.Resource { return aclPolicy() },
		func() resource.Resource { return aclRole() },
		func() resource.Resource { return aclBindingRule() },
	}
}

func (p *consulProvider) DataSources(context.Context) []func() datasource.DataSource { return nil }

// aclResource is a kind of ACL object: they differ in their attributes and in
// the calls that store them. M is the state of one.
type aclResource[M any] struct {
	name       string
	attributes map[string]schema.Attribute
	id         func(*M) *types.String
	// put creates the object, or updates it when it has an ID, and returns the ID.
	put func(ctx context.Context, acl *consul.ACL, m M) (string, error)
	// get fills the state from Consul; false when the object is gone.
	get func(ctx context.Context, acl *consul.ACL, m *M) (bool, error)
	del func(acl *consul.ACL, id string) error

	client *consul.Client
}

func (a *aclResource[M]) Metadata(_ context.Context, _ resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = a.name
}

func (a *aclResource[M]) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	attributes := map[string]schema.Attribute{
		"id": schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()}},
	}
	for name, attribute := range a.attributes {
		attributes[name] = attribute
	}
	resp.Schema = schema.Schema{Attributes: attributes}
}

func (a *aclResource[M]) Configure(_ context.Context, req resource.ConfigureRequest, _ *resource.ConfigureResponse) {
	a.client, _ = req.ProviderData.(*consul.Client)
}

func (a *aclResource[M]) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var m M
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	*a.id(&m) = types.StringValue("")
	id, err := a.put(ctx, a.client.ACL(), m)
	if err != nil {
		resp.Diagnostics.AddError("create "+a.name, err.Error())
		return
	}
	*a.id(&m) = types.StringValue(id)
	resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
}

func (a *aclResource[M]) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var m M
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	if _, err := a.put(ctx, a.client.ACL(), m); err != nil {
		resp.Diagnostics.AddError("update "+a.name, err.Error())
		return
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
}

func (a *aclResource[M]) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var m M
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	found, err := a.get(ctx, a.client.ACL(), &m)
	switch {
	case err != nil && !strings.Contains(err.Error(), "404"):
		resp.Diagnostics.AddError("read "+a.name, err.Error())
	case err != nil || !found:
		resp.State.RemoveResource(ctx)
	default:
		resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
	}
}

func (a *aclResource[M]) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var m M
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	if err := a.del(a.client.ACL(), a.id(&m).ValueString()); err != nil {
		resp.Diagnostics.AddError("delete "+a.name, err.Error())
	}
}

type policyModel struct {
	ID          types.String `tfsdk:"id"`
	Name        types.String `tfsdk:"name"`
	Description types.String `tfsdk:"description"`
	Rules       types.String `tfsdk:"rules"`
}

func aclPolicy() *aclResource[policyModel] {
	return &aclResource[policyModel]{
		name: "consul_acl_policy",
		attributes: map[string]schema.Attribute{
			"name":        schema.StringAttribute{Required: true},
			"description": schema.StringAttribute{Optional: true},
			"rules":       schema.StringAttribute{Required: true},
		},
		id: func(m *policyModel) *types.String { return &m.ID },
		put: func(ctx context.Context, acl *consul.ACL, m policyModel) (string, error) {
			p := &consul.ACLPolicy{ID: m.ID.ValueString(), Name: m.Name.ValueString(), Description: m.Description.ValueString(), Rules: m.Rules.ValueString()}
			store := acl.PolicyCreate
			if p.ID != "" {
				store = acl.PolicyUpdate
			}
			stored, _, err := store(p, (&consul.WriteOptions{}).WithContext(ctx))
			if err != nil {
				return "", err
			}
			return stored.ID, nil
		},
		get: func(ctx context.Context, acl *consul.ACL, m *policyModel) (bool, error) {
			p, _, err := acl.PolicyRead(m.ID.ValueString(), (&consul.QueryOptions{}).WithContext(ctx))
			if err != nil || p == nil {
				return false, err
			}
			m.Name, m.Description, m.Rules = types.StringValue(p.Name), optional(p.Description), types.StringValue(p.Rules)
			return true, nil
		},
		del: func(acl *consul.ACL, id string) error { _, err := acl.PolicyDelete(id, nil); return err },
	}
}

type roleModel struct {
	ID          types.String `tfsdk:"id"`
	Name        types.String `tfsdk:"name"`
	Description types.String `tfsdk:"description"`
	Policies    types.Set    `tfsdk:"policies"`
}

func aclRole() *aclResource[roleModel] {
	return &aclResource[roleModel]{
		name: "consul_acl_role",
		attributes: map[string]schema.Attribute{
			"name":        schema.StringAttribute{Required: true},
			"description": schema.StringAttribute{Optional: true},
			"policies":    schema.SetAttribute{Optional: true, ElementType: types.StringType},
		},
		id: func(m *roleModel) *types.String { return &m.ID },
		put: func(ctx context.Context, acl *consul.ACL, m roleModel) (string, error) {
			r := &consul.ACLRole{ID: m.ID.ValueString(), Name: m.Name.ValueString(), Description: m.Description.ValueString()}
			var ids []string
			m.Policies.ElementsAs(ctx, &ids, false)
			for _, id := range ids {
				r.Policies = append(r.Policies, &consul.ACLRolePolicyLink{ID: id})
			}
			store := acl.RoleCreate
			if r.ID != "" {
				store = acl.RoleUpdate
			}
			stored, _, err := store(r, (&consul.WriteOptions{}).WithContext(ctx))
			if err != nil {
				return "", err
			}
			return stored.ID, nil
		},
		get: func(ctx context.Context, acl *consul.ACL, m *roleModel) (bool, error) {
			r, _, err := acl.RoleRead(m.ID.ValueString(), (&consul.QueryOptions{}).WithContext(ctx))
			if err != nil || r == nil {
				return false, err
			}
			var ids []string
			for _, p := range r.Policies {
				ids = append(ids, p.ID)
			}
			m.Name, m.Description = types.StringValue(r.Name), optional(r.Description)
			m.Policies, _ = types.SetValueFrom(ctx, types.StringType, ids)
			return true, nil
		},
		del: func(acl *consul.ACL, id string) error { _, err := acl.RoleDelete(id, nil); return err },
	}
}

type bindingRuleModel struct {
	ID          types.String `tfsdk:"id"`
	AuthMethod  types.String `tfsdk:"auth_method"`
	Description types.String `tfsdk:"description"`
	Selector    types.String `tfsdk:"selector"`
	BindType    types.String `tfsdk:"bind_type"`
	BindName    types.String `tfsdk:"bind_name"`
}

func aclBindingRule() *aclResource[bindingRuleModel] {
	return &aclResource[bindingRuleModel]{
		name: "consul_acl_binding_rule",
		attributes: map[string]schema.Attribute{
			"auth_method": schema.StringAttribute{Required: true, PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplace()}},
			"description": schema.StringAttribute{Optional: true},
			"selector":    schema.StringAttribute{Optional: true},
			"bind_type":   schema.StringAttribute{Required: true},
			"bind_name":   schema.StringAttribute{Required: true},
		},
		id: func(m *bindingRuleModel) *types.String { return &m.ID },
		put: func(ctx context.Context, acl *consul.ACL, m bindingRuleModel) (string, error) {
			r := &consul.ACLBindingRule{
				ID: m.ID.ValueString(), AuthMethod: m.AuthMethod.ValueString(), Description: m.Description.ValueString(),
				Selector: m.Selector.ValueString(), BindType: consul.BindingRuleBindType(m.BindType.ValueString()), BindName: m.BindName.ValueString(),
			}
			store := acl.BindingRuleCreate
			if r.ID != "" {
				store = acl.BindingRuleUpdate
			}
			stored, _, err := store(r, (&consul.WriteOptions{}).WithContext(ctx))
			if err != nil {
				return "", err
			}
			return stored.ID, nil
		},
		get: func(ctx context.Context, acl *consul.ACL, m *bindingRuleModel) (bool, error) {
			r, _, err := acl.BindingRuleRead(m.ID.ValueString(), (&consul.QueryOptions{}).WithContext(ctx))
			if err != nil || r == nil {
				return false, err
			}
			m.AuthMethod, m.Description, m.Selector = types.StringValue(r.AuthMethod), optional(r.Description), optional(r.Selector)
			m.BindType, m.BindName = types.StringValue(string(r.BindType)), types.StringValue(r.BindName)
			return true, nil
		},
		del: func(acl *consul.ACL, id string) error { _, err := acl.BindingRuleDelete(id, nil); return err },
	}
}

// optional is null for the empty string, as Terraform sees an attribute that is not set.
func optional(s string) types.String {
	if s == "" {
		return types.StringNull()
	}
	return types.StringValue(s)
}
