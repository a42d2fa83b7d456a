package devcluster_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"golang.org/x/sys/unix"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func kvPair(key, value string) *consul.KVPair { return &consul.KVPair{Key: key, Value: []byte(value)} }

// idle is a job whose tasks do nothing, one allocation on each client.
func idle(c *devcluster.Cluster, id, driver string, tasks ...string) *nomad.Job {
	plan := c.Plan()
	group := nomad.NewTaskGroup("g", len(plan.Nodes)-servers(c))
	group.Networks = []*nomad.NetworkResource{{Mode: plan.NetworkMode(), DynamicPorts: []nomad.Port{{Label: "http", To: 8080}}}}
	group.Services = []*nomad.Service{{Name: id, PortLabel: "http", Provider: "consul"}}
	group.Constrain(nomad.NewConstraint("", "distinct_hosts", "true"))
	for _, name := range tasks {
		task := nomad.NewTask(name, driver).SetConfig("command", command(c, driver)).SetConfig("args", []string{"pause"})
		if driver == devcluster.DriverDocker {
			task.SetConfig("image", plan.Image)
		}
		task.Require(&nomad.Resources{CPU: new(20), MemoryMB: new(32)})
		task.Consul = &nomad.Consul{}
		group.AddTask(task)
	}
	job := nomad.NewServiceJob(id, id, "global", 50)
	job.Datacenters = []string{"*"}
	return job.AddTaskGroup(group)
}

func servers(c *devcluster.Cluster) (n int) {
	for _, node := range c.Plan().Nodes {
		if node.Server {
			n++
		}
	}
	return n
}

func command(c *devcluster.Cluster, driver string) string {
	if driver == devcluster.DriverRawExec {
		return filepath.Join(c.Dir(), "bin", "retinue")
	}
	return "/usr/local/bin/retinue"
}

// run registers a job and waits until its allocations run.
func run(t *testing.T, c *devcluster.Cluster, job *nomad.Job) []*nomad.Allocation {
	t.Helper()
	api, err := c.Nomad()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := api.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	var running []*nomad.Allocation
	harness.Eventually(t, 60*time.Second, *job.ID+" runs", func(context.Context) error {
		running = nil
		stubs, _, err := api.Jobs().Allocations(*job.ID, false, nil)
		if err != nil {
			return err
		}
		for _, s := range stubs {
			alloc, _, err := api.Allocations().Info(s.ID, nil)
			if err != nil {
				return err
			}
			for name, st := range s.TaskStates {
				if st.State != "running" {
					return fmt.Errorf("%s is %s: %v", name, st.State, events(st))
				}
			}
			if s.ClientStatus == nomad.AllocClientStatusRunning {
				running = append(running, alloc)
			}
		}
		if want := *job.TaskGroups[0].Count; len(running) != want {
			return fmt.Errorf("%d of %d allocations run", len(running), want)
		}
		return nil
	})
	slices.SortFunc(running, func(a, b *nomad.Allocation) int { return strings.Compare(a.NodeName, b.NodeName) })
	return running
}

func events(st *nomad.TaskState) string {
	var all []string
	for _, e := range st.Events {
		all = append(all, e.DisplayMessage)
	}
	return strings.Join(all, "; ")
}

// taskPID finds a process of an allocation by its environment.
func taskPID(t *testing.T, alloc string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && strings.Contains("\x00"+string(raw), "\x00NOMAD_ALLOC_ID="+alloc) {
			return pid
		}
	}
	t.Fatalf("no process of allocation %s", alloc)
	return 0
}

// inNetwork calls f with the network of a process. The thread it dirties ends
// with the goroutine.
func inNetwork(t *testing.T, pid int, f func() error) {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			result <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	if err := <-result; err != nil {
		t.Errorf("in the network of pid %d: %v", pid, err)
	}
}

// dialHere makes the connection on this very thread, whose network it is.
func dialHere(addr string) error {
	ap, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	wait := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait); err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: ap.Port}
	copy(to.Addr[:], ap.IP.To4())
	if err := unix.Connect(fd, to); err != nil {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	return nil
}

// TestNetwork holds the promises about addresses for every driver in bridge
// mode: a task reaches its own node's Consul at ${meta.retinue_consul}, and a
// published port answers on loopback, on the gateway, from the other node's
// tasks and from the task itself. The gateways keep their hardware addresses,
// which tasks know and do not ask for again.
func TestNetwork(t *testing.T) {
	harness.Need(t, harness.Root, harness.CNI, harness.Iptables)
	t.Parallel()
	cfg := config(t)
	cfg.Clients = 2
	c := up(t, cfg)
	api, err := c.Nomad()
	if err != nil {
		t.Fatal(err)
	}
	drivers := []string{devcluster.DriverExec}
	if c.Plan().DockerSocket != "" {
		drivers = append(drivers, devcluster.DriverDocker)
	}
	before := bridgeAddrs(t, c)
	for _, driver := range drivers {
		allocs := run(t, c, idle(c, "net-"+driver, driver, "app"))
		if now := bridgeAddrs(t, c); now != before {
			t.Errorf("%s: the bridges were %s and are %s", driver, before, now)
		}
		var pidOf []int
		for _, a := range allocs {
			pidOf = append(pidOf, taskPID(t, a.ID))
		}
		for i, a := range allocs {
			node, _, err := api.Nodes().Info(a.NodeID, nil)
			if err != nil {
				t.Fatal(err)
			}
			consulAddr, gateway := node.Meta["retinue_consul"], node.Meta["retinue_gateway"]
			inNetwork(t, pidOf[i], func() error { return dialHere(consulAddr) })
			local, err := c.ConsulAt("http://" + consulAddr)
			if err != nil {
				t.Fatal(err)
			}
			if name, err := local.Agent().NodeName(); err != nil || name != a.NodeName {
				t.Errorf("%s: the Consul of %s is %q (%v)", driver, a.NodeName, name, err)
			}

			// A server inside the task's network, on the port that is published.
			var l net.Listener
			inNetwork(t, pidOf[i], func() (err error) {
				l, err = net.Listen("tcp4", ":8080")
				return err
			})
			if l == nil {
				t.FailNow()
			}
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, a.ID) })}
			go srv.Serve(l)
			port := a.AllocatedResources.Shared.Ports[0]
			if port.HostIP != gateway {
				t.Errorf("%s: the port is published on %s, the gateway is %s", driver, port.HostIP, gateway)
			}
			for _, host := range []string{"127.0.0.1", gateway} {
				resp, err := http.Get(fmt.Sprintf("http://%s:%d", host, port.Value))
				if err != nil {
					t.Errorf("%s: from the host by %s: %v", driver, host, err)
					continue
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(body) != a.ID {
					t.Errorf("%s: from the host by %s: %q, %v", driver, host, body, err)
				}
			}
			published := fmt.Sprintf("%s:%d", gateway, port.Value)
			inNetwork(t, pidOf[i], func() error { return dialHere(published) })   // hairpin
			inNetwork(t, pidOf[1-i], func() error { return dialHere(published) }) // the other node
			srv.Close()
		}
	}
}

// bridgeAddrs is the hardware addresses of the cluster's bridges.
func bridgeAddrs(t *testing.T, c *devcluster.Cluster) string {
	var all []string
	for _, n := range c.Plan().Nodes {
		if n.Bridge == nil {
			continue
		}
		iface, err := net.InterfaceByName(n.Bridge.Name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, iface.HardwareAddr.String())
	}
	return strings.Join(all, " ")
}

// TestWorkloadIdentity holds the ACLs: a task gets the role that bears its name
// and its job's, and its neighbour in the same allocation does not.
func TestWorkloadIdentity(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.ACL = true
	c := up(t, cfg)
	api, err := c.Consul()
	if err != nil {
		t.Fatal(err)
	}
	anonymous, err := consul.NewClient(&consul.Config{Address: c.ConsulAddr()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := anonymous.KV().Put(kvPair("x", "y"), nil); err == nil {
		t.Error("anybody may write to Consul")
	}
	rules := `key "retinue/elections/app/leader" { policy = "write" } session_prefix "" { policy = "write" }`
	if _, _, err := api.ACL().PolicyCreate(&consul.ACLPolicy{Name: "elector-of-app", Rules: rules}, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := api.ACL().RoleCreate(&consul.ACLRole{Name: "retinue-elector-app", Policies: []*consul.ACLLink{{Name: "elector-of-app"}}}, nil); err != nil {
		t.Fatal(err)
	}
	alloc := run(t, c, idle(c, "app", c.Plan().Driver(), "elector", "main"))[0]
	as := func(task string) *consul.Client {
		var dir string
		for _, n := range c.Plan().Nodes {
			if n.Name == alloc.NodeName {
				dir = c.Plan().AllocDir(n)
			}
		}
		raw, err := os.ReadFile(filepath.Join(dir, alloc.ID, task, "secrets", "consul_token"))
		if err != nil {
			t.Fatal(err)
		}
		client, err := consul.NewClient(&consul.Config{Address: c.ConsulAddr(), Token: string(raw)})
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	if _, err := as("elector").KV().Put(kvPair("retinue/elections/app/leader", "me"), nil); err != nil {
		t.Errorf("the elector may not write its key: %v", err)
	}
	if _, err := as("elector").KV().Put(kvPair("retinue/elections/other/leader", "me"), nil); err == nil {
		t.Error("the elector may write another application's key")
	}
	if _, err := as("main").KV().Put(kvPair("retinue/elections/app/leader", "me"), nil); err == nil {
		t.Error("the main task may write the elector's key")
	}
	if _, _, err := as("main").KV().Get("retinue/elections/app/leader", nil); err != nil {
		t.Errorf("the main task may not read: %v", err)
	}
	harness.Eventually(t, 20*time.Second, "the service is in the catalog", func(context.Context) error {
		found, _, err := api.Catalog().Service("app", "", nil)
		if err == nil && len(found) != 1 {
			err = fmt.Errorf("%d instances", len(found))
		}
		return err
	})
}

// TestDownAfterTheWorst kills all agents with -9 while tasks run, and loses the
// state file.
func TestDownAfterTheWorst(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	c := up(t, cfg)
	var allocs []string
	for _, driver := range []string{c.Plan().Driver(), devcluster.DriverRawExec} {
		for _, a := range run(t, c, idle(c, "doomed-"+strings.ReplaceAll(driver, "_", "-"), driver, "app")) {
			allocs = append(allocs, a.ID)
		}
	}
	for _, a := range c.Agents() {
		if err := a.Kill(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(cfg.Dir, "state.json")); err != nil {
		t.Fatal(err)
	}
	if left := remains(t, cfg.Dir, allocs); len(left) < 3 {
		t.Fatalf("the test sees too little of what is there: %q", left)
	}
	if err := devcluster.Down(t.Context(), cfg.Dir, nil); err != nil {
		t.Fatal(err)
	}
	if left := remains(t, cfg.Dir, allocs); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}
