package terraform_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclwrite"

	"retinue/coordinator"
	"retinue/coordinator/scale"
	"retinue/elector"
	"retinue/gather"
	"retinue/internal/devcluster"
	"retinue/tests/harness"
	"retinue/tests/terraform/standin"
)

// live is a dev cluster and providers that talk to it.
var live = harness.Share(func(t harness.T) world {
	w := world{Cluster: harness.RunCluster(t, devcluster.Config{Servers: 1, Clients: 1, ACL: true})}
	env := standin.Env{}
	for _, v := range w.Env() {
		env[v.Name] = v.Value
	}
	w.reattach = serve(t, env)
	return w
})

type world struct {
	*harness.Cluster
	reattach string
}

// onCluster runs terraform as the example's README tells a person to: each
// NOMAD_VAR_ of `retinue dev env` is the TF_VAR_ of the same name.
func onCluster(t *testing.T, dir string) (*terraform, *harness.Cluster) {
	t.Helper()
	harness.Need(t, harness.Terraform)
	w := live.Get(t)
	var env []string
	for _, v := range w.Env() {
		if name, ok := strings.CutPrefix(v.Name, "NOMAD_VAR_"); ok {
			env = append(env, "TF_VAR_"+name+"="+v.Value)
		}
	}
	return copyTerraform(t, dir, w.reattach, env...), w.Cluster
}

// The example does what it says on a cluster with ACLs: apply makes a job that
// elects a leader with no more rights than the module gives, a second plan is
// empty, and destroy leaves neither a job nor an ACL object.
func TestExample(t *testing.T) {
	tf, c := onCluster(t, "examples/leader-election")
	const job = "terraform-election"
	args := []string{"-var", "acl=true", "-var", "replicas=2"}
	before := aclObjects(t, c)
	destroyed := false
	t.Cleanup(func() {
		if !destroyed { // a failed test must not leave its job to the next one
			_, _ = tf.exec(append([]string{"destroy", "-auto-approve"}, args...)...)
		}
	})
	tf.run("init")
	tf.run(append([]string{"apply", "-auto-approve"}, args...)...)

	spec, _, err := c.Nomad.Jobs().Info(job, nil)
	if err != nil {
		t.Fatal(err)
	}
	if *spec.Status != "running" || *spec.TaskGroups[0].Count != 2 {
		t.Errorf("after apply the job is %s with %d replicas", *spec.Status, *spec.TaskGroups[0].Count)
	}
	key := strings.Trim(tf.run("output", "-json", "election_keys"), "\n")
	var keys map[string]string
	if err := json.Unmarshal([]byte(key), &keys); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 30*time.Second, "a leader is elected", func(context.Context) error {
		pair, _, err := c.Consul.KV().Get(keys["leader"], nil)
		if err == nil && (pair == nil || pair.Session == "") {
			err = fmt.Errorf("%s has no lock session", keys["leader"])
		}
		return err
	})

	if out, err := tf.exec(append([]string{"plan", "-detailed-exitcode"}, args...)...); err != nil {
		t.Errorf("the second plan is not empty: %v\n%s", err, out)
	}
	tf.run("apply", "-auto-approve", "-var", "acl=true", "-var", "replicas=1")
	if spec, _, err = c.Nomad.Jobs().Info(job, nil); err != nil || *spec.TaskGroups[0].Count != 1 {
		t.Errorf("after a change the job has not 1 replica: %v", err)
	}

	tf.run("destroy", "-auto-approve", "-var", "acl=true", "-var", "replicas=1")
	destroyed = true
	if _, _, err := c.Nomad.Jobs().Info(job, nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("after destroy the job is there: %v", err)
	}
	if after := aclObjects(t, c); !slices.Equal(before, after) {
		t.Errorf("ACL objects before: %v; after destroy: %v", before, after)
	}
}

// The same for scatter/gather: apply makes a root that finds all its leaves with the rights that the module gives.
func TestSearchExample(t *testing.T) {
	tf, c := onCluster(t, "examples/scatter-gather")
	const job = "terraform-search"
	args := []string{"-var", "acl=true", "-var", "shards=2", "-var", "replicas=1"}
	before := aclObjects(t, c)
	destroyed := false
	t.Cleanup(func() {
		if !destroyed {
			_, _ = tf.exec(append([]string{"destroy", "-auto-approve"}, args...)...)
		}
	})
	tf.run("init")
	tf.run(append([]string{"apply", "-auto-approve"}, args...)...)
	service := strings.Trim(tf.run("output", "-raw", "service"), "\n")
	harness.Eventually(t, time.Minute, "the root answers for all shards", func(ctx context.Context) error {
		roots, _, err := c.Consul.Health().Service(service, "", true, nil)
		if err != nil || len(roots) == 0 {
			return fmt.Errorf("%d roots, %v", len(roots), err)
		}
		req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("http://%s:%d/q?q=job", roots[0].Service.Address, roots[0].Service.Port), nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Retinue-Coverage") != "1" {
			return fmt.Errorf("%s, %s", resp.Status, resp.Header.Get("Retinue-Shards"))
		}
		return nil
	})
	if out, err := tf.exec(append([]string{"plan", "-detailed-exitcode"}, args...)...); err != nil {
		t.Errorf("the second plan is not empty: %v\n%s", err, out)
	}
	tf.run(append([]string{"destroy", "-auto-approve"}, args...)...)
	destroyed = true
	if _, _, err := c.Nomad.Jobs().Info(job, nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("after destroy the job is there: %v", err)
	}
	if after := aclObjects(t, c); !slices.Equal(before, after) {
		t.Errorf("ACL objects before: %v; after destroy: %v", before, after)
	}
}

// Strings with ${...} reach Nomad as they are, in values that are HCL expressions too.
func TestRuntimeInterpolation(t *testing.T) {
	tf, c := onCluster(t, "modules/leader-election")
	const job = "terraform-values"
	args := []string{
		"-auto-approve", "-var", "job_name=" + job, "-var", "replicas=0", "-var", "wait=false",
		"-var", `app_env={A="$${attr.kernel.name}", B="a \"b\" %%{x} é"}`,
		"-var", `app_args=["demo-app", "$${NOMAD_PORT_http}"]`,
		"-var", "app_command=/bin/true",
	}
	tf.run("init")
	t.Cleanup(func() { tf.run(append([]string{"destroy"}, args...)...) })
	tf.run(append([]string{"apply"}, args...)...)
	spec, _, err := c.Nomad.Jobs().Info(job, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range spec.TaskGroups[0].Tasks {
		if task.Name != "app" {
			continue
		}
		if got := task.Env["A"]; got != "${attr.kernel.name}" {
			t.Errorf("A is %q", got)
		}
		if got := task.Env["B"]; got != `a "b" %{x} é` {
			t.Errorf("B is %q", got)
		}
		if got := fmt.Sprint(task.Config["args"]); got != "[demo-app ${NOMAD_PORT_http}]" {
			t.Errorf("args are %s", got)
		}
	}
}

// The module, `retinue` itself and the elector's documentation give the same rights.
func TestPolicyIsTheElectorsOwn(t *testing.T) {
	tf, c := onCluster(t, "modules/consul-acl")
	args := []string{"-auto-approve", "-var", "job_name=terraform-acl", "-var", "auth_method=nomad-workloads"}
	tf.run("init")
	t.Cleanup(func() { tf.run(append([]string{"destroy"}, args...)...) })
	tf.run(append([]string{"apply"}, args...)...)
	role, _, err := c.Consul.ACL().RoleReadByName(elector.RoleName("terraform-acl"), nil)
	if err != nil || role == nil || len(role.Policies) != 1 {
		t.Fatalf("role %v, %v", role, err)
	}
	policy, _, err := c.Consul.ACL().PolicyRead(role.Policies[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, want := rules(t, policy.Rules), rules(t, elector.Policy("terraform-acl"))
	if !slices.Equal(got, want) {
		t.Errorf("the module gives %v, the elector asks for %v", got, want)
	}
}

// The same for the roots of scatter/gather, with the services of a tree.
func TestPolicyIsTheRootsOwn(t *testing.T) {
	tf, c := onCluster(t, "modules/consul-acl")
	services := []string{"terraform-root-branch", "terraform-root-leaf-0"}
	args := []string{"-auto-approve", "-var", "pattern=gather", "-var", "job_name=terraform-root", "-var", `services=["` + strings.Join(services, `","`) + `"]`}
	tf.run("init")
	t.Cleanup(func() { tf.run(append([]string{"destroy"}, args...)...) })
	tf.run(append([]string{"apply"}, args...)...)
	role, _, err := c.Consul.ACL().RoleReadByName(gather.RoleName("terraform-root"), nil)
	if err != nil || role == nil || len(role.Policies) != 1 {
		t.Fatalf("role %v, %v", role, err)
	}
	policy, _, err := c.Consul.ACL().PolicyRead(role.Policies[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := rules(t, policy.Rules), rules(t, gather.ACL(services...)); !slices.Equal(got, want) {
		t.Errorf("the module gives %v, the root asks for %v", got, want)
	}
}

// The same for the coordinators of a work queue.
func TestPolicyIsTheCoordinatorsOwn(t *testing.T) {
	tf, c := onCluster(t, "modules/consul-acl")
	args := []string{"-auto-approve", "-var", "pattern=coordinator", "-var", "job_name=terraform-queue"}
	tf.run("init")
	t.Cleanup(func() { tf.run(append([]string{"destroy"}, args...)...) })
	tf.run(append([]string{"apply"}, args...)...)
	policy, _, err := c.Consul.ACL().PolicyReadByName(coordinator.RoleName("terraform-queue"), nil)
	if err != nil || policy == nil {
		t.Fatalf("policy %v, %v", policy, err)
	}
	if got, want := rules(t, policy.Rules), rules(t, coordinator.ACL("terraform-queue")); !slices.Equal(got, want) {
		t.Errorf("the module gives %v, the coordinators ask for %v", got, want)
	}
}

// The same for its three brokers.
func TestPolicyIsTheBrokersOwn(t *testing.T) {
	tf, c := onCluster(t, "modules/consul-acl")
	args := []string{"-auto-approve", "-var", "pattern=broker", "-var", "job_name=terraform-brokers"}
	tf.run("init")
	t.Cleanup(func() { tf.run(append([]string{"destroy"}, args...)...) })
	tf.run(append([]string{"apply"}, args...)...)
	policy, _, err := c.Consul.ACL().PolicyReadByName(coordinator.BrokerRole("terraform-brokers"), nil)
	if err != nil || policy == nil {
		t.Fatalf("policy %v, %v", policy, err)
	}
	if got, want := rules(t, policy.Rules), rules(t, coordinator.BrokerACL("terraform-brokers")); !slices.Equal(got, want) {
		t.Errorf("the module gives %v, the brokers ask for %v", got, want)
	}
}

// The same for its scalers, at Consul and at Nomad.
func TestPolicyIsTheScalersOwn(t *testing.T) {
	const job = "terraform-scaler"
	apply := func(module string) *harness.Cluster {
		tf, c := onCluster(t, module)
		args := []string{"-auto-approve", "-var", "pattern=scaler", "-var", "job_name=" + job}
		tf.run("init")
		t.Cleanup(func() { tf.run(append([]string{"destroy"}, args...)...) })
		tf.run(append([]string{"apply"}, args...)...)
		if out, err := tf.exec("plan", "-detailed-exitcode", "-var", "pattern=scaler", "-var", "job_name="+job); err != nil {
			t.Errorf("%s: the second plan is not empty: %v\n%s", module, err, out)
		}
		return c
	}
	c := apply("modules/consul-acl")
	policy, _, err := c.Consul.ACL().PolicyReadByName(scale.RoleName(job), nil)
	if err != nil || policy == nil {
		t.Fatalf("policy %v, %v", policy, err)
	}
	if got, want := rules(t, policy.Rules), rules(t, scale.ACL(job)); !slices.Equal(got, want) {
		t.Errorf("the module gives %v, the scalers ask for %v", got, want)
	}
	apply("modules/nomad-acl")
	at, _, err := c.Nomad.ACLPolicies().Info(scale.RoleName(job), nil)
	if err != nil || at.JobACL == nil || at.JobACL.JobID != job || at.JobACL.Group != "scaler" || at.JobACL.Task != "scaler" {
		t.Fatalf("policy %+v, %v", at, err)
	}
	if got, want := rules(t, at.Rules), rules(t, scale.NomadACL("default")); !slices.Equal(got, want) {
		t.Errorf("the module gives %v, the scalers ask for %v", got, want)
	}
}

// The same for coordinators in mode dispatch, at Nomad.
func TestPolicyIsTheDispatchersOwn(t *testing.T) {
	const job = "terraform-dispatcher"
	tf, c := onCluster(t, "modules/nomad-acl")
	args := []string{"-auto-approve", "-var", "pattern=coordinator", "-var", "job_name=" + job}
	tf.run("init")
	t.Cleanup(func() { tf.run(append([]string{"destroy"}, args...)...) })
	tf.run(append([]string{"apply"}, args...)...)
	policy, _, err := c.Nomad.ACLPolicies().Info(coordinator.RoleName(job), nil)
	if err != nil || policy.JobACL == nil || policy.JobACL.JobID != job || policy.JobACL.Group != "worker" || policy.JobACL.Task != "coordinator" {
		t.Fatalf("policy %+v, %v", policy, err)
	}
	if got, want := rules(t, policy.Rules), rules(t, coordinator.NomadACL("default")); !slices.Equal(got, want) {
		t.Errorf("the module gives %v, the coordinators ask for %v", got, want)
	}
}

// The modules of the work queue and of the lifecycle make the jobs that their outputs speak of, and a second plan is empty. That the
// jobs work is held elsewhere (tests/workqueue, tests/driver): the jobspecs are the same.
func TestQueueModules(t *testing.T) {
	for pattern, want := range map[string]struct {
		args    []string
		groups  int
		outputs map[string]string
	}{
		"work-queue":          {[]string{"-var", "wait=false", "-var", "replicas=1", "-var", `worker_args=["$${NOMAD_ALLOC_ID}"]`}, 2, map[string]string{"queue": `"terraform-queue"`, "broker_service": `"terraform-queue-broker"`}},
		"work-queue-dispatch": {[]string{"-var", "driver=raw_exec", "-var", `worker_args=["$${NOMAD_META_retinue_item}"]`}, 1, map[string]string{"job_id": `"terraform-queue"`}},
		"work-queue-pipeline": {[]string{"-var", "wait=false", "-var", "queue_url=redis://127.0.0.1:1", "-var", "max_count={words=2,top=1}", "-var", `coordinator_config={words="schedule \"nightly\" {\n cron = \"30 3 * * *\"\n body = \"$${x}\"\n}"}`}, 4, map[string]string{"queues": `["terraform-queue-words","terraform-queue-count","terraform-queue-top"]`, "broker_service": `""`}},
		"lifecycle":           {[]string{"-var", "wait=false", "-var", "replicas=0"}, 1, map[string]string{"service": `"terraform-queue"`}},
	} {
		t.Run(pattern, func(t *testing.T) {
			tf, c := onCluster(t, "modules/"+pattern)
			args := append([]string{"-var", "job_name=terraform-queue"}, want.args...)
			tf.run("init")
			t.Cleanup(func() { tf.run(append([]string{"destroy", "-auto-approve"}, args...)...) })
			tf.run(append([]string{"apply", "-auto-approve"}, args...)...)
			spec, _, err := c.Nomad.Jobs().Info("terraform-queue", nil)
			if err != nil || len(spec.TaskGroups) != want.groups {
				t.Fatalf("job %+v, %v", spec, err)
			}
			for name, value := range want.outputs {
				if got := strings.TrimSpace(tf.run("output", "-json", name)); got != value {
					t.Errorf("output %s is %s, want %s", name, got, value)
				}
			}
			if out, err := tf.exec(append([]string{"plan", "-detailed-exitcode"}, args...)...); err != nil {
				t.Errorf("the second plan is not empty: %v\n%s", err, out)
			}
		})
	}
}

// rules lists what a policy grants, in a fixed order.
func rules(t *testing.T, policy string) []string {
	t.Helper()
	file, diags := hclwrite.ParseConfig([]byte(policy), "policy", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	var out []string
	for _, block := range file.Body().Blocks() {
		for name, attr := range block.Body().Attributes() {
			out = append(out, fmt.Sprintf("%s %v %s=%s", block.Type(), block.Labels(), name, strings.TrimSpace(string(attr.Expr().BuildTokens(nil).Bytes()))))
		}
	}
	slices.Sort(out)
	return out
}

// aclObjects names every policy, role and binding rule of the cluster.
func aclObjects(t *testing.T, c *harness.Cluster) []string {
	t.Helper()
	var names []string
	acl, q := c.Consul.ACL(), &consul.QueryOptions{}
	policies, _, err := acl.PolicyList(q)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range policies {
		names = append(names, "policy "+p.Name)
	}
	roles, _, err := acl.RoleList(q)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range roles {
		names = append(names, "role "+r.Name)
	}
	bindings, _, err := acl.BindingRuleList("", q)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bindings {
		names = append(names, "binding rule "+b.BindName)
	}
	slices.Sort(names)
	return names
}
