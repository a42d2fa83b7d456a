// Package consultest runs a real Consul agent for the tests of this module:
// one in-memory server on free loopback ports, gone when the test ends.
package consultest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Binary returns the consul program: $RETINUE_TEST_CONSUL, or the one on PATH, or "".
func Binary() string {
	if path := os.Getenv("RETINUE_TEST_CONSUL"); path != "" {
		return path
	}
	path, err := exec.LookPath("consul")
	if err != nil {
		return ""
	}
	return path
}

// Agent is a running agent.
type Agent struct {
	Addr string // host:port of its HTTP API

	cmd  *exec.Cmd
	log  *buffer
	done chan struct{}

	bin  string
	args []string
}

// Start runs an agent with `session_ttl_min = "1s"` and the further configuration hcl. It skips the test by name when there is
// no consul program, and fails it when the agent does not elect itself within 30 seconds.
func Start(t testing.TB, hcl ...string) *Agent {
	t.Helper()
	return begin(t, false, hcl)
}

// StartKept is like Start, of an agent that keeps its state on disk: after Kill, Restart has it back.
func StartKept(t testing.TB, hcl ...string) *Agent {
	t.Helper()
	return begin(t, true, hcl)
}

func begin(t testing.TB, kept bool, hcl []string) *Agent {
	t.Helper()
	bin := Binary()
	if bin == "" {
		t.Skip("skip: no consul binary (put one on PATH, or name it in RETINUE_TEST_CONSUL)")
	}
	// Ports are free when they are looked up; another process may still take one before the agent does, so try again.
	for attempt := 1; ; attempt++ {
		a, err := start(t.TempDir(), bin, kept, hcl)
		if err == nil {
			t.Cleanup(func() { a.Kill() })
			return a
		}
		if attempt == 3 {
			t.Fatalf("start consul: %v", err)
		}
	}
}

func start(dir, bin string, kept bool, hcl []string) (*Agent, error) {
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("%s/agent.hcl", dir)
	base := `session_ttl_min = "1s"` + "\n"
	if strings.Contains(strings.Join(hcl, "\n"), "session_ttl_min") {
		base = ""
	}
	if err := os.WriteFile(conf, []byte(base+strings.Join(hcl, "\n")), 0o600); err != nil {
		return nil, err
	}
	mode := []string{"agent", "-dev"}
	if kept {
		mode = []string{"agent", "-server", "-bootstrap-expect=1", "-client=127.0.0.1", "-data-dir=" + dir + "/data", "-hcl=performance { raft_multiplier = 1 }"}
	}
	a := &Agent{Addr: fmt.Sprintf("127.0.0.1:%d", ports[0]), log: &buffer{}, bin: bin}
	a.args = append(mode, "-node=test", "-bind=127.0.0.1", "-config-file="+conf, "-log-level=warn",
		fmt.Sprintf("-http-port=%d", ports[0]), fmt.Sprintf("-server-port=%d", ports[1]), fmt.Sprintf("-serf-lan-port=%d", ports[2]),
		fmt.Sprintf("-serf-wan-port=%d", ports[3]), "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1")
	if err := a.run(); err != nil {
		return nil, err
	}
	return a, nil
}

// run starts the process and waits until it serves.
func (a *Agent) run() error {
	a.cmd, a.done = exec.Command(a.bin, a.args...), make(chan struct{})
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		return err
	}
	go func(cmd *exec.Cmd, done chan struct{}) { cmd.Wait(); close(done) }(a.cmd, a.done)
	if err := a.await(30 * time.Second); err != nil {
		a.Kill()
		return err
	}
	return nil
}

// Restart runs an agent of StartKept again, after Kill.
func (a *Agent) Restart(t testing.TB) {
	t.Helper()
	if err := a.run(); err != nil {
		t.Fatalf("start consul again: %v", err)
	}
}

// await asks until the agent can commit a write: a leader alone is not enough.
func (a *Agent) await(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+a.Addr+"/v1/kv/ready", strings.NewReader("yes"))
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusForbidden {
				return nil
			}
		}
		select {
		case <-a.done:
			return fmt.Errorf("the agent ended: %s", a.log.String())
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w: %s", ctx.Err(), a.log.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Signal sends a signal to the agent, SIGSTOP and SIGCONT for example.
func (a *Agent) Signal(sig os.Signal) error { return a.cmd.Process.Signal(sig) }

// Kill ends the agent at once.
func (a *Agent) Kill() {
	a.cmd.Process.Kill()
	<-a.done
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
