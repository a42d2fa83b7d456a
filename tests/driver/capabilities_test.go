package driver_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

// volume makes a folder of client-1 a volume of it, with one file that has the given text, and returns the volume's name.
func (w *world) volume(t *testing.T, text string) string {
	t.Helper()
	dir := harness.Dir(t, "volume")
	if err := os.WriteFile(filepath.Join(dir, "word"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	nodes, _, err := w.Nomad.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		if node.Name != "client-1" {
			continue
		}
		// A name that two tests have registered is no volume of either.
		name := filepath.Base(dir)
		resp, _, err := w.Nomad.HostVolumes().Register(&nomad.HostVolumeRegisterRequest{Volume: &nomad.HostVolume{
			Namespace: "default", Name: name, NodeID: node.ID, HostPath: dir,
			RequestedCapabilities: []*nomad.HostVolumeCapability{{AttachmentMode: nomad.HostVolumeAttachmentModeFilesystem, AccessMode: nomad.HostVolumeAccessModeSingleNodeMultiWriter}},
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			harness.Eventually(t, 60*time.Second, "the volume is given back", func(context.Context) error { // nobody may claim it
				_, _, err := w.Nomad.HostVolumes().Delete(&nomad.HostVolumeDeleteRequest{ID: resp.Volume.ID}, nil)
				return err
			})
		})
		return name
	}
	t.Fatal("no client-1")
	return ""
}

// mounting is a job whose task mounts a volume.
func (w *world) mounting(id, driver, volume string) *nomad.Job {
	job := w.job(id, driver, nil)
	group := job.TaskGroups[0]
	group.Volumes = map[string]*nomad.VolumeRequest{"v": {
		Name: "v", Type: "host", Source: volume,
		AttachmentMode: string(nomad.HostVolumeAttachmentModeFilesystem), AccessMode: string(nomad.HostVolumeAccessModeSingleNodeMultiWriter),
	}}
	group.Tasks[0].VolumeMounts = []*nomad.VolumeMount{{Volume: new("v"), Destination: new("/volume")}}
	return job
}

// noVolumes is what an agent says of a driver that mounts none.
const noVolumes = `task driver "raw_exec" for "app" does not support host volumes`

// B12 and B14: one agent has three registrations of the plugin, and each has the capabilities of its own driver: what exec and
// docker mount raw_exec refuses, and each has its own view of files.
func TestCapabilitiesOfEachDriver(t *testing.T) {
	w := need(t)
	const word = "from the volume"
	volume := w.volume(t, word)
	w.refused(t, w.mounting("mounts-raw-exec", devcluster.DriverRawExec, volume), noVolumes)
	for _, driver := range []string{devcluster.DriverExec, devcluster.DriverDocker} {
		a := w.run(t, w.mounting("mounts-"+driver, driver, volume))
		if a.node != "client-1" {
			t.Errorf("it runs on %s", a.node)
		}
		a.ask(t, "GET", "/count")
		if out := a.exec(t, a.program(driver), "cat", "/volume/word"); strings.TrimSpace(out) != word {
			t.Errorf("%s reads %q in the volume", driver, out)
		}
	}
	// The file system that a task of each sees: that of its node, its chroot, its image.
	for driver, views := range map[string][2]bool{devcluster.DriverRawExec: {true, true}, devcluster.DriverExec: {false, true}, devcluster.DriverDocker: {false, false}} {
		job := w.job("view-"+driver, driver, nil)
		job.Constrain(nomad.NewConstraint("${node.unique.name}", "=", "client-1"))
		a := w.run(t, job)
		a.ask(t, "GET", "/count")
		for i, file := range []string{filepath.Join(w.Dir(), "state.json"), "/bin/ls"} { // the host's alone, and what chroot_env gives
			code, err := w.Nomad.Allocations().Exec(t.Context(), a.info(t), "app", false, []string{a.program(driver), "cat", file}, strings.NewReader(""), new(strings.Builder), new(strings.Builder), nil, nil)
			if err != nil || (code == 0) != views[i] {
				t.Errorf("%s: %s is there: %t (%v), want %t", driver, file, code == 0, err, views[i])
			}
		}
	}
}

// TestWithoutThePlugin plays on a client whose drivers are those of the agent itself: what it refuses is what the plugin refuses,
// and `retinue init` runs the hooks from inside the container, as its process 1.
func TestWithoutThePlugin(t *testing.T) {
	w := need(t)
	w.dress(t).stop(t, false)

	w.refused(t, w.mounting("mounts-built-in", devcluster.DriverRawExec, w.volume(t, "")), noVolumes)

	initJob := func(id string, args ...string) *nomad.Job {
		job := w.job(id, devcluster.DriverDocker, nil)
		job.Constrain(nomad.NewConstraint("${node.unique.name}", "=", "client-1"))
		task := job.TaskGroups[0].Tasks[0]
		task.KillTimeout = new(20 * time.Second)
		task.SetConfig("entrypoint", []string{"/usr/local/bin/retinue", "init", "--kill-timeout", "20s", "--"}).SetConfig("args", args)
		task.Meta = map[string]string{
			"retinue_lifecycle_post_start_exec": `["/local/counter", "note", "post_start"]`,
			"retinue_lifecycle_pre_drain_http":  "POST /retinue/v1/pre-drain",
			"retinue_lifecycle_save_state_http": "GET /retinue/v1/state",
			"retinue_lifecycle_pre_stop_exec":   `["/local/counter", "note", "pre_stop"]`,
		}
		return job
	}
	a := w.run(t, initJob("init"))
	a.ask(t, "POST", "/inc")
	if pid := a.pid(t); pid == 1 {
		t.Error("the application is process 1, not retinue init")
	}
	if answer := a.askSocket(t, "retinue-app.api.sock", "GET", "/v1/task"); !strings.Contains(answer, `"phase":"running"`) || !strings.Contains(answer, "pre_stop") {
		t.Errorf("the management API answers %s", answer)
	}
	if _, _, err := w.Nomad.Jobs().Deregister("init", false, nil); err != nil {
		t.Fatal(err)
	}
	a.stopped(t)
	const want = `started
exec post_start as post_start
http pre-drain as pre_drain
save_state 1
exec pre_stop as pre_stop
signal terminated`
	if got := inOrder(a.history(t)); got != want {
		t.Errorf("history:\n%s\nwant:\n%s", got, want)
	}
	if got := a.exitCode(t); got != 0 {
		t.Errorf("exit code %d after a stop in order", got)
	}

	job := initJob("init-exits", "exit", "7")
	job.TaskGroups[0].Tasks[0].Meta = nil
	job.TaskGroups[0].ReschedulePolicy = &nomad.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)}
	w.refused(t, job, "Exit Code: 7")
}

// exitCode is that of the task's last end.
func (a *alloc) exitCode(t *testing.T) int {
	t.Helper()
	code := -1
	for _, e := range a.info(t).TaskStates["app"].Events {
		if e.Type == nomad.TaskTerminated {
			code = e.ExitCode
		}
	}
	return code
}
