// Package allocfs opens Unix sockets below an allocation's folder, for a program
// that runs as root outside of it. A task can write there, so every name may be
// a trap: no symbolic link is followed, nothing but a socket is connected to,
// replaced or given a mode, and paths longer than a socket address work.
package allocfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socket is a Unix socket below a folder.
type Socket struct {
	Dir  string // of the host; exists
	Name string // below it, with slashes
}

func (s Socket) String() string { return path.Join(s.Dir, s.Name) }

// parent opens the folder that the socket is in, step by step.
func (s Socket) parent() (fd int, name string, err error) {
	clean := path.Clean("/" + s.Name)[1:]
	if clean == "" {
		return -1, "", &fs.PathError{Op: "open", Path: s.String(), Err: fs.ErrInvalid}
	}
	parts := strings.Split(clean, "/")
	fd, err = unix.Open(s.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", &fs.PathError{Op: "open", Path: s.Dir, Err: err}
	}
	for i, part := range parts[:len(parts)-1] {
		next, err := unix.Openat(fd, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			return -1, "", &fs.PathError{Op: "open", Path: path.Join(s.Dir, path.Join(parts[:i+1]...)), Err: err}
		}
		fd = next
	}
	return fd, parts[len(parts)-1], nil
}

// node opens the socket itself, without connecting to it.
func node(dir int, name string) (fd int, err error) {
	fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		unix.Close(fd)
		return -1, errNoSocket
	}
	return fd, nil
}

var errNoSocket = errors.New("it is no socket")

// Dial connects to the socket. network is "unix" or "unixgram".
func (s Socket) Dial(ctx context.Context, network string) (net.Conn, error) {
	dir, name, err := s.parent()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := node(dir, name)
	if err != nil {
		return nil, &fs.PathError{Op: "dial", Path: s.String(), Err: err}
	}
	defer unix.Close(fd)
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", s, err)
	}
	return conn, nil
}

// Refused says that an error of Dial means that nobody listens.
func Refused(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// Listen opens the socket for connections, in the place of one that is there, with a file mode.
func (s Socket) Listen(mode fs.FileMode) (net.Listener, error) {
	var l *net.UnixListener
	err := s.bind(mode, func(at string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
		if err == nil {
			l.SetUnlinkOnClose(false) // it would unlink by a name that has become another's
		}
		return err
	})
	if err != nil {
		if l != nil {
			l.Close()
		}
		return nil, err
	}
	return l, nil
}

// ListenPacket is Listen for datagrams.
func (s Socket) ListenPacket(mode fs.FileMode) (*net.UnixConn, error) {
	var c *net.UnixConn
	err := s.bind(mode, func(at string) (err error) {
		c, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
		return err
	})
	if err != nil {
		if c != nil {
			c.Close()
		}
		return nil, err
	}
	return c, nil
}

func (s Socket) bind(mode fs.FileMode, listen func(at string) error) error {
	dir, name, err := s.parent()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := remove(dir, name); err != nil {
		return &fs.PathError{Op: "listen", Path: s.String(), Err: err}
	}
	if err := listen(fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)); err != nil {
		return fmt.Errorf("listen on %s: %w", s, err)
	}
	fd, err := node(dir, name)
	if err != nil {
		return &fs.PathError{Op: "listen", Path: s.String(), Err: err}
	}
	defer unix.Close(fd)
	// Through the open node, so that the mode is the socket's and not that of a file which has taken its name.
	if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode); err != nil {
		return fmt.Errorf("listen on %s: %w", s, err)
	}
	return nil
}

// Remove removes the socket. One that is not there is no error.
func (s Socket) Remove() error {
	dir, name, err := s.parent()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := remove(dir, name); err != nil {
		return &fs.PathError{Op: "remove", Path: s.String(), Err: err}
	}
	return nil
}

func remove(dir int, name string) error {
	fd, err := node(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	unix.Close(fd)
	return unix.Unlinkat(dir, name, 0)
}
