package devcluster_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

// remains looks for everything that a cluster in dir could leave on the machine,
// by other means than the code that removes it.
func remains(t *testing.T, dir string, allocs []string) []string {
	t.Helper()
	var left []string
	find := func(format string, args ...any) { left = append(left, fmt.Sprintf(format, args...)) }
	if _, err := os.Lstat(dir); err == nil {
		find("folder %s", dir)
	}
	marks := append([]string{dir + "/", "RETINUE_DEV_CLUSTER=" + dir + "\x00"}, allocs...)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		for _, m := range marks {
			if strings.Contains(string(cmdline), m) || strings.Contains(string(environ)+"\x00", m) {
				find("process %d: %s", pid, strings.ReplaceAll(string(cmdline), "\x00", " "))
				break
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir+"/") || containsAny(line, allocs) {
			find("mount %s", strings.TrimSpace(line))
		}
	}
	aliases, err := filepath.Glob("/sys/class/net/*/ifalias")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range aliases {
		if alias, err := os.ReadFile(name); err == nil && strings.HasSuffix(strings.TrimSpace(string(alias)), " "+dir) {
			find("bridge %s", name)
		}
	}
	for _, pattern := range []string{"/var/run/netns/*", "/var/lib/cni/results/*", "/sys/fs/cgroup/*/nomad/*", "/sys/fs/cgroup/nomad.slice/*/*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if containsAny(name, allocs) {
				find("%s", name)
			}
		}
	}
	if os.Geteuid() == 0 {
		for _, table := range []string{"nat", "filter"} {
			if rules, err := exec.Command("iptables", "-w", "-t", table, "-S").Output(); err == nil && containsAny(string(rules), allocs) {
				find("rules in %s", table)
			}
		}
	}
	if names, err := exec.Command("docker", "ps", "-a", "--format", "{{.Names}}").Output(); err == nil && containsAny(string(names), allocs) {
		find("containers: %s", names)
	}
	return left
}

// mountsBelow lists what is mounted below a folder, the last first.
func mountsBelow(t *testing.T, dir string) (points []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			points = append([]string{fields[1]}, points...)
		}
	}
	return points
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}

// TestOrdinaryUser does all of it as somebody without rights: with raw_exec, in
// a folder whose path is too long for sockets.
func TestOrdinaryUser(t *testing.T) {
	harness.Need(t, harness.Root)
	t.Parallel()
	const uid = 65534 // nobody: Nomad wants a user with a name
	home := harness.Dir(t, "home")
	bin := filepath.Join(home, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]string{"nomad": harness.NomadBinary(t), "consul": harness.ConsulBinary(t), "retinue": harness.RetinueBinary(t)} {
		if out, err := exec.Command("cp", "-L", source, filepath.Join(bin, name)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.Chown(home, uid, uid); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(home, "a-folder-with-quite-a-long-name", "dev")
	as := func(args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(bin, "retinue"), args...)
		cmd.Env = []string{"HOME=" + home, "PATH=" + bin + ":/usr/bin:/bin", "RETINUE_DEV_UP_PORT_OFFSET=auto"}
		for _, verb := range []string{"UP", "DOWN", "ENV", "STATUS"} {
			cmd.Env = append(cmd.Env, "RETINUE_DEV_"+verb+"_DIR="+dir)
		}
		cmd.Dir = home
		cmd.SysProcAttr = credential(uid)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() { as("dev", "down") })
	out, err := as("dev", "up")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"bridge mode needs root", "without isolation", "raw_exec tasks with host networking"} {
		if !strings.Contains(out, want) {
			t.Errorf("up does not say %q:\n%s", want, out)
		}
	}
	env, err := as("dev", "env")
	if err != nil || !strings.Contains(env, "export NOMAD_VAR_driver=raw_exec;") || !strings.Contains(env, "export NOMAD_VAR_network_mode=host;") {
		t.Errorf("%v: %s", err, env)
	}
	c := open(t, dir)
	alloc := run(t, c, idle(c, "app", "raw_exec", "a-task-16-bytes_"))[0]
	socket := filepath.Join(c.Plan().AllocDir(c.Plan().Nodes[1]), alloc.ID, "a-task-16-bytes_", "secrets", "api.sock")
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("Nomad's socket for the task: %v", err)
	}
	link := c.Plan().ShortDir
	if out, err := as("dev", "down"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if left := remains(t, dir, []string{alloc.ID}); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if _, err := os.Lstat(link); link == "" || err == nil {
		t.Errorf("the short link %q is still there", link)
	}
}

func credential(uid uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

func open(t *testing.T, dir string) *devcluster.Cluster {
	t.Helper()
	c, err := devcluster.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
