// Package drivercluster runs a dev cluster whose clients have the lifecycle driver,
// for programs that measure it or break it, and finds the processes of its agents.
//
// It promises that the cluster is gone when the program is, also when that was killed:
// a janitor, this same program executed again, waits for its end.
package drivercluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
)

const janitorEnv = "RETINUE_DRIVERCLUSTER_JANITOR"

// Main must be the first call of a program that uses Up: it is where the janitor's life begins, and ends.
func Main() {
	dir := os.Getenv(janitorEnv)
	if dir == "" {
		return
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the program has ended
	if _, err := os.Stat(dir); err == nil {
		_ = devcluster.Down(context.Background(), dir, nil)
		_ = os.RemoveAll(dir)
	}
	os.Exit(0)
}

// Cluster is a dev cluster with decorated drivers.
type Cluster struct {
	*devcluster.Cluster
	Nomad *nomad.Client

	janitor *exec.Cmd
	alive   io.Closer // closed: the janitor goes to work
	configs map[string][]byte
}

// Up brings a cluster up in config.Dir, which must be a new, short path.
func Up(ctx context.Context, config devcluster.Config, say func(format string, args ...any)) (*Cluster, error) {
	config.PortOffset, config.DriverPlugin = devcluster.AutoPorts, "on"
	c := &Cluster{configs: map[string][]byte{}}
	c.janitor = exec.Command("/proc/self/exe")
	c.janitor.Env = append(os.Environ(), janitorEnv+"="+config.Dir)
	c.janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := c.janitor.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := c.janitor.Start(); err != nil {
		return nil, fmt.Errorf("start the janitor: %w", err)
	}
	c.alive = pipe
	if c.Cluster, err = devcluster.Up(ctx, config, func(s devcluster.Step) {
		if !s.Progress {
			say("  %s", s.Text)
		}
	}); err == nil {
		c.Nomad, err = c.Cluster.Nomad()
	}
	if err != nil {
		c.rest()
		return nil, fmt.Errorf("dev cluster: %w", err)
	}
	return c, nil
}

// Close takes the cluster down.
func (c *Cluster) Close() error {
	err := c.Down(context.Background(), nil)
	c.rest()
	return err
}

func (c *Cluster) rest() {
	c.alive.Close()
	_ = c.janitor.Wait() // its work is judged by what it leaves
}

// Dress restarts the Nomad agents of clients, with the plugin or with the drivers that are built in. No task may run on them.
func (c *Cluster) Dress(ctx context.Context, plugin map[string]bool) error {
	for client, with := range plugin {
		agent, err := c.Agent("nomad-" + client)
		if err != nil {
			return err
		}
		file := filepath.Join(c.Plan().AgentDir(agent.Name), "config.hcl")
		if c.configs[client] == nil {
			if c.configs[client], err = os.ReadFile(file); err != nil {
				return err
			}
		}
		text := string(c.configs[client])
		if !with {
			text = BuiltIn(text)
		}
		if err := c.Terminate(ctx, agent.Name); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		if err := agent.Restart(ctx); err != nil {
			return err
		}
		if err := c.answers(ctx, client, with); err != nil {
			return err
		}
	}
	return nil
}

// Terminate ends an agent in order, so that its plugins end with it.
func (c *Cluster) Terminate(ctx context.Context, name string) error {
	agent, err := c.Agent(name)
	if err != nil {
		return err
	}
	if err := agent.Kill(syscall.SIGTERM); err != nil {
		return err
	}
	return Eventually(ctx, time.Minute, name+" ends", func() error {
		if now, err := c.Agent(name); err != nil || now.PID != 0 {
			return fmt.Errorf("it runs (%w)", err)
		}
		return nil
	})
}

// answers waits until the server knows the drivers of a client as they are now.
func (c *Cluster) answers(ctx context.Context, client string, with bool) error {
	return Eventually(ctx, time.Minute, client+" is ready", func() error {
		stub, err := c.Node(ctx, client)
		if err != nil {
			return err
		}
		node, _, err := c.Nomad.Nodes().Info(stub.ID, (&nomad.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, driver := range c.Drivers() {
			_, decorated := node.Attributes["driver."+driver+".lifecycle"]
			if d := node.Drivers[driver]; node.Status != nomad.NodeStatusReady || d == nil || !d.Detected || !d.Healthy || decorated != with {
				return fmt.Errorf("status %s, %s: %+v, with lifecycle: %t", node.Status, driver, d, decorated)
			}
		}
		return nil
	})
}

// Node looks a client up by its name.
func (c *Cluster) Node(ctx context.Context, name string) (*nomad.NodeListStub, error) {
	nodes, _, err := c.Nomad.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node %s", name)
}

// Drivers are the drivers of the cluster that are decorated.
func (c *Cluster) Drivers() []string {
	drivers := []string{devcluster.DriverRawExec, devcluster.DriverExec}
	if c.Plan().DockerSocket != "" {
		drivers = append(drivers, devcluster.DriverDocker)
	}
	return drivers
}

// AllocDir is the folder of an allocation on this machine.
func (c *Cluster) AllocDir(node, alloc string) (string, error) {
	for _, n := range c.Plan().Nodes {
		if n.Name == node {
			return filepath.Join(c.Plan().AllocDir(n), alloc), nil
		}
	}
	return "", fmt.Errorf("no node %s in the plan of the cluster", node)
}

// BuiltIn is an agent's configuration without the plugin.
func BuiltIn(config string) string {
	var out []string
	inside := false // of the plugin's lifecycle block, which those drivers refuse
	for line := range strings.SplitSeq(config, "\n") {
		if line == "    lifecycle {" || inside {
			inside = line != "    }"
			continue
		}
		if strings.HasPrefix(line, "plugin_dir") || strings.HasPrefix(line, `  args = ["-as"`) {
			continue
		}
		out = append(out, strings.Replace(line, `plugin "retinue-`, `plugin "`, 1))
	}
	return strings.Join(out, "\n")
}

// Eventually tries until check succeeds, and returns its last error after the limit.
func Eventually(ctx context.Context, limit time.Duration, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := check()
		if err == nil {
			return nil
		}
		if last == nil || !errors.Is(err, context.DeadlineExceeded) {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v: %w", what, limit, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
