package recipes_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/tests/harness"
)

const (
	app = "orders"
	// A lease that two slow cores can keep, and that a hand-over by expiry (three leases) cannot be mistaken for.
	lease = 3 * time.Second
)

// elections has one election for each test, so that they do not meet.
var elections = []string{"leader", "sh-unix", "sh-tcp", "py-unix", "py-tcp", "js-unix", "js-tcp", "go-unix", "go-tcp", "go-broken", "fence"}

// consul is a single Consul server for all tests of this package.
type consul struct {
	addr string
	kv   *consulapi.KV
}

var theConsul = harness.Share(func(t harness.T) *consul {
	ports := freePorts(t, 4)
	c := &consul{addr: fmt.Sprintf("127.0.0.1:%d", ports[0])}
	config := filepath.Join(harness.Dir(t, "consul"), "agent.hcl")
	if err := os.WriteFile(config, []byte(`session_ttl_min = "1s"`), 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	harness.Start(t, harness.Spec{Name: "consul", Path: harness.ConsulBinary(t), Args: []string{
		"agent", "-dev", "-node=recipes", "-bind=127.0.0.1", "-config-file=" + config, "-log-level=warn",
		fmt.Sprintf("-http-port=%d", ports[0]), fmt.Sprintf("-server-port=%d", ports[1]), fmt.Sprintf("-serf-lan-port=%d", ports[2]),
		fmt.Sprintf("-serf-wan-port=%d", ports[3]), "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1"}})
	api, err := consulapi.NewClient(&consulapi.Config{Address: c.addr})
	if err != nil {
		t.Fatalf("%v", err)
	}
	c.kv = api.KV()
	harness.Eventually(t, 30*time.Second, "Consul takes a write", func(ctx context.Context) error {
		_, err := c.kv.Put(&consulapi.KVPair{Key: "ready"}, new(consulapi.WriteOptions).WithContext(ctx))
		return err
	})
	return c
})

// freePorts are ports that were free a moment ago.
func freePorts(t harness.T, n int) (ports []int) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// elector is a `retinue elector`, the only one of its host as far as its application knows.
type elector struct {
	*harness.Process
	unix, tcp string // RETINUE_ELECTOR_ADDR
	address   string // what followers are told
}

func startElector(t harness.T, name string, flags ...string) *elector {
	dir := harness.Dir(t, "e")
	e := &elector{unix: "unix://" + filepath.Join(dir, "elector.sock"), tcp: fmt.Sprintf("http://127.0.0.1:%d", freePorts(t, 1)[0]), address: name + ".internal:80"}
	e.Process = harness.Start(t, harness.Spec{Name: "elector-" + name, Path: harness.RetinueBinary(t), Dir: dir,
		Args: append([]string{"elector", "--app", app, "--id", name, "--host", name, "--address", e.address, "--lease", lease.String(),
			"--election", strings.Join(elections, ","), "--listen", e.unix, "--listen", e.tcp}, flags...),
		Env: []string{"CONSUL_HTTP_ADDR=" + theConsul.Get(t).addr, "NOMAD_ALLOC_DIR=" + dir}})
	e.ready(t)
	return e
}

func (e *elector) ready(t harness.T) {
	harness.Eventually(t, 30*time.Second, "the elector answers", func(ctx context.Context) error {
		_, err := harness.NewElectorClient(e.unix).State(ctx, "leader")
		return err
	})
}

// theElectors are two hosts' electors, shared by the tests that do not break them.
var theElectors = harness.Share(func(t harness.T) [2]*elector {
	return [2]*elector{startElector(t, "a"), startElector(t, "b")}
})

func transports(e *elector) map[string]string { return map[string]string{"unix": e.unix, "tcp": e.tcp} }

// need skips unless the programs are there.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		harness.Need(t, harness.Program(p, true))
	}
}

const sigterm = syscall.SIGTERM

// state is what these tests read of an election's state.
type state struct {
	Role    string   `json:"role"`
	Token   uint64   `json:"token"`
	Waiting []string `json:"waiting"`
}

func electorState(ctx context.Context, addr, election string) (s state, err error) {
	return s, get(ctx, addr, "/v1/elections/"+election, &s)
}

// get reads JSON from an elector.
func get(ctx context.Context, addr, path string, out any) error {
	base, transport := addr, &http.Transport{DisableKeepAlives: true}
	if socket, ok := strings.CutPrefix(addr, "unix://"); ok {
		base = "http://localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(out)
}

// stepDown is what an operator does. It waits until the application has resigned; one that does not hear loses its lease instead.
func stepDown(t *testing.T, e *elector, election string) {
	t.Helper()
	out, err := exec.Command(harness.RetinueBinary(t), "elector", "stepdown", election, "--addr", e.unix).CombinedOutput()
	if err != nil {
		t.Fatalf("step down: %v: %s", err, out)
	}
	if !strings.Contains(string(out), "(resigned)") {
		t.Errorf("the application did not hear of the step-down: %s", out)
	}
}
