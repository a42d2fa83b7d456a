// Package listen opens the local addresses a helper answers on, and the
// client side of them: Unix sockets (of any path length) and loopback TCP.
//
// It promises that nobody is pushed aside and nobody from outside gets in: a
// socket file is removed only when no process listens on it any more, an
// address that is not loopback is refused, and over TCP a request whose Host
// header names another host is refused too (a web page that was rebound to
// 127.0.0.1 by DNS cannot speak to a helper).
package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/hint"
)

// maxSocketPath is the longest path that fits into a sockaddr_un (108 bytes with the final zero).
const maxSocketPath = 107

// Addr is one local address.
type Addr struct {
	Network string // "unix" or "tcp"
	Path    string // of a Unix socket
	Host    string // host:port of TCP
}

// String returns the address as a program would be told it.
func (a Addr) String() string {
	if a.Network == "unix" {
		return "unix://" + a.Path
	}
	return "http://" + a.Host
}

// Parse reads unix:///path, tcp://127.0.0.1:8600 or http://127.0.0.1:8600.
func Parse(s string) (Addr, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Addr{}, hint.Wrap(fmt.Errorf("address %q has no scheme", s), "write unix:///path/to/socket or tcp://127.0.0.1:PORT")
	}
	switch scheme {
	case "unix":
		if !filepath.IsAbs(rest) {
			return Addr{}, hint.Wrap(fmt.Errorf("address %q: the path of a Unix socket must be absolute", s), "write unix:///path/to/socket, with three slashes")
		}
		return Addr{Network: "unix", Path: filepath.Clean(rest)}, nil
	case "tcp", "http":
		return parseTCP(s, strings.TrimSuffix(rest, "/"))
	}
	return Addr{}, hint.Wrap(fmt.Errorf("address %q: unknown scheme %q", s, scheme), "write unix:///path/to/socket or tcp://127.0.0.1:PORT")
}

func parseTCP(s, rest string) (Addr, error) {
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return Addr{}, hint.Wrap(fmt.Errorf("address %q: %w", s, err), "write tcp://127.0.0.1:PORT")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Addr{}, hint.Wrap(fmt.Errorf("address %q: port %q is not a number between 0 and 65535", s, port), "write tcp://127.0.0.1:PORT")
	}
	if !loopback(host) {
		return Addr{}, hint.Wrap(fmt.Errorf("address %q is not a loopback address: everybody who reaches it could take or end leadership", s),
			"use 127.0.0.1 (in bridge mode the tasks of a group share it), or a Unix socket in the alloc dir")
	}
	return Addr{Network: "tcp", Host: rest}, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Listen opens a. A Unix socket gets the file mode mode.
func Listen(a Addr, mode fs.FileMode) (net.Listener, error) {
	if a.Network == "tcp" {
		l, err := net.Listen("tcp", a.Host)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, hint.Wrap(fmt.Errorf("listen on %s: %w", a, err), "another process has this port; choose another one, or stop that process (ss -ltnp shows it)")
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		return l, nil
	}
	if err := removeDead(a.Path); err != nil {
		return nil, err
	}
	var l net.Listener
	err := withShortPath(a.Path, func(short string) (err error) {
		var ul *net.UnixListener
		if ul, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"}); err != nil {
			return err
		}
		ul.SetUnlinkOnClose(false) // it would unlink the short name, which is gone by then
		l = &unixListener{UnixListener: ul, path: a.Path}
		return nil
	})
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("listen on %s: %w", a, err), "the folder must exist and be writable")
	}
	if err := os.Chmod(a.Path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return l, nil
}

type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if rmErr := os.Remove(l.path); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) && err == nil {
		return rmErr
	}
	return err
}

// removeDead removes the socket file that a dead process left behind, and nothing else.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return hint.Wrap(fmt.Errorf("listen on unix://%s: the file exists and is not a socket", path), "remove it, or choose another path")
	}
	conn, err := dialUnix(context.Background(), path)
	switch {
	case err == nil:
		conn.Close()
		return hint.Wrap(fmt.Errorf("listen on unix://%s: another process listens there", path), "stop it, or choose another path (ss -lxp shows it)")
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the socket that a dead process left: %w", err)
		}
		return nil
	}
	return fmt.Errorf("listen on unix://%s: %w", path, err)
}

// withShortPath calls f with a name for path that fits into a socket address: paths below Nomad's alloc dirs are often longer.
func withShortPath(path string, f func(string) error) error {
	if len(path) <= maxSocketPath {
		return f(path)
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir)
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path)))
}

func dialUnix(ctx context.Context, path string) (conn net.Conn, err error) {
	err = withShortPath(path, func(short string) (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", short)
		return err
	})
	return conn, err
}

// Client returns an HTTP client that reaches a, and the base of its URLs.
func Client(a Addr) (*http.Client, string) {
	if a.Network == "tcp" {
		return &http.Client{Transport: &http.Transport{}}, "http://" + a.Host
	}
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, a.Path) }}
	return &http.Client{Transport: t}, "http://localhost"
}

// GuardHost refuses requests that were meant for another host. It belongs in front of every handler that is served over TCP.
func GuardHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !loopback(strings.Trim(host, "[]")) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusMisdirectedRequest)
			fmt.Fprintf(w, "{\"error\":\"misdirected\",\"message\":\"the Host header must name localhost or a loopback address\"}\n")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Serve answers on l until ctx ends, then stops accepting and waits at most grace for requests under way.
func Serve(ctx context.Context, l net.Listener, h http.Handler, grace time.Duration) error {
	if l.Addr().Network() == "tcp" {
		h = GuardHost(h)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	<-done
	return nil
}
