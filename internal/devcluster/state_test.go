package devcluster

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

func TestStateSurvives(t *testing.T) {
	dir := t.TempDir()
	p := rootPlan()
	p.Dir = dir
	want := &state{Format: stateFormat, Plan: p, Tokens: Tokens{Nomad: "secret"}, Agents: map[string]procfs.Process{"nomad-client-1": {PID: 1, Start: 2}}}
	if err := want.save(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(p.stateFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("there are tokens in it, yet its mode is %v (%v)", info.Mode(), err)
	}
	got, err := loadState(dir)
	if err != nil || got.Tokens.Nomad != "secret" || got.Agents["nomad-client-1"].Start != 2 || got.Plan.Nodes[4].Bridge.Subnet != p.Nodes[4].Bridge.Subnet {
		t.Errorf("%+v, %v", got, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files: %v %v", left, err)
	}
}

func TestOpenExplains(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(dir)
	if err == nil || !strings.Contains(hint.Of(err), "retinue dev up") {
		t.Errorf("no cluster: %v (%s)", err, hint.Of(err))
	}
	for _, text := range []string{"{", `{"format": 99}`} {
		if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err = Open(dir); err == nil || !strings.Contains(hint.Of(err), "retinue dev down") {
			t.Errorf("%s: %v (%s)", text, err, hint.Of(err))
		}
		if _, err := Up(t.Context(), Config{Dir: dir}, nil); err == nil || !strings.Contains(hint.Of(err), "retinue dev down") {
			t.Errorf("up over %s: %v", text, err)
		}
	}
	if err := Down(t.Context(), dir, nil); err != nil {
		t.Errorf("down of a damaged cluster: %v", err)
	}
	if exists(dir) {
		t.Error("the folder is still there")
	}
	if err := Down(t.Context(), dir, nil); err != nil {
		t.Errorf("down of nothing: %v", err)
	}
}

func TestLockWaitsAndSurvivesRemoval(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	first, err := lockDir(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan string, 1)
	got := make(chan error, 1)
	go func() {
		second, err := lockDir(t.Context(), dir, func(holder string) { waiting <- holder })
		if err == nil {
			defer second.release()
			if !exists(filepath.Join(dir, "lock")) {
				err = errors.New("the lock's file is not there")
			}
		}
		got <- err
	}()
	if holder := <-waiting; !strings.HasPrefix(holder, "pid ") {
		t.Errorf("holder %q", holder)
	}
	// As a down does: the folder goes away, and with it the file of the lock.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	first.release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestLockGivesUpWithContext(t *testing.T) {
	dir := t.TempDir()
	held, err := lockDir(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer held.release()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("had enough"))
	defer cancel()
	if _, err := lockDir(ctx, dir, nil); err == nil || !strings.Contains(err.Error(), "had enough") {
		t.Errorf("%v", err)
	}
}

func TestDiskErrorsHaveAdvice(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, "disk is full"},
		{&fs.PathError{Op: "mkdir", Path: "/x", Err: syscall.EACCES}, "that you may write to"},
		{&fs.PathError{Op: "mkdir", Path: "/x", Err: syscall.EROFS}, "that you may write to"},
		{&fs.PathError{Op: "mkdir", Path: "/x", Err: syscall.ENOTDIR}, "is a file"},
	} {
		if got := hint.Of(diskError(c.err)); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q", c.err, got)
		}
	}
	if diskError(nil) != nil {
		t.Error("no error became one")
	}
}

// TestSameAs goes through the wishes that a running cluster cannot fulfil.
func TestSameAs(t *testing.T) {
	p := rootPlan() // 3 servers, 2 clients, offset 20, ACLs, Docker
	p.Root = os.Geteuid() == 0
	for want, cfg := range map[string]Config{
		"":                   {},
		"has servers: 3":     {Servers: 1},
		"has clients: 2":     {Clients: 3},
		"has port offset 20": {PortOffset: 100},
		"uses Docker":        {Docker: "off"},
	} {
		err := (&upper{cfg: cfg}).sameAs(p)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
	for _, cfg := range []Config{{Servers: 3, Clients: 2, PortOffset: 20, ACL: true, Docker: "on"}, {PortOffset: AutoPorts, Docker: "auto"}} {
		if err := (&upper{cfg: cfg}).sameAs(p); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	p.ACL, p.DockerSocket = false, ""
	for _, cfg := range []Config{{ACL: true}, {Docker: "on"}} {
		if err := (&upper{cfg: cfg}).sameAs(p); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

func TestAgentEnvironmentIsClean(t *testing.T) {
	for _, name := range []string{"AWS_CA_BUNDLE", "CONSUL_HTTP_TOKEN", "NOMAD_ADDR", "SSL_CERT_FILE"} {
		t.Setenv(name, "/secret")
	}
	t.Setenv("PATH", "/usr/bin")
	env := agentEnv("/tmp/d", "/tmp/d/bin")
	if strings.Contains(strings.Join(env, "\n"), "secret") {
		t.Errorf("%q", env)
	}
	if env[0] != markerEnv+"=/tmp/d" || env[2] != "PATH=/tmp/d/bin:/usr/bin:/usr/sbin:/sbin" {
		t.Errorf("%q", env)
	}
}

func TestTokensAreDistinct(t *testing.T) {
	tokens, err := newTokens(2, 3)
	if err != nil {
		t.Fatal(err)
	}
	all := []string{tokens.Nomad, tokens.Consul, tokens.NomadServers, tokens.NomadClients}
	for _, name := range []string{"server-1", "server-2", "client-1", "client-2", "client-3"} {
		all = append(all, tokens.Agents[name])
	}
	seen := map[string]bool{}
	for _, id := range all {
		if seen[id] || !uuid.MatchString(id) {
			t.Errorf("token %q", id)
		}
		seen[id] = true
	}
}

func TestLogTail(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.log")
	if err := os.WriteFile(name, []byte(strings.Repeat("old line\n", 10000)+"one\ntwo\nthree\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := logTail(name, 2); got != "two\nthree" {
		t.Errorf("%q", got)
	}
}
