package sourcetest

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue/coordinator/source"
)

const roleVariable = "RETINUE_SOURCETEST_ROLE"

// Main is the TestMain of an adapter's tests. The test binary runs itself again in another role: as a consumer that can be
// killed, or as a server that is a library.
func Main(m *testing.M, roles map[string]func() error) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	run := roles[role]
	if run == nil {
		fmt.Fprintf(os.Stderr, "no role %q\n", role)
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// SideBySide makes n cases run at once where the machine has fewer processors, before Main: for brokers whose cases wait for
// leases and delays most of the time and work little.
func SideBySide(n int) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given && runtime.GOMAXPROCS(0) < n {
		_ = flag.Set("test.parallel", strconv.Itoa(n)) // the flag exists, and this is a number
	}
}

// Role is the command that runs this test binary in a role.
func Role(t testing.TB, role string, env ...string) Command {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Command{Name: role, Path: self, Env: append(env, roleVariable+"="+role)}
}

// Consumer is the role "consumer": it takes messages, prints their ids and keeps them for ever.
func Consumer(open func(ctx context.Context, o source.Options) (source.Source, error)) func() error {
	return func() error {
		ctx := context.Background()
		var o source.Options
		var lease string
		var n int
		if _, err := fmt.Sscan(os.Getenv("RETINUE_SOURCETEST_TAKE"), &o.Queue, &lease, &n, &o.Prefetch, &o.Order); err != nil {
			return fmt.Errorf("what to take: %w", err)
		}
		var err error
		if o.Lease, err = time.ParseDuration(lease); err != nil {
			return err
		}
		s, err := open(ctx, o)
		if err != nil {
			return err
		}
		var all []*source.Message
		for len(all) < n {
			ms, err := s.Receive(ctx, n-len(all))
			if err != nil {
				return err
			}
			all = append(all, ms...)
			if err := s.Extend(ctx, all...); err != nil {
				return err
			}
			for _, m := range ms {
				fmt.Println("took", m.ID)
			}
		}
		for {
			time.Sleep(o.Lease / 3)
			if err := s.Extend(ctx, all...); err != nil {
				return err
			}
		}
	}
}

// doomed is a consumer in a process of its own.
type doomed struct {
	cmd *exec.Cmd
	ids []string
}

// startDoomed returns when the consumer has n messages.
func (r *rig) startDoomed(n int, change ...func(*source.Options)) *doomed {
	r.Helper()
	o := r.options(change...)
	c := Role(r, "consumer", append(r.h.Child, fmt.Sprintf("RETINUE_SOURCETEST_TAKE=%s %v %d %d %t", r.queue, o.Lease, n, o.Prefetch, o.Order))...)
	cmd := exec.Command(c.Path)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	d := &doomed{cmd: cmd}
	r.Cleanup(d.kill)
	watch := time.AfterFunc(3*patience, d.kill)
	defer watch.Stop()
	lines := bufio.NewScanner(out)
	for len(d.ids) < n && lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "took "); ok {
			d.ids = append(d.ids, id)
		}
	}
	if len(d.ids) < n {
		d.kill()
		r.Fatalf("the consumer took %d of %d: %s", len(d.ids), n, complaint.String())
	}
	return d
}

// kill is kill -9, and waits for the end.
func (d *doomed) kill() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}
