package sourcetest

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Command is a server's program.
type Command struct {
	Name string
	Path string
	Args []string
	Env  []string // in addition to the test's own
	Dir  string
}

// Server is a broker that runs as a process of the test, in a process group of its own, until the test is over.
type Server struct {
	t     testing.TB
	cmd   Command
	ready func(context.Context) error
	log   string

	mu   sync.Mutex
	proc *exec.Cmd
	done chan struct{}
}

// StartServer starts a server and waits until it is ready. Its log is shown when the test fails.
func StartServer(t testing.TB, c Command, ready func(context.Context) error) *Server {
	t.Helper()
	s := &Server{t: t, cmd: c, ready: ready, log: filepath.Join(t.TempDir(), c.Name+".log")}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("the end of %s's log:\n%s", c.Name, s.tail())
		}
	})
	s.Start()
	return s
}

// Start starts the server, also again after a Kill, and waits until it is ready.
func (s *Server) Start() {
	s.t.Helper()
	s.launch()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, 5*time.Second)
		err := s.ready(try)
		stop()
		if err == nil {
			return
		}
		select {
		case <-s.exited():
			s.t.Fatalf("%s ended: %s", s.cmd.Name, s.tail())
		default:
		}
		if !pause(ctx, 30*time.Millisecond) {
			s.t.Fatalf("%s is not ready: %v\n%s", s.cmd.Name, err, s.tail())
		}
	}
}

func (s *Server) launch() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	log, err := os.OpenFile(s.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.cmd.Path, s.cmd.Args...)
	cmd.Env = append(os.Environ(), s.cmd.Env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.cmd.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("start %s: %v", s.cmd.Name, err)
	}
	done := make(chan struct{})
	s.proc, s.done = cmd, done
	go func() { cmd.Wait(); close(done) }()
}

func (s *Server) exited() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// Kill sends SIGKILL to the server and all it started, and waits for the end.
func (s *Server) Kill() {
	s.mu.Lock()
	proc, done := s.proc, s.done
	s.mu.Unlock()
	if proc == nil {
		return
	}
	// The group is the server's own: Setpgid.
	syscall.Kill(-proc.Process.Pid, syscall.SIGKILL)
	<-done
}

func (s *Server) tail() string {
	data, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-40):], []byte("\n")))
}

// Port returns a free TCP port of the loopback interface.
func Port(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Listens is a ready check: something accepts connections there.
func Listens(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// Loopback is the address of a port.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Need finds a server's program, or skips the test by name; a failure where CI=true, because
// .ci/run installs it.
func Need(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
		// Debian puts servers where only root looks.
		if path, err := exec.LookPath(filepath.Join("/usr/sbin", filepath.Base(name))); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing (this machine is CI, and .ci/run installs it)", names[0])
	}
	t.Skipf("SKIP %s: not installed", filepath.Base(names[0]))
	return ""
}
