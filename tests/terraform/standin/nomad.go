package standin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	providerschema "github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

type nomadProvider struct {
	binary string
	env    Env
}

func (p *nomadProvider) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName = "nomad"
}

func (p *nomadProvider) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	resp.Schema = providerschema.Schema{Attributes: map[string]providerschema.Attribute{
		"address":   providerschema.StringAttribute{Optional: true},
		"region":    providerschema.StringAttribute{Optional: true},
		"secret_id": providerschema.StringAttribute{Optional: true, Sensitive: true},
	}}
}

func (p *nomadProvider) Configure(ctx context.Context, req provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var model struct {
		Address  types.String `tfsdk:"address"`
		Region   types.String `tfsdk:"region"`
		SecretID types.String `tfsdk:"secret_id"`
	}
	resp.Diagnostics.Append(req.Config.Get(ctx, &model)...)
	config := &nomad.Config{Address: p.env["NOMAD_ADDR"], SecretID: p.env["NOMAD_TOKEN"]}
	if v := model.Address.ValueString(); v != "" {
		config.Address = v
	}
	if v := model.SecretID.ValueString(); v != "" {
		config.SecretID = v
	}
	config.Region = model.Region.ValueString()
	client, err := nomad.NewClient(config)
	if err != nil {
		resp.Diagnostics.AddError("Nomad client", err.Error())
		return
	}
	resp.ResourceData = client
}

func (p *nomadProvider) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{
		func() resource.Resource { return &nomadJob{binary: p.binary} },
		func() resource.Resource { return &nomadPolicy{} },
	}
}

func (p *nomadProvider) DataSources(context.Context) []func() datasource.DataSource { return nil }

// nomadJob is nomad_job.
type nomadJob struct {
	binary string
	client *nomad.Client
}

type jobModel struct {
	ID                  types.String `tfsdk:"id"`
	Jobspec             types.String `tfsdk:"jobspec"`
	Detach              types.Bool   `tfsdk:"detach"`
	DeregisterOnDestroy types.Bool   `tfsdk:"deregister_on_destroy"`
	PurgeOnDestroy      types.Bool   `tfsdk:"purge_on_destroy"`
	Name                types.String `tfsdk:"name"`
	Namespace           types.String `tfsdk:"namespace"`
	DeploymentID        types.String `tfsdk:"deployment_id"`
	DeploymentStatus    types.String `tfsdk:"deployment_status"`
	ModifyIndex         types.String `tfsdk:"modify_index"`
	HCL2                *hcl2Model   `tfsdk:"hcl2"`
}

type hcl2Model struct {
	AllowFS types.Bool `tfsdk:"allow_fs"`
	Vars    types.Map  `tfsdk:"vars"`
}

func (j *nomadJob) Metadata(_ context.Context, _ resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = "nomad_job"
}

func (j *nomadJob) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	flag := func(value bool) schema.Attribute {
		return schema.BoolAttribute{Optional: true, Computed: true, Default: booldefault.StaticBool(value)}
	}
	computed := schema.StringAttribute{Computed: true}
	resp.Schema = schema.Schema{
		Attributes: map[string]schema.Attribute{
			"jobspec":               schema.StringAttribute{Required: true},
			"detach":                flag(true),
			"deregister_on_destroy": flag(true),
			"purge_on_destroy":      flag(false),
			"id":                    computed,
			"name":                  computed,
			"namespace":             computed,
			"deployment_id":         computed,
			"deployment_status":     computed,
			"modify_index":          computed,
		},
		Blocks: map[string]schema.Block{
			"hcl2": schema.SingleNestedBlock{Attributes: map[string]schema.Attribute{
				"allow_fs": flag(false),
				"vars":     schema.MapAttribute{Optional: true, ElementType: types.StringType},
			}},
		},
	}
}

func (j *nomadJob) Configure(_ context.Context, req resource.ConfigureRequest, _ *resource.ConfigureResponse) {
	j.client, _ = req.ProviderData.(*nomad.Client)
}

// ModifyPlan parses the jobspec, so that a wrong one is refused by the plan,
// and asks Nomad whether the job that runs differs from it.
func (j *nomadJob) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.Plan.Raw.IsNull() { // destroy
		return
	}
	var plan jobModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	if resp.Diagnostics.HasError() || plan.Jobspec.IsUnknown() || plan.HCL2 != nil && plan.HCL2.Vars.IsUnknown() {
		return
	}
	job, err := j.parse(ctx, plan)
	if err != nil {
		resp.Diagnostics.AddAttributeError(path.Root("jobspec"), "error parsing jobspec", err.Error())
		return
	}
	var state jobModel
	if !req.State.Raw.IsNull() {
		resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
		if state.ID.ValueString() != *job.ID {
			resp.RequiresReplace = append(resp.RequiresReplace, path.Root("id"))
		}
	}
	resp.Diagnostics.Append(resp.Plan.SetAttribute(ctx, path.Root("id"), *job.ID)...)
	resp.Diagnostics.Append(resp.Plan.SetAttribute(ctx, path.Root("name"), *job.Name)...)
}

// parse does what the provider does with Nomad's jobspec2, by the program that
// has it: variables as -var, whose values are taken as they are for strings and
// as HCL expressions otherwise.
func (j *nomadJob) parse(ctx context.Context, m jobModel) (*nomad.Job, error) {
	args := []string{"job", "run", "-output"}
	if m.HCL2 != nil {
		vars := map[string]string{}
		if d := m.HCL2.Vars.ElementsAs(ctx, &vars, false); d.HasError() {
			return nil, fmt.Errorf("hcl2.vars: %v", d)
		}
		for name, value := range vars {
			args = append(args, "-var", name+"="+value)
		}
	}
	cmd := exec.CommandContext(ctx, j.binary, append(args, "-")...)
	cmd.Stdin = strings.NewReader(m.Jobspec.ValueString())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s", strings.TrimSpace(stderr.String()))
	}
	var out struct{ Job *nomad.Job }
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		return nil, err
	}
	return out.Job, nil
}

func (j *nomadJob) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var m jobModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	if !resp.Diagnostics.HasError() {
		j.apply(ctx, &m, &resp.Diagnostics)
	}
	if !m.ID.IsNull() && !m.ID.IsUnknown() {
		resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
	}
}

func (j *nomadJob) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var m jobModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &m)...)
	if !resp.Diagnostics.HasError() {
		j.apply(ctx, &m, &resp.Diagnostics)
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
}

func (j *nomadJob) apply(ctx context.Context, m *jobModel, diags *diag.Diagnostics) {
	unknownToNull(m)
	job, err := j.parse(ctx, *m)
	if err != nil {
		diags.AddAttributeError(path.Root("jobspec"), "error parsing jobspec", err.Error())
		return
	}
	registered, _, err := j.client.Jobs().Register(job, (&nomad.WriteOptions{}).WithContext(ctx))
	if err != nil {
		diags.AddError("error applying jobspec", err.Error())
		return
	}
	m.ID, m.Name, m.Namespace = types.StringValue(*job.ID), types.StringValue(*job.Name), types.StringValue("default")
	if job.Namespace != nil {
		m.Namespace = types.StringValue(*job.Namespace)
	}
	m.ModifyIndex = types.StringValue(fmt.Sprint(registered.JobModifyIndex))
	if m.Detach.ValueBool() {
		return
	}
	d, err := j.waitDeployment(ctx, registered.EvalID)
	if err != nil {
		diags.AddError("error waiting for the deployment", err.Error())
		return
	}
	if d != nil {
		m.DeploymentID, m.DeploymentStatus = types.StringValue(d.ID), types.StringValue(d.Status)
	}
}

func unknownToNull(m *jobModel) {
	for _, v := range []*types.String{&m.Name, &m.Namespace, &m.DeploymentID, &m.DeploymentStatus, &m.ModifyIndex} {
		if v.IsUnknown() {
			*v = types.StringNull()
		}
	}
}

// waitDeployment waits for the deployment of an evaluation, five minutes at most as the provider does.
func (j *nomadJob) waitDeployment(ctx context.Context, evalID string) (*nomad.Deployment, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var deployment string
	for {
		if deployment == "" {
			eval, _, err := j.client.Evaluations().Info(evalID, (&nomad.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return nil, err
			}
			if deployment = eval.DeploymentID; deployment == "" && eval.Status == "complete" {
				return nil, nil
			}
		} else {
			d, _, err := j.client.Deployments().Info(deployment, (&nomad.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return nil, err
			}
			switch d.Status {
			case nomad.DeploymentStatusSuccessful:
				return d, nil
			case nomad.DeploymentStatusFailed, nomad.DeploymentStatusCancelled:
				return nil, fmt.Errorf("deployment %s: %s", d.Status, d.StatusDescription)
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (j *nomadJob) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var m jobModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	job, err := j.info(ctx, m)
	switch {
	case err != nil:
		resp.Diagnostics.AddError("error reading job", err.Error())
	case job == nil || job.Stop != nil && *job.Stop:
		resp.State.RemoveResource(ctx)
	case fmt.Sprint(*job.JobModifyIndex) != m.ModifyIndex.ValueString():
		// Somebody else changed it: forget what was applied, so that the plan shows a change.
		m.ModifyIndex = types.StringValue(fmt.Sprint(*job.JobModifyIndex))
		m.Jobspec = types.StringValue("")
		resp.Diagnostics.Append(resp.State.Set(ctx, m)...)
	}
}

func (j *nomadJob) info(ctx context.Context, m jobModel) (*nomad.Job, error) {
	q := (&nomad.QueryOptions{Namespace: m.Namespace.ValueString()}).WithContext(ctx)
	job, _, err := j.client.Jobs().Info(m.ID.ValueString(), q)
	if err != nil && strings.Contains(err.Error(), "404") {
		return nil, nil
	}
	return job, err
}

func (j *nomadJob) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var m jobModel
	resp.Diagnostics.Append(req.State.Get(ctx, &m)...)
	if !m.DeregisterOnDestroy.ValueBool() {
		return
	}
	w := (&nomad.WriteOptions{Namespace: m.Namespace.ValueString()}).WithContext(ctx)
	if _, _, err := j.client.Jobs().Deregister(m.ID.ValueString(), m.PurgeOnDestroy.ValueBool(), w); err != nil {
		resp.Diagnostics.AddError("error deregistering job", err.Error())
	}
}
