package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteAndRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"", "first", strings.Repeat("longer", 100_000), "short"} {
		if err := Write(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path, 1<<20)
		if err != nil || string(got) != text {
			t.Errorf("%d bytes of %d, %v", len(got), len(text), err)
		}
	}
	if _, err := Read(path, 4); err == nil || err.Error() != "f has 5 bytes, at most 4 are read" {
		t.Errorf("more than wanted: %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, []byte("short")) {
		t.Errorf("by os: %q, %v", data, err)
	}
}

func TestWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(filepath.Join(dir, "none"), 9); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none") {
		t.Errorf("none: %v", err)
	}
	if err := Write(filepath.Join(dir, "none", "f"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "pipe", "."} {
		if data, err := Read(filepath.Join(dir, name), 1<<20); err == nil {
			t.Errorf("%s: %d bytes", name, len(data))
		}
	}
}

// A disk that is full is an error that says so.
func TestFull(t *testing.T) {
	if err := Write("/dev/full", []byte("x")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
}
