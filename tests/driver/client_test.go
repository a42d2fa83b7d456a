package driver_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue/internal/devcluster"
	"retinue/tests/drivercluster"
	"retinue/tests/harness"
)

// dressed is client-1, whose agent is started with the plugin or with the drivers that are built in.
type dressed struct {
	w     *world
	agent devcluster.Agent
	file  string
	with  string // its configuration with the plugin
}

// dress takes client-1 for a test, and gives it back with the plugin.
func (w *world) dress(t *testing.T) *dressed {
	t.Helper()
	agent, err := w.Agent("nomad-client-1")
	if err != nil {
		t.Fatal(err)
	}
	d := &dressed{w: w, agent: agent, file: filepath.Join(w.Plan().AgentDir(agent.Name), "config.hcl")}
	with, err := os.ReadFile(d.file)
	if err != nil {
		t.Fatal(err)
	}
	d.with = string(with)
	t.Cleanup(func() { d.kill(t, true) })
	return d
}

// kill ends the agent by SIGKILL and starts it again. The processes of its plugin stay, and whoever comes next takes them over,
// also where its configuration has no plugin: so that one has to be stopped in order.
func (d *dressed) kill(t *testing.T, plugin bool) {
	t.Helper()
	d.begin(t, plugin)
}

// stop ends the agent in order and starts it again.
func (d *dressed) stop(t *testing.T, plugin bool) {
	t.Helper()
	if err := d.agent.Kill(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 60*time.Second, "the agent ends", func(context.Context) error {
		if now, err := d.w.Agent(d.agent.Name); err != nil || now.PID != 0 {
			return fmt.Errorf("it runs (%w)", err)
		}
		return nil
	})
	// On a busy machine the agent is sometimes gone before it has ended its plugins, and the next one would take them over.
	deadline := time.Now().Add(5 * time.Second)
	for left := d.plugins(t); len(left) > 0; left = d.plugins(t) {
		if time.Now().After(deadline) {
			for _, p := range left {
				t.Logf("ending %q, which the agent has left", p.Args)
				_ = syscall.Kill(p.PID, syscall.SIGKILL) // it may have ended
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	d.begin(t, plugin)
}

// plugins are the decorators of this client: those that are not the other one's.
func (d *dressed) plugins(t *testing.T) (out []drivercluster.Process) {
	t.Helper()
	other, err := d.w.Agent("nomad-client-2")
	if err != nil {
		t.Fatal(err)
	}
	all, err := drivercluster.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if len(p.Args) == 5 && strings.HasPrefix(p.Program(), "retinue-") && strings.HasPrefix(p.Args[0], d.w.Dir()+"/") && p.Parent != other.PID && p.PID > 1 {
			out = append(out, p)
		}
	}
	return out
}

func (d *dressed) begin(t *testing.T, plugin bool) {
	t.Helper()
	text := d.with
	if !plugin {
		text = drivercluster.BuiltIn(text)
	}
	if err := os.WriteFile(d.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.agent.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 60*time.Second, "the client has its drivers", func(context.Context) error {
		nodes, _, err := d.w.Nomad.Nodes().List(nil)
		if err != nil {
			return err
		}
		for _, stub := range nodes {
			if stub.Name != d.agent.Node {
				continue
			}
			node, _, err := d.w.Nomad.Nodes().Info(stub.ID, nil)
			if err != nil {
				return err
			}
			for _, name := range drivers {
				_, decorated := node.Attributes["driver."+name+".lifecycle"]
				if driver := node.Drivers[name]; node.Status != "ready" || driver == nil || !driver.Healthy || decorated != plugin {
					return fmt.Errorf("status %s, %s: %+v, with the plugin: %t", node.Status, name, driver, decorated)
				}
			}
			return nil
		}
		return fmt.Errorf("no node %s", d.agent.Node)
	})
}
