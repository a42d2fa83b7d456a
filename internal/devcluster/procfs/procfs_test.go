package procfs

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	tail := " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 20 18446744073709551615"
	for line, want := range map[string]Stat{
		"17 (consul) S" + tail:              {Command: "consul", State: 'S', Parent: 1, Threads: 1, Start: 98765},
		"17 (a b) R" + tail:                 {Command: "a b", State: 'R', Parent: 1, Threads: 1, Start: 98765},
		"17 (evil) Z 1 (x) S" + tail:        {Command: "evil) Z 1 (x", State: 'S', Parent: 1, Threads: 1, Start: 98765},
		"17 (()) Z" + tail:                  {Command: "()", State: 'Z', Parent: 1, Threads: 1, Start: 98765},
		"17 (new\nline) S" + tail:           {Command: "new\nline", State: 'S', Parent: 1, Threads: 1, Start: 98765},
		"17 () S" + tail + " and more here": {Command: "", State: 'S', Parent: 1, Threads: 1, Start: 98765},
	} {
		got, err := parseStat(line)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "17", "17 (x", "17 x) S", "17 (x) S 1 2 3", "17 (x) S" + strings.Replace(tail, "98765", "soon", 1), "17 (x) S" + strings.Replace(tail, "0 1 0 98765", "0 few 0 98765", 1)} {
		if got, err := parseStat(line); err == nil {
			t.Errorf("%q: %+v, want an error", line, got)
		}
	}
}

// TestDying: the first thread of a process that is killed may end before the others, which still have its ports.
func TestDying(t *testing.T) {
	root := t.TempDir()
	for _, c := range []struct {
		state, threads string
		runs           bool
	}{{"S", "8", true}, {"Z", "8", true}, {"Z", "1", false}, {"X", "1", false}} {
		dir := filepath.Join(root, "17")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		line := "17 (consul) " + c.state + " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 " + c.threads + " 0 98765 1000 20 18446744073709551615"
		if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, runs := New(root).Lookup(17); runs != c.runs {
			t.Errorf("state %s, %s threads: runs %t, want %t", c.state, c.threads, runs, c.runs)
		}
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:2134":                         "127.0.0.1:8500",
		"00000000:1226":                         "0.0.0.0:4646",
		"0101407F:0016":                         "127.64.1.1:22",
		"00000000000000000000000000000000:2134": "[::]:8500",
		"00000000000000000000000001000000:2134": "[::1]:8500",
		"0000000000000000FFFF00000100007F:2134": "127.0.0.1:8500",
	} {
		got, err := parseAddr(in)
		if err != nil || got.String() != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":", "0100007F", "0100007:2134", "0100007F:G", "0100007F:12345", "XX00007F:1"} {
		if got, err := parseAddr(in); err == nil {
			t.Errorf("%q: %s, want an error", in, got)
		}
	}
}

// fakeProc is a proc file system with two sockets and their owner.
func fakeProc(t *testing.T) FS {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("net/tcp", `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2134 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11111 1 0 100 0 0 10 0
   1: 00000000:1226 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22222 1 0 100 0 0 10 0
   2: 0100007F:2134 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 33333 1 0 100 0 0 10 0
`)
	write("42/cmdline", "consul\x00agent\x00-dev\x00")
	write("42/environ", "A=1\x00B=two words\x00")
	if err := os.MkdirAll(filepath.Join(root, "42", "fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("socket:[11111]", filepath.Join(root, "42", "fd", "7")); err != nil {
		t.Fatal(err)
	}
	return New(root)
}

func TestPortOwner(t *testing.T) {
	f := fakeProc(t)
	owner, ok := f.PortOwner(netip.MustParseAddrPort("127.0.0.1:8500"), false)
	if !ok || owner.PID != 42 || owner.String() != "pid 42 (consul agent -dev)" {
		t.Errorf("8500: %v %v", owner, ok)
	}
	// The wildcard holds the port on every address, and its owner is hidden.
	owner, ok = f.PortOwner(netip.MustParseAddrPort("127.64.1.1:4646"), false)
	if !ok || owner.PID != 0 || owner.String() != "a process of user id 0" {
		t.Errorf("4646: %v %v", owner, ok)
	}
	for _, free := range []string{"127.64.1.1:8500", "127.0.0.1:8501"} {
		if owner, ok := f.PortOwner(netip.MustParseAddrPort(free), false); ok {
			t.Errorf("%s is free, got %v", free, owner)
		}
	}
	if env := f.Environ(42); len(env) != 2 || env[1] != "B=two words" {
		t.Errorf("environment %q", env)
	}
}

func TestRealPortOwner(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	owner, ok := New("").PortOwner(l.Addr().(*net.TCPAddr).AddrPort(), false)
	if !ok || owner.PID != os.Getpid() {
		t.Errorf("%v %v, want pid %d", owner, ok, os.Getpid())
	}
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if owner, ok := New("").PortOwner(c.LocalAddr().(*net.UDPAddr).AddrPort(), true); !ok || owner.PID != os.Getpid() {
		t.Errorf("udp: %v %v, want pid %d", owner, ok, os.Getpid())
	}
}

// TestProcessIdentity holds that a signal goes to one process only: another one
// with the same pid has another start time.
func TestProcessIdentity(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := New("")
	p, ok := f.Lookup(cmd.Process.Pid)
	if !ok || !f.Alive(p) {
		t.Fatalf("%+v %v", p, ok)
	}
	impostor := Process{PID: p.PID, Start: p.Start - 1}
	if f.Alive(impostor) {
		t.Error("a process with another start time counts as alive")
	}
	if err := f.Signal(impostor, syscall.SIGKILL); err != nil || !f.Alive(p) {
		t.Errorf("the signal to an earlier process with pid %d hit this one (%v)", p.PID, err)
	}
	if left := f.WaitGone([]Process{p}, 0); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if err := f.Signal(p, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Nobody waits for it yet, so it is a zombie: gone all the same.
	if left := f.WaitGone([]Process{p}, 10*time.Second); len(left) != 0 {
		t.Errorf("left after SIGKILL: %v", left)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("sleep was not killed")
	}
	if err := f.Signal(p, syscall.SIGTERM); err != nil {
		t.Errorf("a signal to one that has ended: %v", err)
	}
	if f.Link(os.Getpid(), "root") == "" {
		t.Error("own root is empty")
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add("   0: 0100007F:2134 00000000:0000 0A 0:0 0:0 0  1000 0 11111 1\n")
	f.Fuzz(func(t *testing.T, table string) {
		for _, s := range parseSockets(table, "0A") {
			if !s.Addr.IsValid() {
				t.Errorf("invalid address from %q", table)
			}
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add("17 (x) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 20")
	f.Fuzz(func(t *testing.T, line string) {
		if st, err := parseStat(line); err == nil && !strings.Contains(line, "("+st.Command+")") {
			t.Errorf("command %q is not in %q", st.Command, line)
		}
	})
}
