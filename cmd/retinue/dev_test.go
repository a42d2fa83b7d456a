package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue/internal/devcluster"
)

// TestEnvIsForEval sends values through a real shell, quoted and not.
func TestEnvIsForEval(t *testing.T) {
	values := []string{"", "plain", "http://127.0.0.1:4646", "http://${meta.retinue_consul}", "it's", "$HOME `id` \\ \"x\" ;&|"}
	for _, v := range values {
		script := fmt.Sprintf("export V=%s;\nexport W=1;\n", shellQuote(v))
		out, err := exec.Command("sh", "-c", `eval "$1"; printf %s "$V$W"`, "sh", script).CombinedOutput()
		if err != nil || string(out) != v+"1" {
			t.Errorf("%q: the shell has %q (%v)", v, out, err)
		}
	}
	// eval $(retinue dev env), without the quotes that it should have.
	out, err := exec.Command("sh", "-c", `eval $(printf 'export V=%s;\nexport W=1;\n' "$1"); printf %s "$V$W"`, "sh", shellQuote("http://${meta.retinue_consul}")).CombinedOutput()
	if err != nil || string(out) != "http://${meta.retinue_consul}1" {
		t.Errorf("unquoted: the shell has %q (%v)", out, err)
	}
}

func TestDevUpRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"dev up --servers 0":             "--servers must be at least 1",
		"dev up --clients 0":             "--clients must be at least 1",
		"dev up --clients 10":            "clients: 10 is not between 1 and 9",
		"dev up --port-offset some":      `--port-offset "some" is neither a number nor auto`,
		"dev up --port-offset=-5":        "neither a number nor auto",
		"dev up --port-offset 65000":     "port offset: 65000",
		"dev up --docker maybe":          `docker: "maybe" is not auto, on or off`,
		"dev up --session-ttl-min 5":     "invalid argument",
		"dev logs a b":                   "accepts at most 1 arg",
		"dev logs -n=-1":                 "cannot be negative",
		"dev down now":                   "unknown command",
		"doctor now":                     "unknown command",
		"tools nomad":                    "unknown command",
		"dev up --servers 9 --clients 0": "must be at least 1",
	} {
		code, stdout, stderr := call(strings.Fields(line)...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("retinue %s: exit code %d, %s%s; want %q", line, code, stdout, stderr, want)
		}
	}
}

func TestDevWithoutACluster(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	for _, verb := range []string{"status", "env", "logs"} {
		code, stdout, stderr := call("dev", verb, "--dir", dir)
		if code != exitFailed || stdout != "" || !strings.Contains(stderr, "no dev cluster in "+dir) || !strings.Contains(stderr, "Hint: start one with `retinue dev up`") {
			t.Errorf("dev %s: exit code %d\n%s%s", verb, code, stdout, stderr)
		}
	}
	if code, _, stderr := call("dev", "down", "--dir", dir); code != exitOK || !strings.Contains(stderr, "nothing to take down") {
		t.Errorf("dev down: exit code %d, %s", code, stderr)
	}
}

func TestStepPrinter(t *testing.T) {
	var out bytes.Buffer
	p := stepPrinter{w: &out}
	for range 3 { // not a terminal: one line, not three within ten seconds
		p.print(devcluster.Step{Text: "building", Progress: true, After: 1500 * time.Millisecond})
	}
	p.print(devcluster.Step{Text: "no engine", Warning: true})
	p.end()
	if want := "[  1.5s] building\n[  0.0s] note: no engine\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	p = stepPrinter{w: &out, terminal: true}
	p.print(devcluster.Step{Text: "one", Progress: true})
	p.print(devcluster.Step{Text: "two", Progress: true})
	p.print(devcluster.Step{Text: "done"})
	if want := "\r\x1b[K[  0.0s] one\r\x1b[K[  0.0s] two\n[  0.0s] done\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// syncBuffer tells when it has what a test waits for.
type syncBuffer struct {
	bytes.Buffer
	want string
	done func()
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	n, err := s.Buffer.Write(p)
	if strings.Contains(s.String(), s.want) {
		s.done()
	}
	return n, err
}

func TestLogs(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) devcluster.Agent {
		path := filepath.Join(dir, name+".log")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return devcluster.Agent{Name: name, LogFile: path}
	}
	one := file("nomad-server-1", strings.Repeat("old\n", 50000)+"a\nb\nc\n")
	two := file("consul-server-1", "x\nhalf a li")
	never := devcluster.Agent{Name: "nomad-client-1", LogFile: filepath.Join(dir, "none.log")}

	var out bytes.Buffer
	if err := (logOptions{lines: 2}).show(t.Context(), &out, []devcluster.Agent{one}); err != nil || out.String() != "b\nc\n" {
		t.Errorf("one agent: %q, %v", out.String(), err)
	}
	out.Reset()
	if err := (logOptions{lines: 1}).show(t.Context(), &out, []devcluster.Agent{two, never, one}); err != nil || out.String() != "consul-server-1  x\nnomad-server-1  c\n" {
		t.Errorf("all agents: %q, %v", out.String(), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f, err := os.OpenFile(two.LogFile, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The rest of the line is written once the tail has been read.
	goOn := &syncBuffer{want: "x\n", done: sync.OnceFunc(func() { fmt.Fprint(f, "ne\n") })}
	follow := &syncBuffer{want: "half a line\n", done: cancel}
	if err := (logOptions{lines: 1, follow: true}).show(ctx, io.MultiWriter(follow, goOn), []devcluster.Agent{two}); err == nil || follow.String() != "x\nhalf a line\n" {
		t.Errorf("follow: %q, %v", follow.String(), err)
	}
}

func TestStatusTable(t *testing.T) {
	st := devcluster.Status{
		Ready: true, Driver: "docker", NetworkMode: "bridge", NomadUI: "http://127.0.0.1:4646/ui/", ConsulUI: "http://127.0.0.1:8500/ui/",
		Agents: []devcluster.AgentStatus{
			{Agent: devcluster.Agent{Name: "consul-server-1", PID: 42, HTTPAddr: "http://127.64.1.1:8500"}, Status: "leader"},
			{Agent: devcluster.Agent{Name: "nomad-client-1", HTTPAddr: "http://127.64.2.1:4646"}, Status: "down"},
		},
		Jobs: []devcluster.JobStatus{{ID: "app", Status: "running", Running: 3}},
	}
	var out bytes.Buffer
	if err := printStatus(&out, st); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ready: 1 of 2 agents run, docker driver", "consul-server-1  leader", "42", "nomad-client-1   down", "-", "app", "running"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
