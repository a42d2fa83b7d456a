package devcluster

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

// markerEnv is in the environment of every agent and so of every process that
// an agent starts; its value is the folder of the cluster. Down finds by it what
// no file knows about any more.
const markerEnv = "RETINUE_DEV_CLUSTER"

// Agent is one Consul or Nomad agent of a cluster.
type Agent struct {
	Name     string         `json:"name"` // nomad-client-1
	Kind     string         `json:"kind"` // ConsulServer, NomadServer, ConsulClient or NomadClient
	Node     string         `json:"node"` // client-1
	Addr     netip.Addr     `json:"addr"`
	HTTPAddr string         `json:"http_addr"` // http://127.64.2.1:4646
	LogFile  string         `json:"log_file"`
	PID      int            `json:"pid"` // 0 when it does not run
	Gateway  string         `json:"gateway,omitempty"`
	MinPort  int            `json:"min_dynamic_port,omitempty"`
	MaxPort  int            `json:"max_dynamic_port,omitempty"`
	Bridge   string         `json:"bridge,omitempty"`
	Subnet   string         `json:"subnet,omitempty"`
	cluster  *Cluster       // whose agent it is
	process  procfs.Process // zero when it was never started
}

// Kill sends a signal to the agent itself, not to the tasks it runs. The pid is
// checked first: what has taken it since is left alone.
func (a Agent) Kill(sig syscall.Signal) error {
	now, err := a.cluster.Agent(a.Name)
	if err != nil {
		return err
	}
	if err := procfs.New("").Signal(now.process, sig); err != nil {
		return fmt.Errorf("signal %s: %w", a.Name, err)
	}
	return nil
}

// Restart starts the agent again over the data it had, after a SIGKILL if it
// still runs, and waits until it answers.
func (a Agent) Restart(ctx context.Context) error {
	return a.cluster.restart(ctx, a.Name)
}

// agents lists what the plan has, servers before clients and Consul before
// Nomad: the order in which they can start.
func (p Plan) agents() []Agent {
	var out []Agent
	for _, n := range p.Nodes {
		consul, nomad := kinds(n)
		for _, kind := range []string{consul, nomad} {
			name := agentName(kind, n)
			standard := portConsulHTTP
			if kind == nomad {
				standard = portNomadHTTP
			}
			a := Agent{
				Name: name, Kind: kind, Node: n.Name, Addr: n.Addr,
				HTTPAddr: "http://" + p.on(n.Addr, standard).String(),
				LogFile:  p.logFile(name), MinPort: n.MinPort, MaxPort: n.MaxPort,
			}
			if n.Bridge != nil {
				a.Gateway, a.Bridge, a.Subnet = n.Bridge.Gateway.String(), n.Bridge.Name, n.Bridge.Subnet.String()
			}
			out = append(out, a)
		}
	}
	return out
}

// command is the command line of an agent. The program is the link in the
// cluster's bin folder, and the folder is in the path of the configuration: that
// is how an agent is told from one of somebody else.
func (p Plan) command(a Agent) []string {
	if a.Kind == NomadServer || a.Kind == NomadClient {
		return []string{filepath.Join(p.binDir(), "nomad"), "agent", "-config=" + p.configFile(a.Name)}
	}
	return []string{filepath.Join(p.binDir(), "consul"), "agent", "-config-file=" + p.configFile(a.Name)}
}

// start runs one agent in the background: its own session, so that a Ctrl-C in
// the terminal is not for it, its own log, and an environment made from nothing,
// since AWS_CA_BUNDLE, CONSUL_HTTP_TOKEN, NOMAD_* and the like change agents.
func (p Plan) start(a Agent) (procfs.Process, error) {
	args := p.command(a)
	log, err := os.OpenFile(a.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return procfs.Process{}, diskError(fmt.Errorf("start %s: %w", a.Name, err))
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = p.Dir
	cmd.Env = agentEnv(p.Dir, p.binDir())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return procfs.Process{}, fmt.Errorf("start %s: %w", a.Name, err)
	}
	go cmd.Wait() // reaps it when it ends before this program does; its fate is read from /proc
	proc, ok := procfs.New("").Lookup(cmd.Process.Pid)
	if !ok {
		return proc, p.deathOf(a)
	}
	return proc, nil
}

// agentEnv has the cluster's own programs first: an agent calls consul for the sidecars of Connect.
func agentEnv(dir, bin string) []string {
	env := []string{markerEnv + "=" + dir, "LANG=C.UTF-8"}
	path := bin + ":" + os.Getenv("PATH")
	for _, sbin := range []string{"/usr/sbin", "/sbin"} { // iptables is there
		if !strings.Contains(":"+path+":", ":"+sbin+":") {
			path += ":" + sbin
		}
	}
	env = append(env, "PATH="+path)
	for _, name := range []string{"HOME", "USER", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// deathOf explains an agent that ended by itself with the end of its log. The
// log itself may be gone with the cluster when the person reads this.
func (p Plan) deathOf(a Agent) error {
	tail := logTail(a.LogFile, 20)
	err := fmt.Errorf("%s ended by itself; the end of its log:\n%s", a.Name, tail)
	if strings.Contains(tail, unix.ENOSPC.Error()) {
		return diskError(fmt.Errorf("%w (%w)", err, unix.ENOSPC))
	}
	return hint.Wrap(err, "`retinue doctor` checks this machine")
}

// logTail returns the last lines of a file.
func logTail(name string, lines int) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 16 << 10
	if info, err := f.Stat(); err == nil && info.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// isAgentOf says whether a process is an agent of the cluster in dir.
func isAgentOf(args []string, dir string) bool { return dir == agentDirOf(args) }

// agentDirOf is the folder of the cluster whose agent has this command line, ""
// for any other process.
func agentDirOf(args []string) string {
	if len(args) != 3 || args[1] != "agent" {
		return ""
	}
	var config string
	switch filepath.Base(args[0]) {
	case "nomad":
		config, _ = strings.CutPrefix(args[2], "-config=")
	case "consul":
		config, _ = strings.CutPrefix(args[2], "-config-file=")
	}
	agents := filepath.Dir(filepath.Dir(config)) // <dir>/agents/<name>/config.hcl
	if !filepath.IsAbs(config) || filepath.Base(agents) != "agents" || !strings.HasPrefix(filepath.Base(config), "config.") {
		return ""
	}
	return filepath.Dir(agents)
}

// waitGone is how long an agent may take to end after SIGTERM.
const waitGone = 5 * time.Second
