package notify

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/allocfs"
)

func TestParse(t *testing.T) {
	got := Parse([]byte("READY=1\nSTATUS=Serving\tat 80\nMAINPID=42\nEXTEND_TIMEOUT_USEC=1500000\nX=y\n\nnonsense\nWATCHDOG=1"))
	want := Message{Notice: lifecycle.Notice{Ready: true, Watchdog: true, Status: "Serving at 80", HasStatus: true, Extend: 1500 * time.Millisecond}, MainPID: 42}
	if got != want {
		t.Errorf("%+v", got)
	}
	if m := Parse([]byte("READY=0\nSTOPPING=1\nWATCHDOG=trigger\nMAINPID=-1\nEXTEND_TIMEOUT_USEC=-1\nERRNO=2\nRELOADING=1")); m != (Message{Notice: lifecycle.Notice{Stopping: true, Trigger: true}, Errno: 2, Reloading: true}) {
		t.Errorf("%+v", m)
	}
	if m := Parse([]byte("EXTEND_TIMEOUT_USEC=18446744073709551615")); m.Extend != lifecycle.MaxTimeout {
		t.Errorf("%s", m.Extend)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=x"))
	f.Add([]byte("EXTEND_TIMEOUT_USEC=99999999999999999999\nMAINPID=0"))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		m := Parse(datagram)
		if m.Extend < 0 || m.Extend > lifecycle.MaxTimeout || m.MainPID < 0 || len(m.Status) > maxStatus || !utf8.ValidString(m.Status) || strings.ContainsAny(m.Status, "\n\x00") {
			t.Errorf("%q: %+v", datagram, m)
		}
		if again := Parse(append(datagram, "\nREADY=1"...)); !again.Ready {
			t.Errorf("%q hides what follows it", datagram)
		}
	})
}

// Datagrams arrive; file descriptors that come along are closed; a stale socket is replaced; the socket is removed at the end.
func TestServer(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := allocfs.Socket{Dir: dir, Name: "tmp/notify.sock"}
	for range 2 { // the second one finds what a crash has left
		if _, err := Listen(socket, nil); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Listen(socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "tmp/notify.sock")); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("%v %v", info, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got, done := make(chan Message, 10), make(chan error, 1)
	go func() { done <- s.Serve(ctx, func(m Message) { got <- m }) }()
	conn, err := socket.Dial(t.Context(), "unixgram")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		t.Fatal(err)
	}
	if m := <-got; !m.Ready {
		t.Errorf("%+v", m)
	}
	// BARRIER=1 sends the end of a pipe; that it is closed is the answer.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	raw, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	if err := unix.Sendmsg(raw, []byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), &unix.SockaddrUnix{Name: filepath.Join(dir, "tmp/notify.sock")}, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("the pipe has data in it")
	}
	<-got
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "tmp/notify.sock")); !os.IsNotExist(err) {
		t.Error("the socket is still there")
	}
}
