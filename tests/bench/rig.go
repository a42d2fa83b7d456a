package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/toolchain"
)

// rig is the world of a run: the programs, the servers, and what belongs to them.
type rig struct {
	dir   string
	lock  *os.File // held while we live
	root  string
	spawn *spawner
	hub   *hub
	net   *subnet
	say   func(format string, args ...any)

	self, retinue, app, leaf, fanout, consul, nomad, etcd string // programs
	versions                                              []Version
	missing                                               []string // peers that could not be measured, and why

	servers, clients []*consulAgent
	nomadAddr        string
	etcdURLs         []string
}

// nodeA and nodeB are the hosts of the two replicas, each with a Consul client agent; nodeC is the one that gets lost.
const (
	nodeA = iota
	nodeB
	nodeC
	nodes
)

func newRig(say func(string, ...any)) (*rig, error) {
	root, err := repoRoot()
	if err != nil {
		return nil, err
	}
	dir, lock, err := runFolder()
	if err != nil {
		return nil, err
	}
	r := &rig{dir: dir, lock: lock, root: root, spawn: newSpawner(dir), say: say}
	if r.hub, err = newHub(dir); err == nil {
		r.net, err = newSubnet()
	}
	if err == nil {
		r.self, err = os.Executable()
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// close ends every process and removes every file.
func (r *rig) close() {
	if r.hub != nil {
		r.hub.close()
	}
	r.spawn.close()
	os.RemoveAll(r.dir)
	r.lock.Close()
}

// runFolder makes the folder of a run, locked for as long as we live, and removes those of runs that were killed.
func runFolder() (dir string, lock *os.File, err error) {
	const pattern = "rb-*" // short: it holds Unix sockets
	locked := func(dir string) (*os.File, error) {
		f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	old, err := filepath.Glob(filepath.Join(os.TempDir(), pattern, "lock"))
	if err != nil {
		return "", nil, err
	}
	for _, path := range old {
		if f, err := locked(filepath.Dir(path)); err == nil {
			os.RemoveAll(filepath.Dir(path))
			f.Close()
		}
	}
	if dir, err = os.MkdirTemp("", pattern); err != nil {
		return "", nil, err
	}
	lock, err = locked(dir)
	return dir, lock, err
}

func repoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module retinue\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("not below the root module of the project")
		}
		dir = parent
	}
}

// programs finds or builds everything that is run.
func (r *rig) programs(ctx context.Context) error {
	var err error
	if r.consul, err = r.tool(ctx, toolchain.Consul, "RETINUE_TEST_CONSUL"); err != nil {
		return err
	}
	if r.nomad, err = r.tool(ctx, toolchain.Nomad, "RETINUE_TEST_NOMAD"); err != nil {
		return err
	}
	if err := r.ownProgram(ctx); err != nil {
		return err
	}
	tests := filepath.Join(r.root, "tests")
	r.app = filepath.Join(r.dir, "app")
	if err := r.build(ctx, tests, r.app, "./bench/app"); err != nil {
		return err
	}
	r.versions = append(r.versions, Version{"consul/api", moduleVersion(ctx, tests, "github.com/hashicorp/consul/api")})
	r.etcd = filepath.Join(r.dir, "etcd")
	module := filepath.Join(tests, "bench", "etcd")
	if err := r.build(ctx, module, r.etcd, "."); err != nil {
		r.etcd = ""
		r.missing = append(r.missing, "etcd Election: its server was not built here: "+lastLine(err.Error()))
		return nil
	}
	r.versions = append(r.versions, Version{"etcd", moduleVersion(ctx, module, "go.etcd.io/etcd/server/v3")})
	return nil
}

// ownProgram finds or builds the multi-call binary.
func (r *rig) ownProgram(ctx context.Context) (err error) {
	r.retinue = os.Getenv("RETINUE_BIN")
	if r.retinue == "" {
		r.retinue = filepath.Join(r.dir, "retinue")
		for path, program := range map[string]string{r.retinue: "./cmd/retinue", r.retinue + "-elector": "./cmd/retinue-elector"} {
			if err := r.build(ctx, r.root, path, program); err != nil {
				return err
			}
		}
	} else if r.retinue, err = filepath.Abs(r.retinue); err != nil {
		return err
	}
	version, err := exec.CommandContext(ctx, r.retinue, "version").Output()
	if err != nil {
		return fmt.Errorf("%s version: %w", r.retinue, err)
	}
	fields := strings.Fields(string(version))
	r.versions = append([]Version{{"retinue", fields[len(fields)-1]}}, r.versions...)
	return nil
}

func (r *rig) tool(ctx context.Context, t toolchain.Tool, env string) (string, error) {
	if path := os.Getenv(env); path != "" {
		v, err := toolchain.Version(ctx, path)
		if err != nil {
			return "", err
		}
		r.with(Version{t.String(), v.String()})
		return filepath.Abs(path)
	}
	found, err := toolchain.Ensure(ctx, t, func(p toolchain.Progress) { r.say("%v", p) })
	r.with(Version{t.String(), found.Version})
	return found.Path, err
}

// with notes a program that takes part, which several parts may start.
func (r *rig) with(v Version) {
	if !slices.Contains(r.versions, v) {
		r.versions = append(r.versions, v)
	}
}

// build makes a static program, as it is shipped.
func (r *rig) build(ctx context.Context, dir, out, pkg string) error {
	return r.buildWith(ctx, "CGO_ENABLED=0", dir, out, pkg)
}

func (r *rig) buildWith(ctx context.Context, env, dir, out, pkg string) error {
	r.say("building %s", filepath.Base(out))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", filepath.Base(out), err, bytes.TrimSpace(msg))
	}
	return nil
}

func moduleVersion(ctx context.Context, dir, module string) string {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "v")
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// up starts the servers. A peer whose server does not start is left out, and named.
func (r *rig) up(ctx context.Context) error {
	r.say("starting 3 Consul servers and %d client agents", int(nodes))
	if err := r.startConsul(ctx, 3, nodes); err != nil {
		return err
	}
	r.say("starting a Nomad server")
	if err := r.startNomad(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.nomadAddr = ""
		r.missing = append(r.missing, "Nomad var lock: the server did not start: "+lastLine(err.Error()))
	}
	if r.etcd != "" {
		r.say("starting 3 etcd servers")
		if err := r.startEtcd(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.etcd = ""
			r.missing = append(r.missing, "etcd Election: the servers did not start: "+lastLine(err.Error()))
		}
	}
	return pause(ctx, time.Second)
}
