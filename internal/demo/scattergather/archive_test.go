package scattergather

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unpack does what Nomad does with an artifact.
func unpack(t *testing.T, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	gz, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(gz); ; {
		h, err := r.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, raw, fs.FileMode(h.Mode)); err != nil {
			t.Fatal(err)
		}
	}
}

// A packed program runs with nothing but what is in its archive.
func TestPackedPythonStandsAlone(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3 on this machine")
	}
	program := filepath.Join(t.TempDir(), "merge.py")
	source := "import json, http.server, sys\nif __name__ == '__main__': print(json.dumps([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)]))\n"
	if err := os.WriteFile(program, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	data, err := PackPython(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	dir := unpack(t, data)
	cmd := exec.Command(dir+"/python/ld.so", "--library-path", dir+"/python/lib", dir+"/python/bin/python3", "-S", dir+"/merge.py")
	cmd.Env = []string{"PYTHONHOME=" + dir + "/python"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, file := range strings.Split(strings.Trim(string(out), "[]\n"), ", ") {
		if file = strings.Trim(file, `"`); !strings.HasPrefix(file, dir+"/") {
			t.Errorf("it loads %s of the machine", file)
		}
	}
	t.Logf("%d KiB", len(data)>>10)
}

func TestCorpusIsSharded(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"man2/open.2.gz", "man2/dup.2", "man3/printf.3", "man3/puts.3.gz", "picture.png", "README"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := collect(dir, func(string) bool { return true })
	if err != nil || len(c.documents) != 5 {
		t.Fatalf("%v %v", c.documents, err)
	}
	found := 0
	for shard := range 3 {
		data, err := c.pack(shard, 3, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		unpacked := unpack(t, data)
		for _, name := range c.documents {
			_, err := os.Stat(filepath.Join(unpacked, "text", name))
			if there := err == nil; there != (shardOf(name, 3) == shard) {
				t.Errorf("%s in shard %d: %v", name, shard, there)
			} else if there {
				found++
			}
		}
	}
	if found != 5 {
		t.Errorf("%d of 5 documents are in a shard", found)
	}
}
