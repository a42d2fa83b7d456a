package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"golang.org/x/sys/unix"

	"retinue/tests/harness"
)

// groupSpec is one application of the campaign.
type groupSpec struct {
	Name       string
	Lease      time.Duration
	Revocation string
	Mode       string
	Elections  int
	Electors   int
	Binary     string   // of the elector; "" is the project's own
	Weights    []weight // its faults; nil is groupWeights
	Canary     bool     // the elector is broken on purpose: it need not heal, nor clean up
	Gated      bool     // its electors reach Consul through gates
}

// world is all that the campaign breaks.
type world struct {
	t       *scope
	self    string // our own binary
	retinue string
	hub     *hub
	servers []*node
	hosts   []*node
	groups  []*group
	slots   map[string]*slot
	judge   *judge
	late    sleepers
	verbose bool
}

// node is a host with a Consul agent.
type node struct {
	host   *harness.Host
	index  int
	agent  *proc
	api    *consulapi.Client
	anchor *harness.Process // keeps the network namespace reachable
	disk   string           // a small disk of its own, if it has one
}

// group is an application: electors on several hosts, an application process beside each.
type group struct {
	groupSpec
	name      string
	index     int
	lease     time.Duration
	elections []*election
	slots     []*slot
}

func (g *group) election(name string) *election {
	for _, e := range g.elections {
		if e.name == name {
			return e
		}
	}
	return nil
}

// failover is the longest time from a silent death until another may lead.
func (g *group) failover() time.Duration {
	f := 2 * max(g.lease, time.Second)
	if g.Revocation == "safe" {
		f += g.lease
	}
	return f
}

// slot is one elector and its application.
type slot struct {
	name    string
	group   *group
	node    *node
	address string // of the Consul agent, for this group alone: a partition of it hits one elector
	dir     string
	gate    *gate // nil where the group is not gated
	elector *proc
	app     *proc

	mu        sync.Mutex
	processes []*incarnation
	troubles  []trouble
	kills     map[int]int64 // when runs of the application were killed
	timedOut  []int64       // when Consul ended sessions of the elector for their TTL, noted at the end
}

// trouble is a time in which the elector or the application could not run, or could not know.
type trouble struct {
	class    Class
	from, to int64
}

func (s *slot) troubled(class Class, from, to int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubles = append(s.troubles, trouble{class, from, to})
}

// incarnate notes a new process of the application.
func (s *slot) incarnate(run int) *incarnation {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := &incarnation{slot: s, run: run}
	in.killed.Store(s.kills[run])
	s.processes = append(s.processes, in)
	return in
}

// doomed notes that the application's process is about to be killed.
func (s *slot) doomed() { s.dies(s.app.run(), bootNow()) }

func (s *slot) dies(run int, at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kills[run] = at
	for _, in := range s.processes {
		if in.run == run {
			in.killed.CompareAndSwap(0, at)
		}
	}
}

func (w *world) slot(name string) *slot { return w.slots[name] }

// proc is a process whose death is expected, or a finding. It is started many times; runs counts them.
type proc struct {
	*harness.Process
	name string
	died func(name, tail string)

	mu   sync.Mutex
	runs int
	life *life
}

// life is one run of a process.
type life struct{ doomed atomic.Bool }

func newProc(t harness.T, spec harness.Spec, died func(name, tail string)) *proc {
	spec.Env = append(spec.Env, runEnv+"=1")
	p := &proc{Process: harness.Start(t, spec), name: spec.Name, died: died, runs: 1, life: &life{}}
	p.watch()
	return p
}

// watch reports the end of the present run, unless it was expected.
func (p *proc) watch() {
	done, life := p.Done(), p.life
	go func() {
		<-done
		if !life.doomed.Load() {
			log := strings.Split(strings.TrimSpace(p.Log()), "\n")
			p.died(p.name, strings.Join(log[max(0, len(log)-12):], "\n"))
		}
	}()
}

func (p *proc) expectDeath() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.life.doomed.Store(true)
}

func (p *proc) kill() {
	p.expectDeath()
	p.Kill()
}

func (p *proc) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.runs++
	p.life = &life{}
	p.Run(fmt.Sprintf("%s=%d", runEnv, p.runs))
	p.watch()
}

// run is the number of the present run.
func (p *proc) run() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runs
}

// ended says whether it has ended.
func (p *proc) ended(within time.Duration) bool {
	select {
	case <-p.Done():
		return true
	case <-time.After(within):
		return false
	}
}

// buildWorld starts the cluster, and makes everything ready for the electors.
func buildWorld(t *scope, s settings, j *judge) (*world, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &world{t: t, self: self, slots: map[string]*slot{}, judge: j, retinue: harness.RetinueBinary(t), verbose: s.Logs != ""}
	dir := harness.Dir(t, "campaign")
	n := harness.NewNet(t)
	for i := range 3 {
		w.servers = append(w.servers, w.addNode(n, fmt.Sprintf("s%d", i+1), i))
	}
	for i := range s.Hosts {
		w.hosts = append(w.hosts, w.addNode(n, fmt.Sprintf("c%d", i+1), i))
	}
	for i, n := range w.servers {
		config := map[string]any{"server": true, "bootstrap_expect": 3, "session_ttl_min": "1s", "performance": map[string]any{"raft_multiplier": 1},
			"autopilot": map[string]any{"cleanup_dead_servers": false}}
		if i == 2 {
			n.disk = filepath.Join(dir, "disk")
			if err := mountSmall(n.disk, "256m"); err != nil {
				return nil, err
			}
		}
		w.startConsul(n, dir, config)
	}
	for _, c := range w.hosts {
		w.startConsul(c, dir, map[string]any{})
	}
	for _, c := range append(append([]*node(nil), w.servers...), w.hosts...) {
		c.waitReady(t)
	}
	for i, spec := range s.Groups {
		if err := w.addGroup(i, spec, dir); err != nil {
			return nil, err
		}
	}
	if w.hub, err = newHub(w, filepath.Join(dir, "hub"), s.Seed); err != nil {
		return nil, err
	}
	t.Cleanup(w.hub.close)
	return w, nil
}

// startSlots starts the electors and their applications.
func (w *world) startSlots() error {
	for _, g := range w.groups {
		for _, s := range g.slots {
			if err := w.startSlot(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func mountSmall(path, size string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return unix.Mount("tmpfs", path, "tmpfs", 0, "size="+size)
}

func (w *world) addNode(n *harness.Net, name string, index int) *node {
	h := n.Host(name)
	return &node{host: h, index: index, anchor: harness.Start(w.t, harness.Spec{Name: "anchor-" + name, Path: sleepPath(), Args: []string{"86400"}, Host: h})}
}

func sleepPath() string {
	path, err := exec.LookPath("sleep")
	if err != nil {
		return "/bin/sleep"
	}
	return path
}

// startConsul starts the agent of a node. It answers on every loopback address, so that each group reaches it by one of its own.
func (w *world) startConsul(n *node, dir string, config map[string]any) {
	folder := filepath.Join(dir, n.host.Name)
	data := filepath.Join(folder, "data")
	if n.disk != "" {
		data = filepath.Join(n.disk, "data")
	}
	level := "warn"
	if config["server"] == true { // its word on the end of sessions
		level = "debug"
	}
	var join []string
	for _, s := range w.servers {
		join = append(join, s.host.IP)
	}
	for key, value := range map[string]any{"node_name": n.host.Name, "data_dir": data, "bind_addr": n.host.IP, "client_addr": "0.0.0.0", "retry_join": join,
		"retry_interval": "500ms", "rejoin_after_leave": true, "log_level": level, "disable_update_check": true, "disable_host_node_id": true,
		"ui_config": map[string]any{"enabled": false}, "limits": map[string]any{"http_max_conns_per_client": 1000}} {
		config[key] = value
	}
	file := filepath.Join(folder, "config.json")
	text, err := json.Marshal(config)
	if err == nil {
		err = os.MkdirAll(folder, 0o755)
	}
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	n.agent = newProc(w.t, harness.Spec{Name: "consul-" + n.host.Name, Path: harness.ConsulBinary(w.t), Args: []string{"agent", "-config-file", file}, Host: n.host},
		func(name, tail string) { w.judge.note("a Consul agent ended by itself: " + name) })
	client, err := consulapi.NewClient(&consulapi.Config{Address: "127.0.0.1:8500", Transport: n.host.Transport(), HttpClient: &http.Client{Transport: n.host.Transport(), Timeout: 3 * time.Second}})
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	n.api = client
}

func (n *node) waitReady(t harness.T) {
	harness.Eventually(t, 60*time.Second, "consul on "+n.host.Name+" is ready", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		found, _, err := n.api.Catalog().Node(n.host.Name, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err == nil && found == nil {
			err = fmt.Errorf("not in the catalog yet")
		}
		return err
	})
}

func (w *world) addGroup(index int, spec groupSpec, dir string) error {
	g := &group{groupSpec: spec, name: spec.Name, index: index, lease: spec.Lease}
	for i := range spec.Elections {
		g.elections = append(g.elections, newElection(g, fmt.Sprintf("e%d", i)))
	}
	w.groups = append(w.groups, g)
	for i := range spec.Electors {
		n := w.hosts[(index+i)%len(w.hosts)]
		s := &slot{name: fmt.Sprintf("%s-%d", spec.Name, i), group: g, node: n, address: fmt.Sprintf("127.0.%d.%d", 10+index, 10+i), kills: map[int]int64{}}
		s.dir = filepath.Join(dir, s.name)
		if err := mountSmall(filepath.Join(s.dir, "secrets"), "128k"); err != nil {
			return err
		}
		g.slots = append(g.slots, s)
		w.slots[s.name] = s
	}
	return nil
}

// startSlot starts an elector and its application. The hub knows the slot already.
func (w *world) startSlot(s *slot) error {
	g := s.group
	var names []string
	for _, e := range g.elections {
		names = append(names, e.name)
	}
	binary := g.Binary
	if binary == "" {
		binary = w.retinue
	}
	consul := s.address + ":8500"
	if g.Gated {
		gate, err := openGate(s)
		if err != nil {
			return err
		}
		w.t.Cleanup(gate.close)
		s.gate, consul = gate, s.address+":8501"
	}
	socket := filepath.Join(s.dir, "e.sock")
	level := "info"
	if w.verbose {
		level = "debug"
	}
	died := func(name, tail string) {
		w.judge.died(g.name, fmt.Sprintf("%s ended by itself:\n%s", name, tail))
	}
	s.elector = newProc(w.t, harness.Spec{Name: "elector-" + s.name, Path: binary, Host: s.node.host, Dir: s.dir,
		Args: []string{"elector", "--app", g.name, "--election", strings.Join(names, ","), "--lease", g.lease.String(), "--revocation", g.Revocation,
			"--listen", "unix://" + socket, "--state", filepath.Join(s.dir, "secrets", "elector.json"), "--id", s.name, "--host", s.node.host.Name, "--log-level", level},
		Env: []string{"CONSUL_HTTP_ADDR=" + consul, "GOMAXPROCS=2"}}, died)
	config, err := json.Marshal(appConfig{Hub: w.hub.listen.Addr().String(), Elector: socket, Slot: s.name, Elections: names, Mode: g.Mode, Lease: g.lease})
	if err != nil {
		return err
	}
	s.app = newProc(w.t, harness.Spec{Name: "app-" + s.name, Path: w.self, Host: s.node.host, Env: []string{appEnv + "=" + string(config), "GOMAXPROCS=2"}},
		func(name, tail string) { w.judge.note("an application ended by itself: " + name + ": " + tail) })
	return nil
}

// led waits until all elections of the groups have a leader, and says which have none.
func (w *world) led(ctx context.Context, groups []*group, limit time.Duration) (missing []string) {
	deadline := time.Now().Add(limit)
	for {
		missing = nil
		for _, g := range groups {
			for _, e := range g.elections {
				if e.leader() == nil {
					missing = append(missing, g.name+"/"+e.name)
				}
			}
		}
		if len(missing) == 0 || ctx.Err() != nil || time.Now().After(deadline) {
			return missing
		}
		time.Sleep(15 * time.Millisecond)
	}
}

// sound are the groups whose elector is not broken on purpose.
func (w *world) sound() (out []*group) {
	for _, g := range w.groups {
		if !g.Canary {
			out = append(out, g)
		}
	}
	return out
}

// keepLogs copies what the electors have logged.
func (w *world) keepLogs(folder string) {
	if folder == "" {
		return
	}
	err := os.MkdirAll(folder, 0o755)
	for _, s := range w.slots {
		if err == nil && s.elector != nil {
			err = os.WriteFile(filepath.Join(folder, s.name+".log"), []byte(s.elector.Log()), 0o644)
		}
	}
	if err != nil {
		w.t.Logf("keep the logs: %v", err)
	}
}
