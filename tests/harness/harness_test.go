package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
)

// TestMain also is the victim of TestNothingLeft: the same binary, told to die.
func TestMain(m *testing.M) { Main(m) }

func needNet(t *testing.T) {
	t.Helper()
	Need(t, Root, Netns, Iptables)
}

// A process runs, is paused, goes on, is killed, and runs again.
func TestProcess(t *testing.T) {
	t.Parallel()
	p := Start(t, Spec{Name: "ticker", Path: "/bin/sh", Args: []string{"-c", "while :; do echo tick; sleep 0.02; done"}})
	lines := func() int { return strings.Count(p.Log(), "tick\n") }
	grows := func(context.Context) error {
		before := lines()
		time.Sleep(60 * time.Millisecond)
		if lines() == before {
			return errors.New("no new line")
		}
		return nil
	}
	Eventually(t, 30*time.Second, "it ticks", grows)
	p.Pause()
	waitState(t, p, "T")
	p.Resume()
	Eventually(t, 30*time.Second, "it ticks again", grows)
	p.Kill()
	if err := p.WaitExit(30 * time.Second); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("after Kill the exit error is %v", err)
	}
	p.Run()
	Eventually(t, 30*time.Second, "it ticks after a restart", grows)
}

func waitState(t *testing.T, p *Process, want string) {
	t.Helper()
	Eventually(t, 30*time.Second, "process state "+want, func(context.Context) error {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
		if err != nil {
			return err
		}
		if state := strings.Fields(string(data))[2]; state != want {
			return fmt.Errorf("state is %s", state)
		}
		return nil
	})
}

// A partition drops what its direction says and nothing else; Heal ends it.
func TestPartition(t *testing.T) {
	t.Parallel()
	needNet(t)
	n := NewNet(t)
	a, b, c := n.Host("a"), n.Host("b"), n.Host("c")
	listeners := map[*Host]*net.UDPConn{}
	for _, h := range []*Host{a, b, c} {
		if err := h.do(func() (err error) {
			listeners[h], err = net.ListenUDP("udp", &net.UDPAddr{Port: 9})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer listeners[h].Close()
	}
	// send says whether a datagram arrives. One that must not arrive gets little
	// time; one that must is repeated, because the first may wait for an address.
	serial := 0
	send := func(from, to *Host, patience time.Duration) bool {
		conn, err := from.Dial(context.Background(), "udp", to.IP+":9")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		serial++
		message := fmt.Sprintf("%s %d", from.Name, serial)
		buf := make([]byte, 64)
		for began := time.Now(); time.Since(began) < patience; {
			_, _ = conn.Write([]byte(message)) // a dropped one answers EPERM
			_ = listeners[to].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			for {
				n, err := listeners[to].Read(buf)
				if err != nil {
					break
				}
				if string(buf[:n]) == message { // not a late one of before
					return true
				}
			}
		}
		return false
	}
	check := func(when string, want map[[2]*Host]bool) {
		t.Helper()
		for pair, ok := range want {
			patience := 300 * time.Millisecond
			if ok {
				patience = 30 * time.Second
			}
			if got := send(pair[0], pair[1], patience); got != ok {
				t.Errorf("%s: %s to %s arrives: %v, want %v", when, pair[0].Name, pair[1].Name, got, ok)
			}
		}
	}
	check("at the start", map[[2]*Host]bool{{a, b}: true, {b, a}: true, {a, c}: true})
	a.Partition(In)
	check("inbound", map[[2]*Host]bool{{a, b}: true, {b, a}: false, {c, a}: false, {b, c}: true})
	a.Heal()
	a.Partition(Out)
	check("outbound", map[[2]*Host]bool{{a, b}: false, {b, a}: true})
	a.Heal()
	a.Partition(Both, b)
	check("from b only", map[[2]*Host]bool{{a, b}: false, {b, a}: false, {a, c}: true, {c, a}: true})
	a.Heal()
	check("healed", map[[2]*Host]bool{{a, b}: true, {b, a}: true})
}

// Three servers elect another leader when theirs is killed.
func TestConsulCluster(t *testing.T) {
	t.Parallel()
	needNet(t)
	n := NewNet(t)
	servers := RunConsulServers(t, n.Host("s1"), n.Host("s2"), n.Host("s3"))
	client := RunConsulClient(t, n.Host("c1"), servers...)
	old := RaftLeader(t, servers)
	old.Kill()
	Eventually(t, 60*time.Second, "a write through another leader", func(ctx context.Context) error {
		_, err := client.API().KV().Put(&consulapi.KVPair{Key: "k"}, (&consulapi.WriteOptions{}).WithContext(ctx))
		return err
	})
	var rest []*ConsulServer
	for _, s := range servers {
		if s != old {
			rest = append(rest, s)
		}
	}
	if RaftLeader(t, rest) == old {
		t.Error("the killed server leads")
	}
}

const victimEnv = "RETINUE_TEST_VICTIM"

// TestVictim is not a test of its own: TestNothingLeft runs it in a process
// that then dies in the way the environment says.
func TestVictim(t *testing.T) {
	how := os.Getenv(victimEnv)
	if how == "" {
		return // not the child of TestNothingLeft
	}
	n := NewNet(t)
	h := n.Host("a")
	p := Start(t, Spec{Name: "sleeper", Path: "/bin/sleep", Args: []string{"600"}, Host: h})
	pids := []int{p.PID()}
	if strings.Contains(how, "cluster") {
		c := RunCluster(t, devcluster.Config{Servers: 1, Clients: 1, Docker: "off"})
		for _, agent := range c.Agents() {
			pids = append(pids, agent.PID)
		}
	}
	fmt.Printf("VICTIM %d %s %s END\n", os.Getpid(), h.ns, strings.Trim(fmt.Sprint(pids), "[]"))
	switch {
	case strings.HasPrefix(how, "panic"):
		panic("on purpose")
	case strings.HasPrefix(how, "fatal"):
		t.Fatal("on purpose")
	default:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

// Whatever way a test binary ends, its processes, namespaces, clusters and files go.
func TestNothingLeft(t *testing.T) {
	t.Parallel()
	needNet(t)
	for _, how := range []string{"panic", "fatal", "kill -9", "kill -9 with a dev cluster"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$", "-test.v")
			cmd.Env = append(withoutEnv(os.Environ(), runEnv), victimEnv+"="+how)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("the victim lives:\n%s", out)
			}
			_, line, found := strings.Cut(string(out), "VICTIM ")
			line, _, found2 := strings.Cut(line, " END")
			fields := strings.Fields(line)
			if !found || !found2 || len(fields) < 3 {
				t.Fatalf("the victim did not come up:\n%s", out)
			}
			gone := []string{"/run/netns/" + fields[1], filepath.Join(os.TempDir(), runPrefix+fields[0])}
			for _, pid := range fields[2:] {
				gone = append(gone, "/proc/"+pid)
			}
			Eventually(t, 40*time.Second, "nothing is left", func(context.Context) error {
				var errs []error
				for _, path := range gone {
					if _, err := os.Lstat(path); err == nil {
						errs = append(errs, fmt.Errorf("%s is there", path))
					}
				}
				return errors.Join(errs...)
			})
		})
	}
}

// What a dead run left is swept by the next one, when even its janitor was killed.
func TestNextRunSweeps(t *testing.T) {
	t.Parallel()
	needNet(t)
	theRun(t)         // so that this process sweeps no more by itself
	id := "999999999" // above every pid
	dir := filepath.Join(os.TempDir(), runPrefix+id)
	ns := "rt-" + id + "-1-a"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	orphan := exec.Command("/bin/sleep", "600")
	orphan.Env = []string{runEnv + "=" + dir}
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockRuns()
	if err != nil {
		t.Fatal(err)
	}
	sweepDead()
	unlock()
	if err := orphan.Wait(); err == nil {
		t.Error("the orphan ended by itself")
	}
	for _, path := range []string{dir, "/run/netns/" + ns} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is there", path)
		}
	}
	if _, err := os.Lstat(theRun(t).dir); err != nil {
		t.Errorf("a run that lives was swept: %v", err)
	}
}

// A Nomad of namespaces runs a job, and loses a client whose host is cut off.
func TestNomadCluster(t *testing.T) {
	t.Parallel()
	needNet(t)
	n := NewNet(t)
	consul := RunConsulServers(t, n.Host("s1"))
	server := RunNomadServer(t, consul[0].Host())
	host := n.Host("c1")
	RunConsulClient(t, host, consul...)
	client := RunNomadClient(t, host, server)

	job := nomadapi.NewServiceJob("sleeper", "sleeper", "global", 50)
	task := nomadapi.NewTask("sleep", "raw_exec").SetConfig("command", "/bin/sleep").SetConfig("args", []string{"600"})
	job.AddTaskGroup(nomadapi.NewTaskGroup("main", 1).AddTask(task))
	if _, _, err := server.API().Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	status := func(want string) func(context.Context) error {
		return func(ctx context.Context) error {
			allocs, _, err := server.API().Jobs().Allocations("sleeper", false, (&nomadapi.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return err
			}
			if len(allocs) == 0 || allocs[0].ClientStatus != want {
				return fmt.Errorf("want an allocation that is %s, have %d", want, len(allocs))
			}
			return nil
		}
	}
	Eventually(t, 60*time.Second, "the job runs", status("running"))
	client.Partition(Both)
	Eventually(t, 60*time.Second, "the allocation is lost", status("lost"))
	client.Heal()
	if _, _, err := server.API().Jobs().Deregister("sleeper", true, nil); err != nil {
		t.Error(err)
	}
}

// An application in the wild: with an elector beside it, it leads; killed, it
// leads no more at once, without waiting for the lease.
func TestApp(t *testing.T) {
	t.Parallel()
	needNet(t)
	n := NewNet(t)
	consul := RunConsulServers(t, n.Host("s1"))
	var apps []*App
	for _, name := range []string{"a", "b"} {
		h := n.Host(name)
		RunConsulClient(t, h, consul...)
		e := RunElector(t, h, ElectorConfig{Name: name, App: "orders", Lease: time.Minute})
		apps = append(apps, RunApp(t, e, name))
	}
	leader := func() *App {
		var found *App
		Eventually(t, 45*time.Second, "one application leads", func(ctx context.Context) error {
			var leading []*App
			for _, a := range apps {
				token, err := a.Token(ctx)
				if err == nil && token != 0 {
					leading = append(leading, a)
				}
			}
			if len(leading) != 1 {
				return fmt.Errorf("%d lead", len(leading))
			}
			found = leading[0]
			return nil
		})
		return found
	}
	old := leader()
	old.Kill()
	if now := leader(); now == old { // well within the lease of a minute
		t.Error("the killed application leads")
	}
}

// Need skips by name, and is a failure on a CI that promised the feature.
func TestNeed(t *testing.T) {
	missing := Feature{"quantum computer", true, func() error { return errors.New("not invented") }}
	optional := Feature{"crystal ball", false, missing.missing}
	for _, test := range []struct {
		ci      string
		feature Feature
		want    string
	}{
		{"", missing, "skip"},
		{"true", missing, "fail"},
		{"true", optional, "skip"},
		{"true", Feature{"air", true, func() error { return nil }}, ""},
	} {
		t.Setenv("CI", test.ci)
		recorder := &recorder{TB: t}
		func() {
			defer func() { _ = recover() }()
			Need(recorder, test.feature)
		}()
		if recorder.said != test.want {
			t.Errorf("%s with CI=%q: %q, want %q", test.feature.Name, test.ci, recorder.said, test.want)
		}
	}
}

type recorder struct {
	testing.TB
	said string
}

func (r *recorder) Skipf(string, ...any)  { r.said = "skip"; panic(r) }
func (r *recorder) Fatalf(string, ...any) { r.said = "fail"; panic(r) }
