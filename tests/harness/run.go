package harness

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A run is one test binary at work: a short folder of its own (alloc dirs hold
// Unix sockets, whose paths end at 108 bytes), locked for as long as the
// process lives, and a janitor that empties it when the process does not.
type run struct {
	dir     string
	id      string
	lock    *os.File
	janitor io.Closer
	done    chan struct{}
	next    int
}

const (
	// runEnv marks every process that a run starts, through inheritance.
	runEnv     = "RETINUE_TEST_RUN"
	janitorEnv = "RETINUE_TEST_JANITOR"
	runPrefix  = "rt-"
)

var current struct {
	sync.Mutex
	run *run
}

// theRun returns this process's run, made at first use.
func theRun(t T) *run {
	t.Helper()
	current.Lock()
	defer current.Unlock()
	if current.run != nil {
		return current.run
	}
	r, err := openRun()
	if err != nil {
		t.Fatalf("make the run folder: %v", err)
	}
	current.run = r
	return r
}

func openRun() (*run, error) {
	unlock, err := lockRuns()
	if err != nil {
		return nil, err
	}
	defer unlock()
	sweepDead()
	id := strconv.Itoa(os.Getpid())
	dir := filepath.Join(os.TempDir(), runPrefix+id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	r := &run{dir: dir, id: id, lock: lock, done: make(chan struct{})}
	os.Setenv(runEnv, dir)
	return r, r.startJanitor()
}

// startJanitor starts this same binary again as a process that waits for our
// end on a pipe. It has a session of its own so that a Ctrl-C leaves it alive.
func (r *run) startJanitor() error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(withoutEnv(os.Environ(), runEnv), janitorEnv+"="+r.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the janitor: %w", err)
	}
	go func() {
		defer close(r.done)
		_ = cmd.Wait() // its work is judged by what it leaves, not by its status
	}()
	r.janitor = stdin
	return nil
}

func runJanitor(dir string) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	_, _ = io.Copy(io.Discard, os.Stdin)
	unlock, err := lockRuns()
	if err != nil {
		return 1
	}
	defer unlock()
	// Processes with a parent-death signal are on their way out; their files go with the folder.
	sweepRun(dir)
	return 0
}

// closeRun removes what the run made. Everything in it has been cleaned up by
// its own test; what has not is swept like a dead run's.
func closeRun() {
	current.Lock()
	r := current.run
	current.run = nil
	current.Unlock()
	if r == nil {
		return
	}
	r.lock.Close()
	r.janitor.Close()
	<-r.done
}

// Dir returns a new short folder that is gone when the test is over.
func Dir(t T, name string) string {
	t.Helper()
	r := theRun(t)
	current.Lock()
	r.next++
	dir := filepath.Join(r.dir, fmt.Sprintf("%s%d", name, r.next))
	current.Unlock()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		unmountUnder(dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// seq is a number that nothing else in this run has.
func (r *run) seq() int {
	current.Lock()
	defer current.Unlock()
	r.next++
	return r.next
}

// lockRuns serialises making and sweeping of run folders between test binaries.
func lockRuns() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprintf("retinue-tests-%d.lock", os.Getuid())), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// sweepDead removes the leftovers of runs whose process is gone: nobody holds
// the lock of their folder any more.
func sweepDead() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), runPrefix+"[0-9]*"))
	for _, dir := range dirs {
		lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
		if err != nil {
			continue // not a run's folder, or one that is being made
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			sweepRun(dir)
		}
		lock.Close()
	}
}

// sweepRun ends the processes of a run, takes down its dev clusters, its
// namespaces and its mounts, and removes its folder.
func sweepRun(dir string) {
	if _, err := os.Stat(dir); err != nil {
		return
	}
	sweepClusters(dir)
	for range 3 { // a process may fork while we look
		if killMarked(dir) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	sweepNamespaces(strings.TrimPrefix(filepath.Base(dir), runPrefix))
	unmountUnder(dir)
	_ = os.RemoveAll(dir)
}

// killMarked kills the processes that carry the run's mark in their
// environment, and says how many it found.
func killMarked(dir string) int {
	mark := runEnv + "=" + dir
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	n := 0
	for _, path := range environs {
		data, err := os.ReadFile(path)
		if err != nil || !hasEnv(string(data), mark) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		n++
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return n
}

func hasEnv(environ, want string) bool {
	for _, kv := range strings.Split(environ, "\x00") {
		if kv == want {
			return true
		}
	}
	return false
}

func withoutEnv(environ []string, name string) []string {
	var out []string
	for _, kv := range environ {
		if !strings.HasPrefix(kv, name+"=") {
			out = append(out, kv)
		}
	}
	return out
}

// unmountUnder unmounts everything below dir, the deepest first.
func unmountUnder(dir string) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	lines := strings.Split(string(data), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		fields := strings.Fields(lines[i])
		if len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			_ = unix.Unmount(fields[1], unix.MNT_DETACH)
		}
	}
}
