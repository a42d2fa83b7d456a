package driver

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// cgroup2 is where the unified hierarchy is: mounted already, alone or beside those of version 1, or for this test. Its freezer
// needs no controller, so it works wherever the hierarchy is.
func cgroup2(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP control groups of version 2: needs root")
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "cgroup2" && !strings.HasPrefix(f[3], "ro") {
			return f[1]
		}
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "cgroup2", 0, ""); err != nil {
		t.Skipf("SKIP control groups of version 2: the kernel mounts none: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// beats is a process in a control group that writes all the time.
type beats struct {
	t    *testing.T
	out  int // file descriptor that does not block
	pid  int
	done chan struct{}
}

func startBeats(t *testing.T, dir string) *beats {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	// It moves itself, so that what it forks is in the group from the beginning.
	cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$0/cgroup.procs" && while :; do echo beat; sleep 0.01; done`, dir)
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	b := &beats{t: t, out: int(r.Fd()), pid: cmd.Process.Pid, done: make(chan struct{})}
	if err := unix.SetNonblock(b.out, true); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(b.done)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = write(filepath.Join(dir, "cgroup.freeze"), "0")
		_ = cmd.Process.Kill()
		<-b.done
	})
	b.goesOn()
	return b
}

// goesOn waits for a beat.
func (b *beats) goesOn() {
	b.t.Helper()
	for range 3000 {
		if b.drain() > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Fatal("the process does not go on")
}

// drain takes what was written, and says how much it was.
func (b *beats) drain() (n int) {
	b.t.Helper()
	buf := make([]byte, 4096)
	for {
		more, err := unix.Read(b.out, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n += max(more, 0); err != nil || more == 0 {
			return n
		}
	}
}

// The freezer of the kernel itself, in a hierarchy of version 2: on this machine perhaps beside version 1.
func TestFreezerOfVersion2(t *testing.T) {
	root := cgroup2(t)
	docker := strings.Repeat("d0c5e7", 6) + strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		name, dir string
		task      *task
	}{
		{"exec and raw_exec", "nomad.slice/share.slice/a1b2c3d4-" + strconv.Itoa(os.Getpid()) + ".app.scope", &task{alloc: "a1b2c3d4-" + strconv.Itoa(os.Getpid()), name: "app"}},
		{"docker", "docker/" + docker, &task{container: docker}},
		{"docker by systemd", "system.slice/docker-" + docker + ".scope", &task{container: docker}},
		{"a parent of one's own", "retinue-test/deep/" + docker, &task{container: docker}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(root, c.dir)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				for at := c.dir; at != "."; at = filepath.Dir(at) {
					_ = os.Remove(filepath.Join(root, at)) // one that was there before has others in it
				}
			})
			b := startBeats(t, dir)
			c.task.log = hclog.NewNullLogger()
			g, err := c.task.findGroup(root, "/proc")
			if err != nil || g == nil || !g.v2 || g.dir != dir {
				t.Fatalf("the group that was found is %+v, %v, not %s", g, err, dir)
			}
			if g.frozen() {
				t.Error("it is frozen before")
			}
			ctx, cancel := context.WithTimeout(testContext(t), time.Minute)
			defer cancel()
			if err := g.freeze(ctx, true); err != nil {
				t.Fatal(err)
			}
			b.drain()
			time.Sleep(200 * time.Millisecond) // many of its beats; a frozen one makes none in any time
			if n := b.drain(); n > 0 || !g.frozen() {
				t.Errorf("it goes on when it is frozen: %d bytes, frozen: %t", n, g.frozen())
			}
			if err := g.freeze(ctx, false); err != nil {
				t.Fatal(err)
			}
			b.goesOn()
			if g.frozen() {
				t.Error("it is frozen after the thaw")
			}
			if err := g.freeze(ctx, true); err != nil {
				t.Fatal(err)
			}
			g.end(ctx, c.task.log)
			<-b.done
			if pids, err := g.processes(); err != nil || len(pids) > 0 {
				t.Errorf("left of a frozen group that was ended: %v, %v", pids, err)
			}
			if err := syscall.Kill(b.pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the process is there: %v", err)
			}
		})
	}
}
