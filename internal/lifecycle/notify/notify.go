// Package notify is the server side of sd_notify(3): programs that know how to
// talk to systemd tell the driver that they are ready, alive, stopping, or in
// need of more time, through a datagram socket named in NOTIFY_SOCKET.
//
// It promises that a datagram, whatever is in it, is either understood or
// ignored: unknown variables are skipped as the protocol demands, and numbers
// that make no sense count as not said.
package notify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/allocfs"
)

// Limits of what is read, in bytes.
const (
	maxDatagram = 64 << 10
	maxStatus   = 200
)

// Message is one datagram.
type Message struct {
	lifecycle.Notice
	Reloading bool
	MainPID   int // as the task sees it; 0: not said
	Errno     int
}

// Parse reads a datagram: lines of VARIABLE=value.
func Parse(datagram []byte) Message {
	var m Message
	for line := range strings.Lines(string(datagram)) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "=")
		if !ok {
			continue
		}
		switch name {
		case "READY":
			m.Ready = m.Ready || value == "1"
		case "STOPPING":
			m.Stopping = m.Stopping || value == "1"
		case "RELOADING":
			m.Reloading = m.Reloading || value == "1"
		case "WATCHDOG":
			m.Watchdog = m.Watchdog || value == "1"
			m.Trigger = m.Trigger || value == "trigger"
		case "STATUS":
			m.Status, m.HasStatus = printable(value), true
		case "EXTEND_TIMEOUT_USEC":
			// More than the longest timeout is that timeout; the lifecycle has a cap of its own.
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				m.Extend = time.Duration(min(n, uint64(lifecycle.MaxTimeout/time.Microsecond))) * time.Microsecond
			}
		case "MAINPID":
			if n, err := strconv.ParseInt(value, 10, 32); err == nil && n > 0 {
				m.MainPID = int(n)
			}
		case "ERRNO":
			if n, err := strconv.ParseInt(value, 10, 16); err == nil && n > 0 {
				m.Errno = int(n)
			}
		}
	}
	return m
}

// printable makes a line of text of what an application says.
func printable(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), maxStatus)], "")
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, s)
}

// Server receives datagrams.
type Server struct {
	socket allocfs.Socket
	conn   *net.UnixConn
	log    hclog.Logger
}

// Listen opens the socket. Everybody who reaches the file may write to it: a task may run as any user.
func Listen(socket allocfs.Socket, log hclog.Logger) (*Server, error) {
	conn, err := socket.ListenPacket(0o666)
	if err != nil {
		return nil, fmt.Errorf("open NOTIFY_SOCKET: %w", err)
	}
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return &Server{socket: socket, conn: conn, log: log}, nil
}

// Serve hands every message to got, one after the other, until ctx ends. It removes the socket then.
func (s *Server) Serve(ctx context.Context, got func(Message)) error {
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	defer func() {
		if err := s.socket.Remove(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Debug("cannot remove NOTIFY_SOCKET", "error", err)
		}
	}()
	buf := make([]byte, maxDatagram)
	oob := make([]byte, 256)
	for {
		n, oobn, _, _, err := s.conn.ReadMsgUnix(buf, oob)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from NOTIFY_SOCKET: %w", err)
		}
		closeFDs(oob[:oobn])
		got(Parse(buf[:n]))
	}
}
