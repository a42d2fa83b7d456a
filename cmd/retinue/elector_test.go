package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestElectorUsage(t *testing.T) {
	for _, name := range []string{"NOMAD_JOB_NAME", "NOMAD_ALLOC_DIR", "NOMAD_SECRETS_DIR", "RETINUE_ELECTOR_ADDR"} {
		t.Setenv(name, "")
	}
	sock := "--listen=unix://" + t.TempDir() + "/s"
	for _, c := range []struct {
		args string
		want string
	}{
		{"elector", "no application named"},
		{"elector --app orders", "no address to listen on"},
		{"elector --app or/ders " + sock, "application name"},
		{"elector --app orders --election a,a " + sock, "named twice"},
		{"elector --app orders --election .a " + sock, "election name"},
		{"elector --app orders --lease 10ms " + sock, "lease 10ms"},
		{"elector --app orders --lease soon " + sock, "soon"},
		{"elector --app orders --revocation never " + sock, "revocation"},
		{"elector --app orders --address nowhere " + sock, "--address"},
		{"elector --app orders --id a/b " + sock, "elector name"},
		{"elector --app orders --socket-mode rw " + sock, "--socket-mode"},
		{"elector --app orders --log-level loud " + sock, "log level"},
		{"elector --app orders --listen tcp://0.0.0.0:4040", "not a loopback address"},
		{"elector extra --app orders", "extra"},
		{"elector run --app orders", "at least 1 arg"},
		{"elector run --app orders --grace 9s -- true", "grace"},
		{"elector run --app orders --election a,b -- true", "2 elections"},
		{"elector run --app orders -- /no/such/command", "cannot be run"},
		{"elector run --app orders -- no-such-command", "cannot be run"},
		{"elector status", "no elector named"},
		{"elector status --addr nowhere", "no scheme"},
		{"elector stepdown", "no elector named"},
		{"acl print elector --job a/b", "name \"a/b\""},
		{"acl apply elector --job a\"b", "name"},
		{"acl print gather --job search --service a/b", "name"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(strings.Fields(c.args), strings.NewReader(""), &stdout, &stderr)
		if code != exitUsage || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("retinue %s: exit %d, want %d and %q:\n%s", c.args, code, exitUsage, c.want, &stderr)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run([]string{"elector", "status", "--addr", "unix:///nonexistent/s"}, strings.NewReader(""), &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "Hint:") {
		t.Errorf("exit %d\n%s", code, &stderr)
	}
}
