package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"retinue/internal/cli"
)

// Nobody gets a queue that is open to the network by leaving something out.
func TestOpenOnlyWithAPassword(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, short := file("0123456789abcdef0123\n"), file("secret\n")
	for _, c := range []struct {
		listen, cluster, password string
		ok                        bool
	}{
		{"127.0.0.1:4222", "", "", true},
		{"localhost:4222", "", "", true},
		{"0.0.0.0:4222", "", "", false},
		{":4222", "", "", false},
		{"10.0.0.1:4222", "", "", false},
		{"127.0.0.1:4222", "0.0.0.0:6222", "", false},
		{"0.0.0.0:4222", "", good, true},
		{"0.0.0.0:4222", "", short, false},
		{"127.0.0.1:4222", "", good + ".missing", false},
	} {
		conf, err := flags{data: "d", listen: c.listen, cluster: c.cluster, user: "u", passwordFile: c.password}.config()
		if (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
		if code, _ := cli.Code(err); err != nil && (code != cli.ExitUsage || strings.Contains(err.Error(), "0123456789")) {
			t.Errorf("%+v: %v", c, err)
		}
		if c.ok && c.password != "" && (conf.User != "u" || conf.Password != "0123456789abcdef0123") {
			t.Errorf("%+v: user %q, password %q", c, conf.User, conf.Password)
		}
	}
	if _, err := (flags{listen: "127.0.0.1:0"}).config(); err == nil {
		t.Error("it starts without a folder")
	}
}

// Each flag stands in the README of the work queue.
func TestFlagsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../coordinator/README.md")
	if err != nil {
		t.Fatal(err)
	}
	newCmd().LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" && f.Name != "version" && !strings.Contains(string(text), "--"+f.Name) {
			t.Errorf("--%s is not in coordinator/README.md", f.Name)
		}
	})
}
