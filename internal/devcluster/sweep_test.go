package devcluster

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"retinue/internal/devcluster/procfs"
)

// rules is what `iptables -t nat -S` shows with two allocations of ours (in
// 10.200.1 and 10.200.2) and one of another cluster (10.201.1).
const natRules = `-P PREROUTING ACCEPT
-P POSTROUTING ACCEPT
-N CNI-DN-ae0a01649f0d9ef677455
-N CNI-DN-91beb95942bf7ac2d87ec
-N CNI-HOSTPORT-DNAT
-N CNI-HOSTPORT-MASQ
-N CNI-HOSTPORT-SETMARK
-N CNI-ae0a01649f0d9ef6774556a6
-N CNI-91beb95942bf7ac2d87ecc3e
-N DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.200.1.2/32 -m comment --comment "name: \"nomad\" id: \"2f8e3e61\"" -j CNI-ae0a01649f0d9ef6774556a6
-A POSTROUTING -s 10.201.1.2/32 -m comment --comment "name: \"nomad\" id: \"4d761cfa\"" -j CNI-91beb95942bf7ac2d87ecc3e
-A CNI-DN-ae0a01649f0d9ef677455 -s 10.200.1.0/24 -p tcp -m tcp --dport 20150 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-ae0a01649f0d9ef677455 -p tcp -m tcp --dport 20150 -j DNAT --to-destination 10.200.1.2:8080
-A CNI-DN-91beb95942bf7ac2d87ec -s 10.201.1.0/24 -p tcp -m tcp --dport 21088 -j CNI-HOSTPORT-SETMARK
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"nomad\" id: \"2f8e3e61\"" -m multiport --dports 20150 -j CNI-DN-ae0a01649f0d9ef677455
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"nomad\" id: \"4d761cfa\"" -m multiport --dports 21088 -j CNI-DN-91beb95942bf7ac2d87ec
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
-A CNI-ae0a01649f0d9ef6774556a6 -d 10.200.1.0/24 -m comment --comment "name: \"nomad\" id: \"2f8e3e61\"" -j ACCEPT
-A CNI-91beb95942bf7ac2d87ecc3e -d 10.201.1.0/24 -m comment --comment "name: \"nomad\" id: \"4d761cfa\"" -j ACCEPT
`

const filterRules = `-P FORWARD DROP
-N CNI-FORWARD
-N NOMAD-ADMIN
-N DOCKER-USER
-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-A FORWARD -j DOCKER-USER
-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j NOMAD-ADMIN
-A CNI-FORWARD -d 10.200.1.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.200.1.2/32 -j ACCEPT
-A NOMAD-ADMIN -d 10.200.1.0/24 -o retinue0-1 -j ACCEPT
`

func commands(all [][]string) string {
	var lines []string
	for _, c := range all {
		lines = append(lines, strings.Join(c, " "))
	}
	return strings.Join(lines, "\n") + "\n"
}

func TestRulesBesideAnotherCluster(t *testing.T) {
	got := commands(rulesToRemove(natRules, []string{"10.200.1.", "10.200.2."}, []string{"retinue0-1"}))
	golden(t, "nat-rules.txt", []byte(got))
	for _, foreign := range []string{"10.201.1.", "4d761cfa", "91beb959", "172.17", "-X CNI-HOSTPORT", "-F CNI-HOSTPORT", "-j DOCKER"} {
		if strings.Contains(got, foreign) {
			t.Errorf("%s is not ours:\n%s", foreign, got)
		}
	}
}

func TestRulesOfTheLastCluster(t *testing.T) {
	got := commands(rulesToRemove(filterRules, []string{"10.200.1."}, []string{"retinue0-1"}))
	golden(t, "filter-rules.txt", []byte(got))
	if strings.Contains(got, "DOCKER") {
		t.Errorf("Docker's rules are not ours:\n%s", got)
	}
	// A subnet that only begins alike is another one.
	if got := rulesToRemove(filterRules, []string{"10.200.12."}, nil); len(got) != 0 {
		t.Errorf("nothing of 10.200.12 is there: %q", got)
	}
}

func TestSplitRule(t *testing.T) {
	got := splitRule(`-A X -m comment --comment "name: \"nomad\" id: \"a b\"" -j Y`)
	want := []string{"-A", "X", "-m", "comment", "--comment", `name: "nomad" id: "a b"`, "-j", "Y"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := splitRule(`-A X --comment ""`); !slices.Equal(got, []string{"-A", "X", "--comment", ""}) {
		t.Errorf("%q", got)
	}
}

func TestMountsUnder(t *testing.T) {
	const info = `22 1 0:20 / /proc rw shared:1 - proc proc rw
30 1 254:0 / /tmp/d/c1/x/secrets rw - tmpfs tmpfs rw
31 1 254:0 / /tmp/d2/c1 rw - tmpfs tmpfs rw
32 30 254:0 / /tmp/d/c1/with\040space rw - tmpfs tmpfs rw
short line
`
	got := mountsUnder(info, "/tmp/d")
	if want := []string{"/tmp/d/c1/x/secrets", "/tmp/d/c1/with space"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestParseRoutes(t *testing.T) {
	const table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
		"eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" +
		"docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n" +
		"retinue0-1\t0001C80A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
	var got []string
	for _, p := range parseRoutes(table) {
		got = append(got, p.String())
	}
	if want := []string{"0.0.0.0/0", "172.17.0.0/16", "10.200.1.0/24"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAgentDirOf(t *testing.T) {
	for line, want := range map[string]string{
		"/x/nomad agent -config=/tmp/d/agents/nomad-client-1/config.hcl":         "/tmp/d",
		"/x/consul agent -config-file=/tmp/d/agents/consul-server-1/config.json": "/tmp/d",
		"/x/consul agent -config=/tmp/d/agents/consul-server-1/config.json":      "",
		"nomad agent -dev": "",
		"nomad agent -config=/etc/nomad.d/config.hcl": "",
		"nomad agent -config=agents/x/config.hcl":     "",
		"tail -f /tmp/d/agents/x/config.hcl":          "",
		"vi agent -config=/tmp/d/agents/x/config.hcl": "",
		"":                   "",
		"nomad agent":        "",
		"nomad job run x y ": "",
	} {
		if got := agentDirOf(strings.Fields(line)); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// TestBelongs goes through what can tell a process of a cluster from others.
func TestBelongs(t *testing.T) {
	const dir, alloc = "/tmp/d", "2f8e3e61-3b8d-e914-35f3-146dfafcec12"
	root := t.TempDir()
	cases := []struct {
		cmdline, environ, cgroup string
		want                     bool
	}{
		{"nomad\x00agent\x00-config=/tmp/d/agents/nomad-client-1/config.hcl", "", "", true},
		{"nomad\x00logmon", "PATH=/bin\x00" + markerEnv + "=/tmp/d", "", true},
		{"nomad\x00logmon", markerEnv + "=/tmp/d2", "", false},
		{"app", "NOMAD_ALLOC_ID=" + alloc, "", true},
		{"app", "NOMAD_ALLOC_ID=00000000-3b8d-e914-35f3-146dfafcec12", "", false},
		{"app", "NOMAD_ALLOC_DIR=/tmp/d/c1/" + alloc + "/alloc", "", true},
		{"app", "NOMAD_ALLOC_DIR=" + shortLink(dir) + "/c1/x/alloc", "", true},
		{"app", "", "4:cpuset:/nomad/" + alloc + ".main\n", true},
		{"tail\x00-f\x00/tmp/d/log/nomad-client-1.log", "PWD=/tmp/d", "0::/user.slice\n", false},
		{"bash", "OLDPWD=/tmp/d/c1", "", false},
	}
	for i, c := range cases {
		pid := 100 + i
		for name, text := range map[string]string{"cmdline": c.cmdline, "environ": c.environ, "cgroup": c.cgroup} {
			file := filepath.Join(root, strconv.Itoa(pid), name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := belongs(procfs.New(root), pid, dir, []string{alloc}); got != c.want {
			t.Errorf("%q %q %q: %v, want %v", c.cmdline, c.environ, c.cgroup, got, c.want)
		}
	}
}

func TestAllocsOf(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"c1/2f8e3e61-3b8d-e914-35f3-146dfafcec12", "c2/939218e0-aafe-5286-460b-bfb38cd5bead", "c1/other", "log/2f8e3e61-0000-e914-35f3-146dfafcec12"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got := allocsOf(dir)
	slices.Sort(got)
	if want := []string{"2f8e3e61-3b8d-e914-35f3-146dfafcec12", "939218e0-aafe-5286-460b-bfb38cd5bead"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestForeignFolder keeps `down --dir $HOME` from removing a home.
func TestForeignFolder(t *testing.T) {
	dir := t.TempDir()
	if err := checkFolder(dir); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
	for _, name := range []string{"lock", "state.json", ".tmp-123", "log", "c9"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkFolder(dir); err != nil {
		t.Errorf("the remains of a cluster: %v", err)
	}
	precious := filepath.Join(dir, "thesis.tex")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func() error{
		"up":   func() error { _, err := Up(t.Context(), Config{Dir: dir}, nil); return err },
		"down": func() error { return Down(t.Context(), dir, nil) },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !exists(precious) {
		t.Error("the thesis is gone")
	}
}

func TestFrozenTasksAreThawed(t *testing.T) {
	root := t.TempDir()
	const mine, other = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
	states := map[string]string{mine: "THAWED", other: "FROZEN"}
	file := func(id string) string { return filepath.Join(root, "freezer", "nomad", id+".app", "freezer.state") }
	for id := range states {
		if err := os.MkdirAll(filepath.Dir(file(id)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file(id), []byte("FROZEN"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	thaw(root, []string{mine})
	for id, want := range states {
		if got, err := os.ReadFile(file(id)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %s", id, got, err, want)
		}
	}
}
