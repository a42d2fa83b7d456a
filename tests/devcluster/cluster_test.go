// Package devcluster_test brings real dev clusters up, breaks them and takes
// them down: what docs/dev.md promises, on real agents.
package devcluster_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// config is a small cluster in a folder of the test, which sees to its end.
func config(t *testing.T) devcluster.Config {
	t.Helper()
	cfg := devcluster.Config{
		Dir: filepath.Join(harness.Dir(t, "dev"), "c"), PortOffset: devcluster.AutoPorts,
		NomadBin: harness.NomadBinary(t), ConsulBin: harness.ConsulBinary(t), RetinueBin: harness.RetinueBinary(t),
	}
	t.Cleanup(func() {
		if err := devcluster.Down(context.Background(), cfg.Dir, nil); err != nil {
			t.Errorf("take the dev cluster down: %v", err)
		}
	})
	return cfg
}

func up(t *testing.T, cfg devcluster.Config) *devcluster.Cluster {
	t.Helper()
	began := time.Now()
	c, err := devcluster.Up(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up after %.1f s: %s", time.Since(began).Seconds(), c.Describe())
	return c
}

func status(t *testing.T, c *devcluster.Cluster) map[string]string {
	t.Helper()
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{"ready": fmt.Sprint(st.Ready)}
	for _, a := range st.Agents {
		out[a.Name] = a.Status
	}
	return out
}

func pids(c *devcluster.Cluster) map[string]int {
	out := map[string]int{}
	for _, a := range c.Agents() {
		out[a.Name] = a.PID
	}
	return out
}

// TestAgentsComeBack kills agents in several ways; `up` and Restart bring them
// back over their data, and what runs is left alone.
func TestAgentsComeBack(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Servers, cfg.Clients = 3, 1
	c := up(t, cfg)
	before := pids(c)
	if again := up(t, cfg); !maps.Equal(pids(again), before) {
		t.Errorf("a second up replaced agents: %v, before %v", pids(again), before)
	}
	if _, err := devcluster.Up(t.Context(), devcluster.Config{Dir: cfg.Dir, Servers: 1}, nil); err == nil || !strings.Contains(err.Error(), "has servers: 3") {
		t.Errorf("up with another number of servers: %v", err)
	}

	kv, err := c.Consul()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.KV().Put(kvPair("retinue/test", "kept"), nil); err != nil {
		t.Fatal(err)
	}
	victims := []string{"nomad-server-1", "consul-server-1", "consul-client-1", "nomad-client-1"}
	for _, name := range victims {
		a, err := c.Agent(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Kill(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, 20*time.Second, "the victims are down", func(context.Context) error {
		st := status(t, c)
		for _, name := range victims {
			if st[name] != "down" {
				return fmt.Errorf("%s is %s", name, st[name])
			}
		}
		return nil
	})
	if st := status(t, c); st["ready"] != "false" {
		t.Errorf("status %v", st)
	}
	c = up(t, cfg)
	for name, pid := range pids(c) {
		if victim := slices.Contains(victims, name); pid == 0 || (pid != before[name]) != victim {
			t.Errorf("%s: pid %d, before %d", name, pid, before[name])
		}
	}
	if pair, _, err := kv.KV().Get("retinue/test", nil); err != nil || pair == nil || string(pair.Value) != "kept" {
		t.Errorf("Consul's data after the restart: %v, %v", pair, err)
	}

	a, err := c.Agent("consul-server-2")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := pids(c)["consul-server-2"]; now == 0 || now == a.PID {
		t.Errorf("restarted: pid %d, before %d", now, a.PID)
	}
	reopened, err := devcluster.Open(cfg.Dir)
	if err != nil || !maps.Equal(pids(reopened), pids(c)) {
		t.Errorf("the state file knows other pids: %v, %v", err, pids(reopened))
	}
}

// TestAfterAReboot: every agent is gone, and what up waits for first is not taken for the death of what it starts last.
func TestAfterAReboot(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.ACL = true
	c := up(t, cfg)
	before := pids(c)
	for _, a := range c.Agents() {
		if err := a.Kill(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, 20*time.Second, "all agents are down", func(context.Context) error {
		for name, pid := range pids(c) {
			if pid != 0 {
				return fmt.Errorf("%s runs", name)
			}
		}
		return nil
	})
	for name, pid := range pids(up(t, cfg)) {
		if pid == 0 || pid == before[name] {
			t.Errorf("%s: pid %d, before %d", name, pid, before[name])
		}
	}
}

// TestPausedAgents holds that agents which accept connections and never answer
// hold up neither status nor down.
func TestPausedAgents(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	c := up(t, cfg)
	allocs := run(t, c, idle(c, "app", c.Plan().Driver(), "app"))
	for _, a := range c.Agents() {
		if err := a.Kill(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	harness.Eventually(t, 10*time.Second, "all are seen to be paused", func(context.Context) error {
		for name, st := range status(t, c) {
			if name != "ready" && st != "paused" || name == "ready" && st != "false" {
				return fmt.Errorf("%s: %s", name, st)
			}
		}
		return nil
	})
	if err := c.Down(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("status and down took %s", took)
	}
	if left := remains(t, cfg.Dir, []string{allocs[0].ID}); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// TestFolderIsGone takes a cluster down whose folder somebody has removed.
func TestFolderIsGone(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	c := up(t, cfg)
	drivers := []string{c.Plan().Driver()}
	if os.Geteuid() == 0 && drivers[0] != devcluster.DriverExec {
		drivers = append(drivers, devcluster.DriverExec) // no container tells of its allocation
	}
	var allocs []string
	for _, driver := range drivers {
		allocs = append(allocs, run(t, c, idle(c, "app-"+strings.ReplaceAll(driver, "_", "-"), driver, "app"))[0].ID)
	}
	for _, a := range c.Agents() { // or they would tidy up themselves when they are stopped
		if err := a.Kill(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range mountsBelow(t, cfg.Dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	if err := devcluster.Down(t.Context(), cfg.Dir, nil); err != nil {
		t.Fatal(err)
	}
	if left := remains(t, cfg.Dir, allocs); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// TestInterruptedUp cancels an up at each of its steps and between them: nothing
// is left, whatever had been started.
func TestInterruptedUp(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	stopped := errors.New("stopped by the test")
	try := func(name string, ctx context.Context, report func(devcluster.Step)) (interrupted bool) {
		_, err := devcluster.Up(ctx, cfg, report)
		if err == nil { // it was faster
			if err := devcluster.Down(t.Context(), cfg.Dir, nil); err != nil {
				t.Fatal(err)
			}
		} else if !strings.Contains(err.Error(), stopped.Error()) {
			t.Errorf("%s: %v", name, err)
		}
		if left := remains(t, cfg.Dir, nil); len(left) > 0 {
			t.Errorf("%s, left behind:\n%s", name, strings.Join(left, "\n"))
		}
		return err != nil
	}
	for step := 1; ; step++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		seen := 0
		interrupted := try(fmt.Sprintf("at step %d", step), ctx, func(devcluster.Step) {
			if seen++; seen == step {
				cancel(stopped)
			}
		})
		cancel(nil)
		if !interrupted {
			if step < 3 {
				t.Errorf("a cancellation at step %d is ignored", step)
			}
			break
		}
	}
	for _, after := range []time.Duration{30, 300, 700, 1200, 1800, 2300} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), after*time.Millisecond, stopped)
		try(fmt.Sprintf("after %d ms", after), ctx, nil)
		cancel()
	}
}

// TestSideBySide runs two clusters at once; one does not see the other, and
// taking one down leaves the other whole.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	first, second := up(t, config(t)), up(t, config(t))
	if first.NomadAddr() == second.NomadAddr() || first.Plan().Slot == second.Plan().Slot {
		t.Fatalf("both at %s, slots %d and %d", first.NomadAddr(), first.Plan().Slot, second.Plan().Slot)
	}
	clash := config(t)
	clash.PortOffset = first.Plan().PortOffset
	if _, err := devcluster.Up(t.Context(), clash, nil); err == nil || !strings.Contains(err.Error(), "the dev cluster in "+first.Dir()) {
		t.Errorf("a third one on the ports of the first: %v", err)
	}
	before := pids(second)
	if err := first.Down(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if st := status(t, second); st["ready"] != "true" || !maps.Equal(pids(second), before) {
		t.Errorf("the second cluster after the end of the first: %v", st)
	}
}
