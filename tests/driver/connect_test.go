package driver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/internal/lifecycle/manage"
	"retinue/tests/harness"
)

// B3: the sidecar that Nomad injects for Connect has the driver docker, which is this one: it runs in the group's bridge network,
// in its order, and has hooks where the job gives it some. The program is not Envoy, of which there is no image here; all that
// Nomad does for one is done.
func TestConnectSidecar(t *testing.T) {
	w := need(t)
	if w.Plan().NetworkMode() != devcluster.NetworkBridge {
		t.Skip("SKIP bridge networking")
	}
	job := w.job("connect", devcluster.DriverDocker, nil)
	group := job.TaskGroups[0]
	group.Networks = []*nomad.NetworkResource{{Mode: "bridge"}}
	group.Services = []*nomad.Service{{Name: "connect", PortLabel: "9090", Provider: "consul", Connect: &nomad.ConsulConnect{
		SidecarService: &nomad.ConsulSidecarService{},
		SidecarTask: &nomad.SidecarTask{
			Config: map[string]any{
				"image": devcluster.Image(), "entrypoint": []string{}, "command": "/usr/local/bin/retinue", "args": []string{"pause"},
				"lifecycle": []map[string]any{{"pre_stop": map[string]any{"exec": []string{"/usr/local/bin/retinue", "version"}}}},
			},
			Resources: &nomad.Resources{CPU: new(20), MemoryMB: new(32)},
		},
	}}}
	const sidecar = "connect-proxy-connect"
	a := w.run(t, job)
	harness.Eventually(t, 60*time.Second, "the sidecar runs", func(context.Context) error {
		if s := a.info(t).TaskStates[sidecar]; s == nil || s.State != "running" {
			return fmt.Errorf("it does not: %+v", s)
		}
		return nil
	})
	for _, task := range a.info(t).Job.TaskGroups[0].Tasks {
		if task.Name == sidecar && (task.Driver != devcluster.DriverDocker || task.Kind != "connect-proxy:connect" || task.Lifecycle == nil || task.Lifecycle.Hook != nomad.TaskLifecycleHookPrestart || !task.Lifecycle.Sidecar) {
			t.Errorf("the sidecar is driver %s, kind %s, lifecycle %+v", task.Driver, task.Kind, task.Lifecycle)
		}
	}
	var d manage.Description
	out := w.Command(t, harness.NomadBinary(t), "alloc", "exec", "-t=false", "-i=false", "-task", sidecar, a.id, "@retinue", "GET", "/v1/task")
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Task != sidecar || d.Driver != devcluster.DriverDocker || d.Lifecycle.Phase != "running" || len(d.Hooks) != 1 {
		t.Errorf("the driver says of the sidecar (%v):\n%s", err, out)
	}
	network, err := exec.Command("docker", "inspect", "--format", "{{.HostConfig.NetworkMode}}", sidecar+"-"+a.id).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(network), "container:") {
		t.Errorf("the sidecar's network is %q, %v", network, err)
	}
	if bootstrap := w.Command(t, harness.NomadBinary(t), "alloc", "fs", a.id, sidecar+"/secrets/"); !strings.Contains(bootstrap, "envoy_bootstrap.json") {
		t.Errorf("it has no configuration for Envoy:\n%s", bootstrap)
	}
	if _, _, err := w.Nomad.Jobs().Deregister("connect", false, nil); err != nil {
		t.Fatal(err)
	}
	a.stopped(t)
	var events []string
	for _, e := range a.info(t).TaskStates[sidecar].Events {
		events = append(events, e.DisplayMessage)
	}
	if !strings.Contains(strings.Join(events, "\n"), "pre_stop") {
		t.Errorf("events of the sidecar: %q", events)
	}
}
