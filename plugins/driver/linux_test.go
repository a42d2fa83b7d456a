package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEstablishedConnectionsOfAPort(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 0 0 10 -1
   2: 0100007F:1F90 0100007F:D432 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   3: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 0 0 10 -1
`
	if n, err := established(strings.NewReader(table), 8080); err != nil || n != 1 {
		t.Errorf("port 8080: %d, %v; want 1: neither what listens nor what waits nor the other side counts", n, err)
	}
	for _, bad := range []string{"h\nx", "h\n 0: zz:1 0:0 01", "h\n 0: 0100007F:1F9 0:0 01"} {
		if _, err := established(strings.NewReader(bad), 8080); err == nil {
			t.Errorf("%q is no table, and there is no error", bad)
		}
	}
}

// tree makes files with what is in them.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		full := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestControlGroupOfATask(t *testing.T) {
	const id = "0123456789abcdef"
	exec := &task{alloc: "a1b2c3d4-0000", name: "app"}
	docker := &task{alloc: "a1b2c3d4-0000", name: "app", container: id}
	for _, c := range []struct {
		name   string
		task   *task
		groups map[string]string
		proc   map[string]string
		want   string
		v2     bool
	}{
		{"version 1, exec", exec, map[string]string{"freezer/nomad/a1b2c3d4-0000.app/freezer.state": ""}, nil, "freezer/nomad/a1b2c3d4-0000.app", false},
		{"version 1, docker", docker, map[string]string{"freezer/docker/" + id + "/freezer.state": ""}, nil, "freezer/docker/" + id, false},
		{"version 2, exec", exec, nil, map[string]string{"7/cgroup": "0::/nomad.slice/share.slice/a1b2c3d4-0000.app.scope\n"}, "nomad.slice/share.slice/a1b2c3d4-0000.app.scope", true},
		{"version 2, docker with a group below", docker, nil, map[string]string{"7/cgroup": "0::/system.slice/docker-" + id + ".scope/init\n"}, "system.slice/docker-" + id + ".scope", true},
		{"another task", exec, map[string]string{"freezer/nomad/other.app/freezer.state": ""}, map[string]string{"7/cgroup": "0::/x\n"}, "", false},
	} {
		groups := tree(t, c.groups)
		got, err := c.task.findGroup(groups, tree(t, c.proc))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		switch {
		case c.want == "" && got != nil, c.want != "" && (got == nil || got.dir != filepath.Join(groups, c.want) || got.v2 != c.v2):
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestFreezeIsTrueWhenItReturns(t *testing.T) {
	dir := tree(t, map[string]string{"freezer.state": "THAWED\n"})
	g := group{dir, false}
	if err := g.freeze(testContext(t), true); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "freezer.state")); err != nil || !strings.HasPrefix(string(got), "FROZEN") {
		t.Fatalf("%q, %v", got, err)
	}
	none := group{t.TempDir(), true}
	if err := none.freeze(testContext(t), true); !os.IsNotExist(err) {
		t.Fatalf("a group without a freezer: %v", err)
	}
	if left, err := os.ReadDir(none.dir); err != nil || len(left) > 0 {
		t.Fatalf("a file was made where the kernel has none: %v", left)
	}
}
