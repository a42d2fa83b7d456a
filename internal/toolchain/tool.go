// Package toolchain finds the nomad and consul programs that the dev cluster
// and the tests run: from PATH when they are new enough, otherwise built once
// from their pinned Go modules into the user's cache folder.
//
// The pinned modules are tools/nomad and tools/consul of this repository; their
// go.mod and go.sum are embedded here (go:embed cannot reach into another
// module), so that an installed binary can build without the checkout.
package toolchain

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/hashicorp/go-version"
)

//go:embed pinned/*.mod pinned/*.sum
var pinned embed.FS

// Tool is one of the programs.
type Tool int

const (
	Nomad Tool = iota
	Consul
)

// Tools lists them all.
func Tools() []Tool { return []Tool{Consul, Nomad} }

// spec is what is fixed about a tool.
type spec struct {
	name    string
	pkg     string
	minimum string   // oldest version on PATH that will do
	pinned  string   // version that is built
	flags   []string // of go build
	cgo     string   // CGO_ENABLED
}

func (t Tool) spec() spec {
	if t == Consul {
		return spec{name: "consul", pkg: "github.com/hashicorp/consul", minimum: "1.21.0", pinned: "1.22.5", cgo: "0"}
	}
	// Without cgo Nomad's exec driver isolates nothing, and says nothing of it.
	return spec{name: "nomad", pkg: "github.com/hashicorp/nomad", minimum: "1.10.0", pinned: "1.11.3", flags: []string{"-tags", "ui,release"}, cgo: "1"}
}

func (t Tool) String() string { return t.spec().name }

// Pinned is the version that is built where none is on PATH.
func (t Tool) Pinned() string { return t.spec().pinned }

// Minimum is the oldest version that is used from PATH.
func (t Tool) Minimum() string { return t.spec().minimum }

// Found is a tool that can be run.
type Found struct {
	Tool    Tool
	Path    string
	Version string
	Built   bool   // by us, in the cache folder
	Note    string // why the one on PATH was not taken; "" if there was none
}

// Find looks on PATH and then in the cache folder. ok is false when the tool
// would have to be built; Note may then still say why PATH's was not taken.
func Find(ctx context.Context, t Tool) (found Found, ok bool) {
	found.Tool = t
	if path, err := exec.LookPath(t.String()); err == nil {
		v, err := Version(ctx, path)
		switch {
		case err != nil:
			found.Note = fmt.Sprintf("%s on PATH does not say its version: %v", path, err)
		case !newEnough(v, t.Minimum()):
			found.Note = fmt.Sprintf("%s on PATH is %s, older than %s", path, v, t.Minimum())
		default:
			// The link may be that of a dev cluster, which goes away with it.
			if real, err := filepath.EvalSymlinks(path); err == nil {
				path = real
			}
			if abs, err := filepath.Abs(path); err == nil {
				path = abs
			}
			return Found{Tool: t, Path: path, Version: v.String()}, true
		}
	}
	path, err := t.cached()
	if err != nil {
		return found, false
	}
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		found.Path, found.Version, found.Built = path, t.Pinned(), true
		return found, true
	}
	return found, false
}

// cached is where the built program belongs.
func (t Tool) cached() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(cache, "retinue", "tools", t.String()+"-"+t.Pinned(), t.String()), nil
}

// Version runs `program version` and reads the first line.
func Version(ctx context.Context, path string) (*version.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run %s version: %w", path, err)
	}
	return parseVersion(string(out))
}

var versionLine = regexp.MustCompile(`(?m)^(?:Nomad|Consul) v(\S+)`)

// parseVersion reads "Nomad v1.11.3" and "Consul v1.22.5+ent".
func parseVersion(out string) (*version.Version, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("no version in %.80q", out)
	}
	return version.NewVersion(m[1])
}

// newEnough compares without the pre-release: 1.11.0-dev is no older than 1.11.
func newEnough(v *version.Version, minimum string) bool {
	return v.Core().GreaterThanOrEqual(version.Must(version.NewVersion(minimum)))
}
