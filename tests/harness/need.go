package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Feature is something of the machine that some tests cannot do without.
type Feature struct {
	Name string
	// Promised says that .ci/run installs it: under CI=true its absence is a failure.
	Promised bool
	missing  func() error
}

// The features that tests ask for.
var (
	Root      = Feature{"root", true, missingRoot}
	Netns     = Feature{"network namespaces", true, missingNetns}
	Iptables  = Feature{"iptables", true, missingIptables}
	Docker    = Feature{"docker", true, missingDocker}
	CNI       = Feature{"cni", true, missingCNI}
	Chromium  = Feature{"chromium", true, missingChromium}
	Terraform = Feature{"terraform", false, missingBinary("terraform")}
)

// Need skips the test when the machine lacks a feature. The skip is named and,
// by gotestsum, listed and counted at the end of a run. Under CI=true the
// absence of a promised feature is a failure.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	for _, f := range features {
		err := f.missing()
		if err == nil {
			continue
		}
		if f.Promised && os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: %v (this machine is CI, and .ci/run installs it)", f.Name, err)
		}
		t.Skipf("SKIP %s: %v", f.Name, err)
	}
}

func missingRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("not running as root")
	}
	return nil
}

var missingNetns = sync.OnceValue(func() error {
	if err := missingRoot(); err != nil {
		return err
	}
	name := fmt.Sprintf("rt-probe-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return fmt.Errorf("ip netns add: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return exec.Command("ip", "netns", "del", name).Run()
})

var missingIptables = sync.OnceValue(func() error {
	if out, err := exec.Command("iptables", "-w", "-S").CombinedOutput(); err != nil {
		return fmt.Errorf("iptables -S: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
})

var missingDocker = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker version: %w: %s", err, firstLine(string(out)))
	}
	return nil
})

// cniDirs is where distributions and the upstream release put the CNI plugins.
var cniDirs = []string{"/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"}

func missingCNI() error {
	for _, dir := range cniDirs {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return nil
		}
	}
	return fmt.Errorf("no bridge plugin in %s", strings.Join(cniDirs, ", "))
}

func missingChromium() error {
	_, err := chromiumPath()
	return err
}

func chromiumPath() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no chromium or google-chrome on PATH")
}

func missingBinary(name string) func() error {
	return func() error {
		_, err := exec.LookPath(name)
		return err
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
