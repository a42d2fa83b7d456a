package allocfs

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// alloc is a folder of a name that no socket address holds, with tmp in it.
func alloc(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("a", 120))
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestListenAndDial(t *testing.T) {
	s := Socket{Dir: alloc(t), Name: "tmp/app.sock"}
	if _, err := s.Dial(t.Context(), "unix"); err == nil || !Refused(err) {
		t.Errorf("a socket that is not there: %v", err)
	}
	l, err := s.Listen(0o640)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(s.String()); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", info, err)
	}
	conn, err := s.Dial(t.Context(), "unix")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	l.Close() // the file stays, as after a kill
	if _, err := s.Dial(t.Context(), "unix"); err == nil || !Refused(err) {
		t.Errorf("nobody listens: %v", err)
	}
	again, err := s.Listen(0o640)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if err := s.Remove(); err != nil {
		t.Error(err)
	}
	if err := s.Remove(); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}

// What a task can put in the way leads nowhere.
func TestTraps(t *testing.T) {
	dir := alloc(t)
	outside := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(outside, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	precious := filepath.Join(outside, "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link(filepath.Join(outside, "docker.sock"), "tmp/link.sock")
	link(outside, "out")
	link(precious, "tmp/file.sock")
	if err := os.WriteFile(filepath.Join(dir, "tmp/plain.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tmp/link.sock", "out/docker.sock", "tmp/plain.sock", "../" + filepath.Base(outside) + "/docker.sock", "", "/"} {
		s := Socket{Dir: dir, Name: name}
		if conn, err := s.Dial(t.Context(), "unix"); err == nil {
			conn.Close()
			t.Errorf("dialled %q", name)
		}
		if name == "tmp/link.sock" || name == "out/docker.sock" || name == "tmp/plain.sock" {
			if l, err := s.Listen(0o666); err == nil {
				l.Close()
				t.Errorf("listened at %q", name)
			}
			if err := s.Remove(); err == nil {
				t.Errorf("removed %q", name)
			}
		}
	}
	if _, err := (Socket{Dir: dir, Name: "tmp/file.sock"}).Listen(0o666); err == nil {
		t.Error("listened in the place of a link")
	}
	if info, err := os.Stat(precious); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "docker.sock")); err != nil {
		t.Error(err)
	}
}
