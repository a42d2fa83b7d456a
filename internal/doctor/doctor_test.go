package doctor

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/internal/hint"
	"retinue/internal/toolchain"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update rewrites it); got:\n%s", file, got)
	}
}

// report runs checks and returns what a person sees.
func report(t *testing.T, colour bool, checks ...Check) (Report, string) {
	t.Helper()
	var out bytes.Buffer
	p := NewPrinter(&out, colour)
	r := Run(t.Context(), checks, p.Print)
	p.Sum()
	return r, out.String()
}

func found(detail string, err error) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return detail, err }
}

func TestReport(t *testing.T) {
	checks := []Check{
		{"This machine", "system", found("linux/amd64, kernel 6.1", nil)},
		{"This machine", "user", found("an ordinary user", warn(hint.Wrap(errors.New("no exec driver"), "start the cluster as root")))},
		{"Programs", "nomad", found("not on PATH", hint.Wrap(errors.New("without Go it cannot be built"), "install Go"))},
		{"Consul", "agent", found("", warn(errors.New("no agent at localhost:8500")))},
		{"Consul", "leader", found("", errSkip)},
	}
	r, text := report(t, false, checks...)
	golden(t, "report.txt", []byte(text))
	if r.OK || len(r.Results) != 5 || r.Results[1].Level != Warning || r.Results[2].Level != Failed || r.Results[4].Level != Skipped {
		t.Errorf("%+v", r)
	}
	r, _ = report(t, false, checks[0], checks[1], checks[3], checks[4])
	if !r.OK {
		t.Error("warnings count as failures")
	}
	if _, text := report(t, true, checks[0]); !strings.Contains(text, "\x1b[32m√\x1b[0m system") {
		t.Errorf("no colour in %q", text)
	}
}

func TestInterruptedReportIsNotOK(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := Run(ctx, []Check{{"a", "b", found("fine", nil)}}, nil); r.OK || len(r.Results) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestSkew(t *testing.T) {
	for skew, want := range map[time.Duration]Level{0: OK, 1900 * time.Millisecond: OK, -3 * time.Second: Warning, 3 * time.Second: Warning, -2 * time.Minute: Failed} {
		r := Check{Run: func(context.Context) (string, error) { return judgeSkew(skew) }}.result(t.Context())
		if r.Level != want {
			t.Errorf("%s: %+v, want %s", skew, r, want)
		}
	}
}

func TestCgroups(t *testing.T) {
	make := func(names ...string) string {
		dir := t.TempDir()
		for _, n := range names {
			if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	const none = "/not/there"
	for _, c := range []struct {
		root     string
		writable bool
		want     string
	}{
		{make("cgroup.controllers"), true, "ok version 2"},
		{make("cpu", "cpuset", "memory", "freezer", "pids"), true, "ok version 1"},
		{make("cpu", "cpuset", "memory", "freezer"), true, "warning version 1: not mounted: pids"},
		{make(), false, "warning none are mounted"},
		{none, true, "failed version 1: nomad cannot make cgroups in /not/there/cpuset: no such file or directory"},
	} {
		r := Check{Run: func(context.Context) (string, error) { return checkCgroups(c.root, c.writable) }}.result(t.Context())
		if got := fmt.Sprintf("%s %s", r.Level, r.Detail); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// A bridge without a hardware address of its own is a warning.
func TestBridge(t *testing.T) {
	make := func(assigned string) string {
		dir := filepath.Join(t.TempDir(), "nomad")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"addr_assign_type": assigned, "address": "02:52:0a:c8:01:01"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return filepath.Dir(dir)
	}
	for _, c := range []struct{ root, want string }{
		{t.TempDir(), "ok no allocation has made Nomad's yet"},
		{make("3"), "ok nomad, 02:52:0a:c8:01:01"},
		{make("1"), "warning nomad, 02:52:0a:c8:01:01: its hardware address is the lowest of its ports'"},
	} {
		r := Check{Run: func(context.Context) (string, error) { return checkBridge(c.root) }}.result(t.Context())
		if got := fmt.Sprintf("%s %s", r.Level, r.Detail); !strings.HasPrefix(got, c.want) || (r.Hint != "") != (r.Level == Warning) {
			t.Errorf("%s (%s), want %s", got, r.Hint, c.want)
		}
	}
}

func TestOldEnough(t *testing.T) {
	if err := oldEnough("1.20.9", toolchain.Consul); err == nil || !strings.Contains(err.Error(), "older than 1.21.0") {
		t.Error(err)
	}
	if err := oldEnough("1.22.0-dev", toolchain.Consul); err != nil {
		t.Error(err)
	}
}

// agent is a Consul and a Nomad in one, as the answers say.
type agent map[string]string

func (a agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, ok := a[r.Method+" "+r.URL.Path]
	if !ok {
		body = "404 not here"
	}
	if code, text, found := strings.Cut(body, " "); found && len(code) == 3 {
		var n int
		if _, err := fmt.Sscanf(code, "%d", &n); err == nil {
			w.WriteHeader(n)
			io.WriteString(w, text)
			return
		}
	}
	io.WriteString(w, body)
}

func (a agent) target(t *testing.T) Target {
	t.Helper()
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	for _, name := range []string{"CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "NOMAD_ADDR", "NOMAD_TOKEN"} {
		t.Setenv(name, "")
	}
	target := StandardTarget()
	target.Consul.Address, target.Nomad.Address = srv.URL, srv.URL
	target.Source, target.Chosen = "a test", true
	return target
}

// healthy answers as a cluster without ACLs where all is well. /v1/agent/self is
// left to the test: it is the one path where Consul and Nomad answer differently.
func healthy() agent {
	return agent{
		"GET /v1/status/leader":            `"127.64.1.1:8300"`,
		"GET /v1/kv/retinue/":              `[]`,
		"GET /v1/catalog/services":         `{}`,
		"GET /v1/acl/token/self":           "401 ACL support disabled",
		"GET /v1/jobs":                     `[]`,
		"PUT /v1/job/retinue-doctor/plan":  `{}`,
		"POST /v1/job/retinue-doctor/plan": `{}`,
		"GET /v1/nodes":                    `[{"ID":"n1","Name":"client-1","Status":"ready","SchedulingEligibility":"eligible","Drivers":{"docker":{"Healthy":true},"exec":{"Healthy":false}}}]`,
		"GET /v1/node/n1":                  `{"ID":"n1","Attributes":{"consul.version":"1.22.5"}}`,
	}
}

func both(target Target) []Check { return append(target.ConsulChecks(), target.NomadChecks()...) }

// reports replaces the address of the test server.
func reports(t *testing.T, target Target) (Report, []byte) {
	t.Helper()
	r, text := report(t, false, both(target)...)
	return r, []byte(strings.ReplaceAll(text, target.Consul.Address, "http://agent"))
}

func TestHealthyAgents(t *testing.T) {
	a := healthy()
	a["GET /v1/agent/self"] = `{"Config":{"Version":"1.22.5"},"DebugConfig":{"SessionTTLMin":"1s"}}`
	target := a.target(t)
	r, text := report(t, false, target.ConsulChecks()...)
	golden(t, "consul-healthy.txt", []byte(strings.ReplaceAll(text, target.Consul.Address, "http://agent")))
	if !r.OK {
		t.Error("not OK")
	}
	a["GET /v1/agent/self"] = `{"config":{"Version":{"Version":"1.11.3"}}}`
	r, text = report(t, false, target.NomadChecks()...)
	golden(t, "nomad-healthy.txt", []byte(strings.ReplaceAll(text, target.Consul.Address, "http://agent")))
	if !r.OK {
		t.Error("not OK")
	}
}

func TestLifecycleOnSomeClientsIsSaid(t *testing.T) {
	a := healthy()
	a["GET /v1/agent/self"] = `{"config":{"Version":{"Version":"1.11.3"}}}`
	a["GET /v1/nodes"] = `[{"ID":"n1","Name":"client-1","Status":"ready","SchedulingEligibility":"eligible","Drivers":{"docker":{"Healthy":true}}},
		{"ID":"n2","Name":"client-2","Status":"ready","SchedulingEligibility":"eligible","Drivers":{"docker":{"Healthy":true}}}]`
	a["GET /v1/node/n1"] = `{"ID":"n1","Attributes":{"consul.version":"1.22.5","driver.docker.lifecycle":"1"}}`
	a["GET /v1/node/n2"] = `{"ID":"n2","Attributes":{"consul.version":"1.22.5"}}`
	_, text := report(t, false, a.target(t).NomadChecks()...)
	if !strings.Contains(text, "docker on 2 (1 with lifecycle): not every client has retinue-driver for docker") {
		t.Errorf("%s", text)
	}
}

func TestAgentsThatRefuse(t *testing.T) {
	a := agent{"GET /v1/status/leader": `""`}
	for _, path := range []string{"agent/self", "kv/retinue/", "jobs", "nodes"} {
		a["GET /v1/"+path] = "403 Permission denied"
	}
	r, text := reports(t, a.target(t))
	golden(t, "refused.txt", text)
	if r.OK {
		t.Error("OK")
	}
}

func TestWarningsOfAgents(t *testing.T) {
	a := healthy()
	a["GET /v1/acl/token/self"] = `{"Description":"an operator"}`
	a["GET /v1/acl/policies"] = "403 Permission denied"
	a["PUT /v1/job/retinue-doctor/plan"] = "403 Permission denied"
	a["GET /v1/node/n1"] = `{"ID":"n1"}`
	r, text := reports(t, a.target(t))
	for _, want := range []string{"‼ ACL: the token reads what retinue writes: it may not create policies", "‼ ACL: it lists jobs: the token may not submit jobs", "× clients: 1 of 1 ready, docker on 1: no Consul agent beside client-1"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if r.OK {
		t.Error("a client without Consul cannot run our patterns")
	}
}

func TestNobodyAnswers(t *testing.T) {
	target := healthy().target(t)
	target.Consul.Address, target.Nomad.Address = "http://127.0.0.1:1", "http://127.0.0.1:1"
	if r, text := reports(t, target); r.OK || !strings.Contains(string(text), "× agent: http://agent does not answer") || strings.Count(string(text), "not checked\n") < 8 {
		t.Errorf("a chosen address: %s", text)
	}
	target.Chosen = false
	if r, text := reports(t, target); !r.OK || !strings.Contains(string(text), "`retinue dev up` starts one") {
		t.Errorf("nobody chose an address: %s", text)
	}
}

// TestMachine only runs the checks: what they find depends on the machine.
func TestMachine(t *testing.T) {
	r := Run(t.Context(), Machine(filepath.Join(t.TempDir(), "not", "there")), nil)
	if len(r.Results) != 11 {
		t.Errorf("%+v", r.Results)
	}
	for _, c := range r.Results {
		if c.Detail == "" || c.Level != OK && c.Hint == "" {
			t.Errorf("no detail or no hint: %+v", c)
		}
	}
}
