// Package devcluster runs a local cluster of real Consul and Nomad agents in
// the background: servers and clients as separate processes, each node with a
// loopback address of its own, and all of its state in one folder.
//
// It promises three things. Up returns only when the cluster schedules work.
// It never touches a process, a network or a file that it did not make. And
// Down leaves none of those behind, whatever was killed before, even when the
// state file is lost.
package devcluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"retinue/internal/hint"
)

// The drivers and network modes that a cluster can offer to jobs.
const (
	DriverDocker  = "docker"
	DriverExec    = "exec"
	DriverRawExec = "raw_exec"

	NetworkBridge = "bridge"
	NetworkHost   = "host"
)

// AutoPorts as Config.PortOffset asks for the first free set of ports.
const AutoPorts = -1

// Limits of a cluster; they follow from the address plan (see plan.go).
const (
	MaxServers = 7
	MaxClients = 9
	maxOffset  = 50000
)

// Config says what cluster Up makes. The zero value, with a folder, is one
// server node and one client node on the standard ports.
type Config struct {
	// Dir holds everything the cluster writes. Default: DefaultDir.
	Dir string

	// Servers and Clients are numbers of nodes; each node is a Consul agent and a
	// Nomad agent. 0 means 1, or what a running cluster in Dir has.
	Servers, Clients int

	// PortOffset is added to every standard port. AutoPorts finds a free set.
	PortOffset int

	// ACL turns on ACLs in Consul and Nomad, default deny, with workload identity
	// between them.
	ACL bool

	// Docker is "auto" (use an engine that answers), "on" (fail without one) or
	// "off". "" means auto.
	Docker string

	// DriverPlugin is "auto" (decorate the task drivers when retinue-driver and
	// retinue-inner are beside RetinueBin), "on" (fail without them) or "off". "" means auto.
	DriverPlugin string

	// SessionTTLMin is Consul's lower bound of a session's TTL. Default: 1 s, so
	// that a lease of 2 s can be tried (Consul's own default is 10 s).
	SessionTTLMin time.Duration

	// NomadBin, ConsulBin and RetinueBin are the programs to run. "" finds them:
	// PATH or the pinned build, and for RetinueBin the running program.
	NomadBin, ConsulBin, RetinueBin string
}

// Step is one thing that Up or Down has done, for whoever watches.
type Step struct {
	Text     string
	Warning  bool          // something the person should know, not a failure
	Progress bool          // replaces the Progress step before it
	After    time.Duration // since the call began
}

// DefaultDir is retinue/dev in the user's state folder; "" when the user has no
// home, and then a folder must be given.
func DefaultDir() string {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "retinue", "dev")
}

// withDefaults fills what was left open and refuses what cannot be; all the
// problems at once.
func (c Config) withDefaults() (Config, error) {
	if c.Dir = cmp.Or(c.Dir, DefaultDir()); c.Dir == "" {
		return c, hint.Wrap(errors.New("no folder for the cluster: HOME and XDG_STATE_HOME are not set"), "give one with --dir")
	}
	dir, err := cleanDir(c.Dir)
	if err != nil {
		return c, err
	}
	c.Dir = dir
	c.Docker = cmp.Or(c.Docker, "auto")
	c.DriverPlugin = cmp.Or(c.DriverPlugin, "auto")
	c.SessionTTLMin = cmp.Or(c.SessionTTLMin, time.Second)

	var problems []error
	if c.Servers < 0 || c.Servers > MaxServers {
		problems = append(problems, fmt.Errorf("servers: %d is not between 1 and %d", c.Servers, MaxServers))
	}
	if c.Clients < 0 || c.Clients > MaxClients {
		problems = append(problems, fmt.Errorf("clients: %d is not between 1 and %d", c.Clients, MaxClients))
	}
	if c.PortOffset < AutoPorts || c.PortOffset > maxOffset {
		problems = append(problems, fmt.Errorf("port offset: %d is not between 0 and %d", c.PortOffset, maxOffset))
	}
	if c.Docker != "auto" && c.Docker != "on" && c.Docker != "off" {
		problems = append(problems, fmt.Errorf("docker: %q is not auto, on or off", c.Docker))
	}
	if c.DriverPlugin != "auto" && c.DriverPlugin != "on" && c.DriverPlugin != "off" {
		problems = append(problems, fmt.Errorf("driver plugin: %q is not auto, on or off", c.DriverPlugin))
	}
	if c.SessionTTLMin < 10*time.Millisecond {
		problems = append(problems, fmt.Errorf("session TTL: %s is too short", c.SessionTTLMin))
	}
	return c, errors.Join(problems...)
}

// cleanDir makes the path absolute and resolves links in the part that exists,
// so that what the kernel shows in /proc compares equal to it.
func cleanDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("folder %s: %w", dir, err)
	}
	if strings.ContainsAny(abs, "\"'\\$\n\r\t:,") {
		return "", hint.Wrap(fmt.Errorf("folder %q: quotes, backslashes, dollars, colons, commas and control characters cannot be in it", abs),
			"choose a plain path with --dir")
	}
	for head, tail := abs, ""; ; head, tail = filepath.Dir(head), filepath.Join(filepath.Base(head), tail) {
		real, err := filepath.EvalSymlinks(head)
		if err == nil {
			return filepath.Join(real, tail), nil
		}
		if head == filepath.Dir(head) {
			return abs, nil
		}
	}
}

// Validate says what is wrong with the configuration, all of it at once.
func (c Config) Validate() error {
	_, err := c.withDefaults()
	return err
}
