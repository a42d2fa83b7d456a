package toolchain

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue/internal/hint"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]string{
		"Nomad v1.11.3\nBuildDate 2026-01-01T00:00:00Z\nRevision abc\n": "1.11.3",
		"Consul v1.22.5\nBuild Date 1970-01-01T00:00:01Z\n":             "1.22.5",
		"Consul v1.21.0+ent\n":                 "1.21.0+ent",
		"a warning first\nNomad v1.12.0-dev\n": "1.12.0-dev",
	} {
		v, err := parseVersion(out)
		if err != nil || v.String() != want {
			t.Errorf("%q: %v, %v; want %s", out, v, err, want)
		}
	}
	for _, out := range []string{"", "Nomad", "Vault v1.2.3", "Nomad vX"} {
		if v, err := parseVersion(out); err == nil {
			t.Errorf("%q: %v, want an error", out, v)
		}
	}
}

func TestNewEnough(t *testing.T) {
	for v, want := range map[string]bool{"1.9.7": false, "1.10.0": true, "1.10.0-beta.1": true, "1.11.3+ent": true, "2.0.0": true, "0.12.0": false} {
		parsed, err := parseVersion("Nomad v" + v)
		if err != nil {
			t.Fatal(err)
		}
		if got := newEnough(parsed, "1.10.0"); got != want {
			t.Errorf("%s >= 1.10.0: %v, want %v", v, got, want)
		}
	}
}

// TestPinnedAreTheToolsModules holds the embedded copies to tools/.
func TestPinnedAreTheToolsModules(t *testing.T) {
	for _, tool := range Tools() {
		for _, ext := range []string{"mod", "sum"} {
			want, err := os.ReadFile(filepath.Join("..", "..", "tools", tool.String(), "go."+ext))
			if err != nil {
				t.Fatal(err)
			}
			got, err := fs.ReadFile(pinned, "pinned/"+tool.String()+"."+ext)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("pinned/%[1]s.%[2]s is not tools/%[1]s/go.%[2]s: copy it", tool, ext)
			}
			if ext == "mod" && !bytes.Contains(want, []byte(tool.spec().pkg+" v"+tool.Pinned())) {
				t.Errorf("tools/%s/go.mod does not require v%s", tool, tool.Pinned())
			}
		}
	}
}

// fakeTool puts a program on a PATH of its own that prints the version.
func fakeTool(t *testing.T, name, says string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script := "#!/bin/sh\necho '" + says + "'\n"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	return dir
}

func TestFindTakesANewEnoughOneFromPath(t *testing.T) {
	dir := fakeTool(t, "nomad", "Nomad v1.10.2")
	found, ok := Find(context.Background(), Nomad)
	if !ok || found.Path != filepath.Join(dir, "nomad") || found.Version != "1.10.2" || found.Built {
		t.Errorf("found %+v, %v", found, ok)
	}
}

func TestFindSaysThatTheOneOnPathIsOld(t *testing.T) {
	dir := fakeTool(t, "consul", "Consul v1.15.4")
	found, ok := Find(context.Background(), Consul)
	if ok || !strings.Contains(found.Note, "1.15.4, older than 1.21.0") {
		t.Fatalf("found %+v, %v", found, ok)
	}
	built := filepath.Join(dir, "cache", "retinue", "tools", "consul-"+Consul.Pinned(), "consul")
	if err := os.MkdirAll(filepath.Dir(built), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(built, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	found, ok = Find(context.Background(), Consul)
	if !ok || found.Path != built || !found.Built || found.Note == "" {
		t.Errorf("with a built one: found %+v, %v", found, ok)
	}
}

func TestEnsureWithoutCompilers(t *testing.T) {
	dir := fakeTool(t, "nothing", "")
	_, err := Ensure(context.Background(), Consul, nil)
	if err == nil || !strings.Contains(hint.Of(err), "install Go") {
		t.Errorf("without go: %v, hint %q", err, hint.Of(err))
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CC", "")
	_, err = Ensure(context.Background(), Nomad, nil)
	if err == nil || !strings.Contains(hint.Of(err), "gcc") {
		t.Errorf("without a C compiler: %v, hint %q", err, hint.Of(err))
	}
}

// TestBuildFailures runs a go that fails as the real one does.
func TestBuildFailures(t *testing.T) {
	for says, want := range map[string]string{
		"write /tmp/x: no space left on device":                                     "disk is full",
		"dial tcp: lookup proxy: no such host":                                      "could not be downloaded",
		"go: go.mod requires go >= 1.25.8 (running go 1.22.1; GOTOOLCHAIN=local)":   "too old",
		"github.com/x/y: compile: signal: killed":                                   "out of memory",
		"some/file.go:1:1: syntax error: something that nobody foresaw in the tool": "put consul >= 1.21.0 on PATH",
	} {
		dir := fakeTool(t, "go", "")
		script := "#!/bin/sh\necho 'go: downloading example.org/a v1.0.0' >&2\necho example.org/a >&2\necho '" + says + "' >&2\nexit 1\n"
		if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := Ensure(context.Background(), Consul, nil)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "downloading") {
			t.Errorf("the error shows what go said and not its progress: %v", err)
		}
		if !strings.Contains(hint.Of(err), want) {
			t.Errorf("%q: hint %q, want %q", says, hint.Of(err), want)
		}
	}
}

// TestBuildAppearsWhole builds with a go that writes its -o file.
func TestBuildAppearsWhole(t *testing.T) {
	dir := fakeTool(t, "go", "")
	script := `#!/bin/sh
[ -f go.mod ] && [ -f go.sum ] && [ "$CGO_ENABLED" = 0 ] && [ "$GOWORK" = off ] || exit 7
while [ "$1" != -o ]; do shift; done
echo example.org/a >&2
printf '#!/bin/sh\necho built' > "$2"
/bin/chmod +x "$2"
`
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	abandoned := filepath.Join(dir, "cache", "retinue", "tools", "consul-"+Consul.Pinned(), "build-123")
	if err := os.MkdirAll(abandoned, 0o755); err != nil {
		t.Fatal(err)
	}
	var seen []string
	found, err := Ensure(context.Background(), Consul, func(p Progress) { seen = append(seen, p.String()) })
	if err != nil || !found.Built {
		t.Fatalf("%+v, %v", found, err)
	}
	if len(seen) == 0 || !strings.Contains(seen[0], "building consul") {
		t.Errorf("progress: %q", seen)
	}
	left, err := os.ReadDir(filepath.Dir(found.Path))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the program: %v, %v", left, err)
	}
}

func TestProgress(t *testing.T) {
	w := &watcher{tool: Nomad}
	for _, part := range []string{"go: downloading a v1\ngo: down", "loading b v2\ngithub.com/a/b\n", "# github.com/a/c\nvet: something\n", "github.com/a/d\nhalf"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if p := w.progress(); p.Downloaded != 2 || p.Compiled != 2 {
		t.Errorf("%+v, want 2 modules and 2 packages", p)
	}
	if s := (Progress{Tool: Nomad, Compiled: 12}).String(); s != "building nomad 1.11.3 (once): 0s, 12 packages compiled" {
		t.Error(s)
	}
}
