package driver

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// inNetns calls f in the network namespace at path; "" is the one of this process. f
// must do its work in the goroutine that calls it.
func inNetns(path string, f func() error) error {
	if path == "" {
		return f()
	}
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the task's network: %w", err)
	}
	defer target.Close()
	result := make(chan error, 1)
	go func() {
		// A thread that does not come back to its own namespace is not given to others:
		// it ends with this goroutine.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open the host's network: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter the task's network: %w", err)
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// Connections implements lifecycle.Host.
func (t *task) Connections(_ context.Context, port int) (n int, err error) {
	err = inNetns(t.netns, func() error {
		for _, name := range []string{"tcp", "tcp6"} {
			f, err := os.Open("/proc/thread-self/net/" + name)
			if errors.Is(err, fs.ErrNotExist) && name == "tcp6" {
				continue // no IPv6 here
			}
			if err != nil {
				return err
			}
			more, err := established(f, port)
			f.Close()
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			n += more
		}
		return nil
	})
	return n, err
}

// established counts the connections of a local port in the format of /proc/net/tcp.
func established(r io.Reader, port int) (n int, err error) {
	const stateEstablished = "01"
	lines := bufio.NewScanner(r)
	lines.Scan() // headings
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 {
			return 0, fmt.Errorf("line %q", lines.Text())
		}
		_, local, ok := strings.Cut(fields[1], ":")
		b, err := hex.DecodeString(local)
		if !ok || err != nil || len(b) != 2 {
			return 0, fmt.Errorf("local address %q", fields[1])
		}
		if fields[3] == stateEstablished && int(b[0])<<8|int(b[1]) == port {
			n++
		}
	}
	return n, lines.Err()
}
