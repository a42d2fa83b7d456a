package jobspecs_test

import (
	"path/filepath"
	"testing"

	"retinue/tests/harness"
)

// With divert_slots the workers' coordinators hand items over to another one, which dispatches them for the same stage, and has all else that is
// said of coordinators but what is of workers.
func TestDivertShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue", "work-queue.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=thumbs", "-var", "volume=shared", "-var", "max_count=5", "-var", "rate=5/s", "-var", "divert_slots=20", "-var", "divert_over=100MiB", "-var", "divert_max_runtime=6h",
		"-var", "dispatch_job=thumb-one", "-var", "to=resized", "-var", `coordinator_env={RETINUE_COORDINATOR_CLASSES="3", RETINUE_COORDINATOR_BATCH="50"}`)
	if job == nil {
		t.Fatal(complaint)
	}
	groups := map[string]map[string]string{}
	for _, group := range job.TaskGroups {
		for _, task := range group.Tasks {
			if task.Name == "coordinator" {
				groups[*group.Name] = task.Env
			}
		}
		if *group.Name == "apart" && (*group.Count != 1 || len(group.Tasks) != 1 || group.Tasks[0].Lifecycle != nil || group.Tasks[0].Identity == nil || len(group.Tasks[0].VolumeMounts) != 1) {
			t.Errorf("the group apart has %d allocations and %d tasks; the first: %+v", *group.Count, len(group.Tasks), group.Tasks[0])
		}
	}
	if *job.TaskGroups[0].Name != "worker" || len(groups) != 2 {
		t.Fatalf("groups with a coordinator: %v", groups)
	}
	const prefix = "RETINUE_COORDINATOR_"
	for group, want := range map[string]map[string]string{
		"worker": {"QUEUE": "thumbs", "STAGE": "", "DIVERT": "thumbs-apart", "DIVERT_OVER": "100MiB", "MAX_RUNTIME": "1h", "RATE": "5/s", "LOAD": "consul:thumbs", "BATCH": "50", "JOB": ""},
		"apart": {"QUEUE": "thumbs-apart", "STAGE": "thumbs", "DIVERT": "", "DIVERT_OVER": "", "MAX_RUNTIME": "6h", "RATE": "", "LOAD": "", "BATCH": "1", "JOB": "thumb-one", "MODE": "dispatch", "SLOTS": "20",
			"OUTSTANDING": "40", "WORK": "/shared/work", "INSTALL": "/shared/bin/retinue", "DRAIN_TIMEOUT": "0s"},
	} {
		for name, value := range want {
			if got := groups[group][prefix+name]; got != value {
				t.Errorf("%s: %s is %q, want %q", group, name, got, value)
			}
		}
	}
	for _, name := range []string{"DONE", "COMMIT", "TO", "CLASSES", "BROKER"} { // of both
		if a, b := groups["worker"][prefix+name], groups["apart"][prefix+name]; a != b || a == "" {
			t.Errorf("%s is %q beside the workers, and %q apart", name, a, b)
		}
	}
}

func TestWrongDivertsAreRefused(t *testing.T) {
	refuses(t, "work-queue", map[string]string{
		"divert_slots=1.5":     "must be a whole number from 0 to 1000",
		"divert_slots=4":       "need a folder that all nodes share",
		"divert_over=large":    "must be a size like 512KiB",
		"divert_over=1GiB":     "needs divert_slots",
		"divert_max_runtime=a": "must be a time like 30m",
	})
	refuses(t, "work-queue", map[string]string{
		"mode=dispatch":             "in mode dispatch there are none",
		"order=message":             "is overtaken by those of its key",
		"coordinator_env={ X = 1 }": "is overtaken by those of its key",
	}, "-var", "divert_slots=4", "-var", "volume=shared", "-var", "order=message")
}
