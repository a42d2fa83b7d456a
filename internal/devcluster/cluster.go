package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue"
	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

// Lease is the leader-election lease that jobs get on a dev cluster: short, so
// that a crash fail-over can be watched.
const Lease = 2 * time.Second

// Cluster is a cluster that exists: its agents may run or not.
type Cluster struct {
	mu    sync.Mutex // guards state.Agents against concurrent Restart and Agents
	state *state
	proc  procfs.FS
}

// EnvVar is one variable of a cluster's environment.
type EnvVar struct{ Name, Value string }

// Open finds the cluster of a folder; "" means DefaultDir.
func Open(dir string) (*Cluster, error) {
	cfg, err := Config{Dir: dir}.withDefaults()
	if err != nil {
		return nil, err
	}
	st, err := loadState(cfg.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, hint.Wrap(fmt.Errorf("no dev cluster in %s", cfg.Dir), "start one with `retinue dev up`, or name its folder with --dir")
	case errors.Is(err, fs.ErrPermission):
		return nil, hint.Wrap(err, "the cluster belongs to another user: use that user, or another --dir")
	case err != nil:
		return nil, hint.Wrap(err, "`retinue dev down` cleans up after a damaged cluster as well")
	}
	return newCluster(st), nil
}

func newCluster(st *state) *Cluster {
	return &Cluster{state: st, proc: procfs.New("")}
}

// Dir is the folder of the cluster.
func (c *Cluster) Dir() string { return c.state.Plan.Dir }

// Plan is what the cluster was made to be.
func (c *Cluster) Plan() Plan { return c.state.Plan }

// Agents lists the agents, with the pids they have now.
func (c *Cluster) Agents() []Agent {
	c.mu.Lock()
	defer c.mu.Unlock()
	agents := c.state.Plan.agents()
	for i := range agents {
		a := &agents[i]
		a.cluster, a.process = c, c.state.Agents[a.Name]
		if c.proc.Alive(a.process) {
			a.PID = a.process.PID
		}
	}
	return agents
}

// Agent returns the agent of that name.
func (c *Cluster) Agent(name string) (Agent, error) {
	var names []string
	for _, a := range c.Agents() {
		if a.Name == name {
			return a, nil
		}
		names = append(names, a.Name)
	}
	return Agent{}, hint.Wrap(fmt.Errorf("no agent %q in this cluster", name), "it has %s", strings.Join(names, ", "))
}

// Env is what a shell or a test needs to use the cluster, in a fixed order.
func (c *Cluster) Env() []EnvVar {
	env := []EnvVar{
		{"NOMAD_ADDR", c.NomadAddr()},
		{"CONSUL_HTTP_ADDR", c.ConsulAddr()},
	}
	if t := c.state.Tokens; c.state.Plan.ACL {
		env = append(env, EnvVar{"NOMAD_TOKEN", t.Nomad}, EnvVar{"CONSUL_HTTP_TOKEN", t.Consul})
	}
	for _, v := range c.jobVars() {
		env = append(env, EnvVar{"NOMAD_VAR_" + v.Name, v.Value})
		if v.Name == "consul_http_addr" { // of a pattern that `retinue inject` put around a job
			env = append(env, EnvVar{"NOMAD_VAR_retinue_" + v.Name, v.Value})
		}
	}
	return append(env, EnvVar{"PATH", c.searchPath(os.Getenv("PATH"))})
}

// jobVars are the variables of a jobspec that depend on the cluster.
func (c *Cluster) jobVars() []EnvVar {
	p := c.state.Plan
	return []EnvVar{
		{"driver", p.Driver()},
		{"retinue_image", p.image()},
		{"retinue_command", c.TaskCommand(p.Driver())},
		{"network_mode", p.NetworkMode()},
		{"consul_http_addr", "http://${meta.retinue_consul}"},
		{"consul_ui", c.ConsulAddr() + "/ui/dc1"},
		{"lease", Lease.String()},
	}
}

// JobVars returns the jobspec variables of Env by their names, without the
// NOMAD_VAR_ before them.
func (c *Cluster) JobVars() map[string]string {
	vars := map[string]string{}
	for _, v := range c.jobVars() {
		vars[v.Name] = v.Value
	}
	return vars
}

// Describe says in a line what runs.
func (c *Cluster) Describe() string {
	p := c.state.Plan
	acl := ""
	if p.ACL {
		acl = ", ACLs on"
	}
	return fmt.Sprintf("%d server and %d client nodes, %s driver, %s networking%s", len(p.servers()), len(p.clients()), p.Driver(), p.NetworkMode(), acl)
}

// TaskGateway is an address of this host that the host can listen on and that
// every task reaches: the first client's gateway, whose tasks have it as their
// router, or loopback where tasks share the host's network.
func (c *Cluster) TaskGateway() string {
	if b := c.state.Plan.clients()[0].Bridge; b != nil {
		return b.Gateway.String()
	}
	return localhost.String()
}

// TaskCommand is the path of the retinue binary as a task of a driver sees it.
func (c *Cluster) TaskCommand(driver string) string {
	if driver == DriverRawExec {
		return c.state.Plan.retinueBin()
	}
	return taskBinary
}

// searchPath puts the cluster's nomad and consul first, once.
func (c *Cluster) searchPath(path string) string {
	bin := c.state.Plan.binDir()
	if strings.HasPrefix(path+":", bin+":") {
		return path
	}
	return strings.TrimSuffix(bin+":"+path, ":")
}

// NomadAddr and ConsulAddr are the addresses of the first server.
func (c *Cluster) NomadAddr() string {
	return "http://" + c.state.Plan.on(localhost, portNomadHTTP).String()
}

func (c *Cluster) ConsulAddr() string {
	return "http://" + c.state.Plan.on(localhost, portConsulHTTP).String()
}

// Nomad returns a client of the first server with the management token.
func (c *Cluster) Nomad() (*nomad.Client, error) { return c.NomadAt(c.NomadAddr()) }

// NomadAt is Nomad for another agent, by its HTTPAddr.
func (c *Cluster) NomadAt(addr string) (*nomad.Client, error) {
	return nomad.NewClient(&nomad.Config{Address: addr, SecretID: c.state.Tokens.Nomad, TLSConfig: &nomad.TLSConfig{}})
}

// Consul returns a client of the first server with the management token.
func (c *Cluster) Consul() (*consul.Client, error) { return c.ConsulAt(c.ConsulAddr()) }

// ConsulAt is Consul for another agent, by its HTTPAddr.
func (c *Cluster) ConsulAt(addr string) (*consul.Client, error) {
	// Everything is set here: the library would else look at CONSUL_* of the
	// person's shell, which may name another cluster.
	return consul.NewClient(&consul.Config{
		Address: addr, Scheme: "http", Token: c.state.Tokens.Consul,
		HttpClient: &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()},
	})
}

// restart implements Agent.Restart.
func (c *Cluster) restart(ctx context.Context, name string) error {
	lock, err := lockDir(ctx, c.Dir(), nil)
	if err != nil {
		return err
	}
	defer lock.release()
	if now, err := loadState(c.Dir()); err == nil { // others may have restarted agents
		c.mu.Lock()
		c.state.Agents = now.Agents
		c.mu.Unlock()
	}
	a, err := c.Agent(name)
	if err != nil {
		return err
	}
	if err := c.proc.Signal(a.process, syscall.SIGKILL); err != nil {
		return fmt.Errorf("restart %s: %w", name, err)
	}
	if left := c.proc.WaitGone([]procfs.Process{a.process}, waitGone); len(left) > 0 {
		return fmt.Errorf("restart %s: pid %d does not end", name, a.process.PID)
	}
	if err := c.startAgent(a); err != nil {
		return err
	}
	return c.waitAnswers(ctx, name)
}

// startAgent starts an agent and notes it in the state.
func (c *Cluster) startAgent(a Agent) error {
	proc, err := c.state.Plan.start(a)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.Agents[a.Name] = proc
	return c.state.save()
}

// Image and PauseImage are the names of the local images of this version: of
// the newest build of it. A cluster uses Plan.Image, its own build.
func Image() string      { return "retinue:" + retinue.Version }
func PauseImage() string { return "retinue-pause:" + retinue.Version }

// buildImage is the name of the image with that content. Clusters of different
// builds share an engine, and each must go on with its own.
func buildImage(content string) string { return Image() + "-" + content[:12] }

// linkTools puts the cluster's programs into its bin folder, for PATH.
func (c *Cluster) linkTools() error {
	for name, target := range map[string]string{"nomad": c.state.NomadBin, "consul": c.state.ConsulBin} {
		link := filepath.Join(c.state.Plan.binDir(), name)
		if now, err := os.Readlink(link); err == nil && now == target {
			continue
		}
		tmp := link + ".tmp"
		os.Remove(tmp)
		if err := os.Symlink(target, tmp); err != nil {
			return diskError(err)
		}
		if err := os.Rename(tmp, link); err != nil {
			return diskError(err)
		}
	}
	return nil
}
