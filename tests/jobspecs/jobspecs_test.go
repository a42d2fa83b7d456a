// Package jobspecs_test holds the shipped jobspecs against the real Nomad: its
// parser and its formatter, through the program that users have. `nomad job run
// -output` parses exactly as a submission does and needs no agent.
package jobspecs_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func specs(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(harness.RepoRoot(t), "jobspecs", "*", "*.nomad.hcl"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no jobspecs: %v", err)
	}
	return paths
}

// parse returns the job, or what Nomad says against it.
func parse(t *testing.T, spec string, args ...string) (*nomad.Job, string) {
	t.Helper()
	cmd := exec.Command(harness.NomadBinary(t), append(append([]string{"job", "run", "-output"}, args...), spec)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = withoutNomadVars(os.Environ())
	if cmd.Run() != nil {
		return nil, stderr.String()
	}
	var out struct{ Job *nomad.Job }
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	return out.Job, ""
}

// withoutNomadVars keeps a developer's own `retinue dev env` out of the test.
func withoutNomadVars(environ []string) []string {
	var out []string
	for _, kv := range environ {
		if !strings.HasPrefix(kv, "NOMAD_") {
			out = append(out, kv)
		}
	}
	return out
}

func TestFormatted(t *testing.T) {
	for _, spec := range specs(t) {
		files, err := filepath.Glob(filepath.Join(filepath.Dir(spec), "*.hcl"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if out, err := exec.Command(harness.NomadBinary(t), "fmt", "-check", file).CombinedOutput(); err != nil {
				t.Errorf("nomad fmt would change %s: %v\n%s", file, err, out)
			}
		}
	}
}

// Every jobspec parses with no variables, with its example variables, and on
// every driver and network mode; and says what it lacks when a value is wrong.
func TestParses(t *testing.T) {
	for _, spec := range specs(t) {
		name := filepath.Base(filepath.Dir(spec))
		variants := map[string][]string{
			"defaults":     nil,
			"example vars": {"-var-file=" + filepath.Join(filepath.Dir(spec), name+".vars.hcl")},
		}
		for _, driver := range []string{"docker", "exec", "raw_exec"} {
			if name == "work-queue-dispatch" && driver == "exec" { // which it refuses
				continue
			}
			for _, mode := range []string{"bridge", "host"} {
				variants[driver+" "+mode] = []string{"-var", "driver=" + driver, "-var", "network_mode=" + mode}
			}
		}
		for variant, args := range variants {
			t.Run(name+"/"+variant, func(t *testing.T) {
				t.Parallel()
				job, complaint := parse(t, spec, args...)
				if job == nil {
					t.Fatalf("Nomad refuses it:\n%s", complaint)
				}
				for _, group := range job.TaskGroups {
					for _, task := range group.Tasks {
						if driver, _, both := strings.Cut(variant, " "); both && driver != "example" && task.Driver != driver {
							t.Errorf("task %s has the driver %s", task.Name, task.Driver)
						}
						if len(task.Config) == 0 {
							t.Errorf("task %s has no driver configuration", task.Name)
						}
					}
				}
			})
		}
	}
}

func TestWrongValuesAreRefused(t *testing.T) {
	refuses(t, "leader-election", map[string]string{
		"job_name=Not A Name":   "lower-case letters, digits and dashes",
		"count=-1":              "must be a whole number",
		"driver=podman":         "must be docker, exec or raw_exec",
		"network_mode=cni/x":    "must be bridge or host",
		"revocation=never":      "must be safe or fast",
		"elections=[]":          "needs at least one name",
		"no_such_variable=true": "was not found in known variables",
	})
	refuses(t, "scatter-gather", map[string]string{
		"job_name=Not A Name": "lower-case letters, digits and dashes",
		"roots=-1":            "must be a whole number, 0 or more",
		"shards=0":            "must be a whole number, 1 or more",
		"replicas=1.5":        "must be a whole number, 1 or more",
		"driver=podman":       "must be docker, exec or raw_exec",
		"network_mode=cni/x":  "must be bridge or host",
		"merge_format=xml":    "must be ndjson, multipart or batch",
	})
	refuses(t, "scatter-gather-tree", map[string]string{
		"branches=0": "must be a whole number, 1 or more",
		"leaves=x":   "a number is required",
	})
}

func TestWrongQueuesAreRefused(t *testing.T) {
	refuses(t, "work-queue", map[string]string{
		"job_name=Not A Name": "lower-case letters, digits and dashes",
		"count=-1":            "must be a whole number, 0 or more",
		"slots=0":             "must be a whole number, 1 or more",
		"mode=lines":          "must be exec, watch, http or dispatch",
		"commit=rename":       "must be journal, publish or none",
		"volume_type=nfs":     "must be host or csi",
		"max_count=1.5":       "must be a whole number, 0 or more",
		"scalers=0":           "must be a whole number, 1 or more",
		"min_count=3":         "the min_count must not be above the max_count",
		"queue_url=ftp://x":   "must begin with nats://",
		"queue_url=memory:":   "or be a Nomad template",
		"attempts=0":          "must be a whole number, 1 or more",
		"drain_seconds=-1":    "must be a whole number, 0 or more",
		"worker_port=70000":   "must be between 1 and 65535",
		"max_runtime=-5s":     "must be a time like 30s",
		"target_drain=soon":   "must be a time like 30s",
		"keep=7":              "must be a time like 7d",
		"artifacts=/shared":   "must be like s3://BUCKET/PREFIX",
		"broker_disk=-1":      "must be a whole number",
		"brokers=2":           "must be 1 or 3",
		"partitions=65":       "must be a whole number from 0 to 64",
		"partitions=8":        "partitions need order = message",
		"to_partitions=8":     "name it with to",
		`coordinator_env={RETINUE_COORDINATOR_PARTITIONS="8"}`: "by the variables partitions and to_partitions",
		"coordinator_config=output {\n  to_partitions = 8\n}":  "by the variables partitions and to_partitions",
		"coordinator_config=order { partitions = 8 }":          "by the variables partitions and to_partitions",
	})
	refuses(t, "work-queue", map[string]string{
		"queue_url=kafkas://x": "SQS and Kafka have no partitions",
		"order=header:tenant":  "partitions need order = message",
	}, "-var", "partitions=8", "-var", "order=message")
	refuses(t, "work-queue-dispatch", map[string]string{
		"driver=exec":      "must be docker or raw_exec",
		"network_mode=cni": "must be bridge, host or none",
	})
	refuses(t, "work-queue-pipeline", map[string]string{
		"stages=[]":                "must be at least one",
		"commit=none":              "must be journal or publish",
		"max_count={ orc = 3 }":    "there is no stage orc",
		"split=[\"orc\"]":          "there is no stage orc",
		"max_count={ words = -1 }": "must have whole numbers, 0 or more",
		"min_count={ words = 2 }":  "the min_count must not be above the max_count of stage words",
		"gather=[\"top\"]":         "the last stage gathers into nothing",
		"queue_url=memory:":        "must begin with nats://",
		"partitions={ orc = 3 }":   "there is no stage orc",
		"partitions={ top = 65 }":  "must have whole numbers from 0 to 64",
		"to_partitions=8":          "name it with to",
		`coordinator_env={RETINUE_COORDINATOR_TO_PARTITIONS="8"}`:                                                                "not in RETINUE_COORDINATOR_TO_PARTITIONS",
		`coordinator_config={words="order { partitions = 8 }"}`:                                                                  "not in coordinator_config of words",
		`stages=[{name="scaler",count=1,slots=1,image="",command="",args=[]}]`:                                                   "No stage may be called broker or scaler",
		`stages=[{name="a",count=-1,slots=1,image="",command="",args=[]}]`:                                                       "must be a whole number, 0 or more, and its slots 1 or more",
		`stages=[{name="A B",count=1,slots=1,image="",command="",args=[]}]`:                                                      "lower-case letters, digits and dashes",
		`stages=[{name="a",count=1,slots=1,image="",command="",args=[]},{name="a",count=1,slots=1,image="",command="",args=[]}]`: "a name of its own",
	})
	refuses(t, "work-queue-pipeline", map[string]string{"queue_url=sqs://eu-central-1": "SQS and Kafka have no partitions"}, "-var", "partitions={ top = 8 }")
}

// refuses has Nomad refuse each of values, beside others that are right.
func refuses(t *testing.T, pattern string, values map[string]string, others ...string) {
	t.Helper()
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", pattern, pattern+".nomad.hcl")
	for value, complaint := range values {
		job, said := parse(t, spec, append(slices.Clone(others), "-var", value)...)
		if job != nil {
			t.Errorf("%s: %s is accepted", pattern, value)
		} else if !strings.Contains(said, complaint) {
			t.Errorf("%s: %s: the message lacks %q:\n%s", pattern, value, complaint, said)
		}
	}
}

// The promises that the jobspec's README makes about its shape.
func TestLeaderElectionShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "leader-election", "leader-election.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "count=5", "-var", `elections=["a","b"]`, "-var", "job_name=orders", "-var", `app_env={A="1"}`)
	if job == nil {
		t.Fatal(complaint)
	}
	if *job.ID != "orders" || *job.TaskGroups[0].Count != 5 {
		t.Errorf("job %s with %d replicas", *job.ID, *job.TaskGroups[0].Count)
	}
	for _, task := range job.TaskGroups[0].Tasks {
		switch task.Name {
		case "elector":
			// Up before the application, and through its whole life.
			if task.Lifecycle == nil || task.Lifecycle.Hook != "prestart" || !task.Lifecycle.Sidecar {
				t.Errorf("the elector is no prestart sidecar: %+v", task.Lifecycle)
			}
			if task.Env["RETINUE_ELECTOR_ELECTION"] != "a,b" {
				t.Errorf("the elector's elections are %q", task.Env["RETINUE_ELECTOR_ELECTION"])
			}
		case "app":
			// Nomad stops it first, so that leadership is resigned and not left to expire.
			if !task.Leader {
				t.Error("the application is not the group's leader task")
			}
			if task.Env["A"] != "1" || task.Env["RETINUE_ELECTOR_ADDR"] == "" {
				t.Errorf("the application's environment is %v", task.Env)
			}
			if task.Consul != nil {
				t.Error("the application gets a Consul token, which it has no use for")
			}
		}
	}
}

// The promises that the jobspec's README makes about its shape.
func TestScatterGatherShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "scatter-gather", "scatter-gather.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=search", "-var", "shards=3", "-var", "replicas=2", "-var", "roots=2", "-var", "weights=[10,20]",
		"-var", "distinct_hosts=true", "-var", "merge_image=merge:1", "-var", `gather_env={RETINUE_GATHER_PARTIAL="best"}`)
	if job == nil {
		t.Fatal(complaint)
	}
	if len(job.TaskGroups) != 4 || *job.TaskGroups[0].Count != 2 {
		t.Fatalf("%d groups, %d roots", len(job.TaskGroups), *job.TaskGroups[0].Count)
	}
	for _, task := range job.TaskGroups[0].Tasks {
		switch task.Name {
		case "gather":
			// It ends first: the merge is there until the last request.
			if !task.Leader || task.Consul == nil {
				t.Errorf("the root: leader %v, Consul %v", task.Leader, task.Consul)
			}
			if task.Env["RETINUE_GATHER_SHARDS"] != "3" || task.Env["RETINUE_GATHER_SERVICE"] != "search-leaf" || task.Env["RETINUE_GATHER_PARTIAL"] != "best" {
				t.Errorf("the root's environment is %v", task.Env)
			}
		case "merge":
			if task.Lifecycle == nil || task.Lifecycle.Hook != "prestart" || !task.Lifecycle.Sidecar || task.Consul != nil {
				t.Errorf("the merge: %+v, Consul %v", task.Lifecycle, task.Consul)
			}
		default:
			t.Errorf("task %s beside the root", task.Name)
		}
	}
	for i, group := range job.TaskGroups[1:] {
		shard := strconv.Itoa(i)
		service, task := group.Services[0], group.Tasks[0]
		if *group.Count != 2 || len(group.Constraints) != 1 || service.Name != "search-leaf" || service.Meta["shard"] != shard || task.Env["RETINUE_SHARD"] != shard {
			t.Errorf("group %s: %d replicas, service %s %v, environment %v", *group.Name, *group.Count, service.Name, service.Meta, task.Env)
		}
		if want := []string{"10", "20", "1"}[i]; service.Meta["weight"] != want {
			t.Errorf("shard %d weighs %s", i, service.Meta["weight"])
		}
		if task.Consul != nil {
			t.Error("a leaf gets a Consul token, which it has no use for")
		}
	}
	if job, complaint = parse(t, spec, "-var", "leaf_service=others"); job == nil || len(job.TaskGroups) != 1 || len(job.TaskGroups[0].Tasks) != 1 {
		t.Errorf("a root over the leaves of another job, with a built-in merge, is more than a root: %s", complaint)
	}
}

// A tree of ten by ten: every leaf knows its number among all, and its place in its branch.
func TestTreeShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "scatter-gather-tree", "scatter-gather-tree.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "branches=10", "-var", "leaves=10", "-var", "partial=coverage(0.9)")
	if job == nil {
		t.Fatal(complaint)
	}
	if len(job.TaskGroups) != 1+10+100 {
		t.Fatalf("%d groups", len(job.TaskGroups))
	}
	for _, group := range job.TaskGroups {
		service, env := group.Services[0], group.Tasks[0].Env
		switch *group.Name {
		case "root":
			if service.Name != "scatter-gather-tree" || len(service.Meta) != 0 || env["RETINUE_GATHER_SERVICE"] != "scatter-gather-tree-branch" || env["RETINUE_GATHER_PARTIAL"] != "coverage(0.9)" {
				t.Errorf("the root: %s %v %v", service.Name, service.Meta, env)
			}
		case "branch-2":
			if service.Name != "scatter-gather-tree-branch" || service.Meta["shard"] != "2" || env["RETINUE_GATHER_SERVICE"] != "scatter-gather-tree-leaf-2" || env["RETINUE_GATHER_PARTIAL"] != "best" {
				t.Errorf("a branch: %s %v %v", service.Name, service.Meta, env)
			}
		case "leaf-2-3":
			if service.Name != "scatter-gather-tree-leaf-2" || service.Meta["shard"] != "3" || env["RETINUE_SHARD"] != "23" || env["RETINUE_SHARDS"] != "100" {
				t.Errorf("a leaf: %s %v %v", service.Name, service.Meta, env)
			}
		}
	}
}

// In mode dispatch the coordinator is alone: it has a way to Nomad, and no worker beside it.
func TestDispatchShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue", "work-queue.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=films", "-var", "mode=dispatch", "-var", "dispatch_job=films-one", "-var", "volume=shared", "-var", "slots=20")
	if job == nil {
		t.Fatal(complaint)
	}
	if len(job.TaskGroups) != 2 || len(job.TaskGroups[0].Tasks) != 1 {
		t.Fatalf("%d groups, %d tasks in the first", len(job.TaskGroups), len(job.TaskGroups[0].Tasks))
	}
	task := job.TaskGroups[0].Tasks[0]
	if task.Name != "coordinator" || task.Identity == nil || !task.Identity.File || task.Identity.Env || task.Lifecycle != nil || task.Consul == nil {
		t.Errorf("task %s: identity %+v, lifecycle %+v, Consul %v", task.Name, task.Identity, task.Lifecycle, task.Consul)
	}
	for name, want := range map[string]string{"MODE": "dispatch", "JOB": "films-one", "WORK": "/shared/work", "DONE": "/shared/done", "INSTALL": "/shared/bin/retinue", "OUTSTANDING": "80", "DRAIN_TIMEOUT": "0s"} {
		if got := task.Env["RETINUE_COORDINATOR_"+name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if job, _ := parse(t, spec); job.TaskGroups[0].Tasks[0].Identity != nil {
		t.Error("without mode dispatch the coordinator has a way to Nomad")
	}
}

// The promises that the jobspec's README makes about its shape.
func TestWorkQueueShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue", "work-queue.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=thumbs", "-var", "count=3", "-var", "worker_image=magick:7", "-var", "worker_command=magick", "-var", `worker_args=["-","png:-"]`)
	if job == nil {
		t.Fatal(complaint)
	}
	if len(job.TaskGroups) != 2 || *job.TaskGroups[0].Count != 3 || *job.TaskGroups[1].Count != 1 {
		t.Fatalf("%d groups", len(job.TaskGroups))
	}
	for _, task := range job.TaskGroups[0].Tasks {
		switch task.Name {
		case "coordinator":
			// Up before the worker, and stopped before it.
			if task.Lifecycle == nil || task.Lifecycle.Hook != "prestart" || !task.Lifecycle.Sidecar || !task.Leader || task.Consul == nil {
				t.Errorf("the coordinator: %+v, leader %v, Consul %v", task.Lifecycle, task.Leader, task.Consul)
			}
			if task.KillTimeout.Seconds() <= 20 || task.Env["RETINUE_COORDINATOR_DRAIN_TIMEOUT"] != "20s" {
				t.Errorf("killed after %v, drains %s", task.KillTimeout, task.Env["RETINUE_COORDINATOR_DRAIN_TIMEOUT"])
			}
			if task.Env["RETINUE_COORDINATOR_QUEUE"] != "thumbs" || task.Env["RETINUE_COORDINATOR_JOURNAL"] != "consul:thumbs" || task.Env["RETINUE_COORDINATOR_INSTALL"] != "${NOMAD_ALLOC_DIR}/bin/retinue" {
				t.Errorf("the coordinator's environment is %v", task.Env)
			}
		case "worker":
			// It knows neither Consul nor the broker.
			if task.Consul != nil || len(task.Templates) != 0 || task.Env["RETINUE_COORDINATOR_BROKER"] != "" {
				t.Errorf("the worker: Consul %v, %d templates, %v", task.Consul, len(task.Templates), task.Env)
			}
			if got, _ := json.Marshal(task.Config); string(got) != `{"args":["worker","--","magick","-","png:-"],"entrypoint":["${NOMAD_ALLOC_DIR}/bin/retinue"],"image":"magick:7","network_mode":""}` {
				t.Errorf("the worker runs %s", got)
			}
		}
	}
	disk := job.TaskGroups[1].EphemeralDisk
	if broker := job.TaskGroups[1].Tasks[0]; !*disk.Sticky || !*disk.Migrate || broker.Consul != nil || job.TaskGroups[1].Services[0].Name != "thumbs-broker" {
		t.Errorf("the broker: disk %+v, Consul %v", disk, broker.Consul)
	}
	for _, group := range job.TaskGroups { // the password is nowhere but in the variable
		for _, task := range group.Tasks {
			for _, template := range task.Templates {
				if !strings.Contains(*template.EmbeddedTmpl, `nomadVar "nomad/jobs/thumbs"`) || *template.Perms != "600" {
					t.Errorf("%s has the template %s, mode %s", task.Name, *template.EmbeddedTmpl, *template.Perms)
				}
			}
		}
	}
	job, complaint = parse(t, spec, "-var", "queue_url=redis://redis:6379", "-var", "volume=shared", "-var", "mode=http", "-var", "worker_image=resize:1")
	if job == nil {
		t.Fatal(complaint)
	}
	env := job.TaskGroups[0].Tasks[0].Env
	if len(job.TaskGroups) != 1 || env["RETINUE_COORDINATOR_COMMIT"] != "rename" || env["RETINUE_COORDINATOR_DONE"] != "/shared/done" || env["RETINUE_COORDINATOR_URL"] != "http://127.0.0.1:9000/" {
		t.Errorf("%d groups with another broker, a volume and HTTP: %v", len(job.TaskGroups), env)
	}
}

// A queue that scales itself: a scaler with an identity, beside the queue and not beside the workers, and no deployments.
func TestScalingQueueShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue", "work-queue.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=thumbs", "-var", "count=0", "-var", "max_count=8", "-var", "slots=2", "-var", "drain_seconds=7")
	if job == nil {
		t.Fatal(complaint)
	}
	if *job.Update.MaxParallel != 0 || len(job.TaskGroups) != 3 || *job.TaskGroups[0].Count != 0 || *job.TaskGroups[1].Name != "scaler" || *job.TaskGroups[1].Count != 1 {
		t.Fatalf("max_parallel %d, %d groups", *job.Update.MaxParallel, len(job.TaskGroups))
	}
	if env := job.TaskGroups[0].Tasks[0].Env; env["RETINUE_COORDINATOR_LOAD"] != "consul:thumbs" {
		t.Errorf("the coordinator's environment is %v", env)
	}
	scaler := job.TaskGroups[1].Tasks[0]
	if scaler.Identity == nil || !scaler.Identity.File || scaler.Consul == nil || len(scaler.Actions) != 1 {
		t.Errorf("the scaler: identity %+v, Consul %v, actions %v", scaler.Identity, scaler.Consul, scaler.Actions)
	}
	for name, want := range map[string]string{"QUEUE": "thumbs", "JOB": "thumbs", "GROUP": "worker", "SLOTS": "2", "MIN": "0", "MAX": "8", "TARGET": "60s", "DRAIN": "7s"} {
		if got := scaler.Env["RETINUE_SCALER_"+name]; got != want {
			t.Errorf("RETINUE_SCALER_%s is %q", name, got)
		}
	}
	if job, complaint = parse(t, spec); job == nil || *job.Update.MaxParallel != 1 || len(job.TaskGroups) != 2 {
		t.Errorf("a queue that does not scale itself: %s", complaint)
	}
}

// Each stage publishes to the next one's queue, and all share broker and journal.
func TestPipelineShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue-pipeline", "work-queue-pipeline.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=p", "-var", "to=results")
	if job == nil {
		t.Fatal(complaint)
	}
	var chain []string
	for _, group := range job.TaskGroups {
		if *group.Name == "broker" {
			continue
		}
		env := group.Tasks[0].Env
		chain = append(chain, *group.Name+": "+env["RETINUE_COORDINATOR_QUEUE"]+" -> "+env["RETINUE_COORDINATOR_TO"]+" "+env["RETINUE_COORDINATOR_JOURNAL"])
	}
	if got := strings.Join(chain, ", "); got != "words: p-words -> p-count consul:p, count: p-count -> p-top consul:p, top: p-top -> results consul:p" {
		t.Errorf("%s", got)
	}
}

// A pipeline whose stages scale themselves, where they are told to: one scaler for them, with an identity, and no deployments.
func TestScalingPipelineShape(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue-pipeline", "work-queue-pipeline.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=p", "-var", "max_count={ words = 8, top = 2 }", "-var", "min_count={ top = 2 }", "-var", "drain_seconds=7")
	if job == nil {
		t.Fatal(complaint)
	}
	counts := map[string]int{}
	for _, group := range job.TaskGroups {
		counts[*group.Name] = *group.Count
		load, scales := group.Tasks[0].Env["RETINUE_COORDINATOR_LOAD"], map[string]string{"words": "consul:p", "top": "consul:p"}[*group.Name]
		if load != scales {
			t.Errorf("the coordinator of %s reports to %q, not to %q", *group.Name, load, scales)
		}
		if *group.Name != "scaler" {
			continue
		}
		scaler := group.Tasks[0]
		if len(group.Tasks) != 1 || scaler.Name != "scaler" || scaler.Identity == nil || !scaler.Identity.File || scaler.Consul == nil {
			t.Errorf("the scaler: identity %+v, Consul %v", scaler.Identity, scaler.Consul)
		}
		for name, want := range map[string]string{"SCALER_QUEUE": "p-words,p-top", "SCALER_GROUP": "words,top", "SCALER_SLOTS": "4,4", "SCALER_MIN": "0,2", "SCALER_MAX": "8,2", "SCALER_DRAIN": "7s",
			"SCALER_JOB": "p", "COORDINATOR_ADDR": "unix://${NOMAD_ALLOC_DIR}/tmp/scaler.sock"} {
			if got := scaler.Env["RETINUE_"+name]; got != want {
				t.Errorf("RETINUE_%s is %q, not %q", name, got, want)
			}
		}
	}
	if got := fmt.Sprint(counts); *job.Update.MaxParallel != 0 || got != "map[broker:1 count:1 scaler:1 top:2 words:1]" {
		t.Errorf("max_parallel %d, %s", *job.Update.MaxParallel, got)
	}
	// Items must not go past the first stage: there is a worker of it where it does not scale.
	job, complaint = parse(t, spec, "-var", "max_count={ top = 2 }")
	if job == nil {
		t.Fatal(complaint)
	}
	for _, group := range job.TaskGroups {
		if addr := group.Tasks[0].Env["RETINUE_COORDINATOR_ADDR"]; addr != "" {
			t.Errorf("items that are put into %s go into another stage than the first", *group.Name)
		}
	}
}

// All that speak to a queue with partitions count the same: its coordinators, the stage before, the scaler. And the coordinators have a place to
// agree on who takes which.
func TestPartitionsAreKnownToAll(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue", "work-queue.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=orders", "-var", "max_count=3", "-var", "order=message", "-var", "partitions=12", "-var", "to=bills", "-var", "to_partitions=6")
	if job == nil {
		t.Fatal(complaint)
	}
	env, scaler := job.TaskGroups[0].Tasks[0].Env, job.TaskGroups[1].Tasks[0].Env
	for name, want := range map[string]string{"ORDER": "message", "PARTITIONS": "12", "TO": "bills", "TO_PARTITIONS": "6", "LOAD": "consul:orders"} {
		if got := env["RETINUE_COORDINATOR_"+name]; got != want {
			t.Errorf("RETINUE_COORDINATOR_%s is %q, not %q", name, got, want)
		}
	}
	if got := scaler["RETINUE_SCALER_PARTITIONS"]; got != "12" {
		t.Errorf("the scaler counts %q partitions", got)
	}
	if job, complaint = parse(t, spec, "-var", "order=message", "-var", "partitions=12"); job == nil || job.TaskGroups[0].Tasks[0].Env["RETINUE_COORDINATOR_LOAD"] != "consul:work-queue" {
		t.Errorf("coordinators of a queue that does not scale itself cannot agree: %s", complaint)
	}

	spec = filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue-pipeline", "work-queue-pipeline.nomad.hcl")
	for _, test := range []struct{ gather, want string }{
		{`[]`, "words:  0 4 , count: message 4 12 consul:p, top: message 12 6 consul:p"},
		{`["count"]`, "words:  0 4 , count: message 4 0 consul:p, top: message 12 6 consul:p"}, // what is gathered has no key
	} {
		job, complaint = parse(t, spec, "-var", "job_name=p", "-var", "partitions={ count = 4, top = 12 }", "-var", "to=results", "-var", "to_partitions=6", "-var", "gather="+test.gather)
		if job == nil {
			t.Fatal(complaint)
		}
		var stages []string
		for _, group := range job.TaskGroups[:3] {
			env := group.Tasks[0].Env
			stages = append(stages, fmt.Sprintf("%s: %s %s %s %s", *group.Name, env["RETINUE_COORDINATOR_ORDER"], env["RETINUE_COORDINATOR_PARTITIONS"], env["RETINUE_COORDINATOR_TO_PARTITIONS"], env["RETINUE_COORDINATOR_LOAD"]))
		}
		if got := strings.Join(stages, ", "); got != test.want {
			t.Errorf("%s, not %s", got, test.want)
		}
	}
	job, complaint = parse(t, spec, "-var", "job_name=p", "-var", "partitions={ count = 4, top = 12 }", "-var", "max_count={ words = 8, top = 2 }")
	if job == nil {
		t.Fatal(complaint)
	}
	for _, group := range job.TaskGroups {
		if env := group.Tasks[0].Env; *group.Name == "scaler" && env["RETINUE_SCALER_QUEUE"]+" "+env["RETINUE_SCALER_PARTITIONS"] != "p-words,p-top 0,12" {
			t.Errorf("the scaler: %v", env)
		}
	}
}

// What a coordinator can do reaches it, as a variable of its own, and secrets come from the Nomad variable alone.
func TestQueueSettingsReachTheCoordinator(t *testing.T) {
	spec := filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue", "work-queue.nomad.hcl")
	job, complaint := parse(t, spec, "-var", "job_name=cuts", "-var", "max_count=3", "-var", "queue_url=sqs://eu-central-1", "-var", "keep=7d", "-var", "split=true", "-var", "gather=albums", "-var", "to=parts",
		"-var", `allow=["s3://in/a","/shared/in"]`, "-var", "artifacts=s3://out/b", "-var", "aws_credentials=true", "-var", "coordinator_config=schedule \"nightly\" { cron = \"30 3 * * *\" }")
	if job == nil {
		t.Fatal(complaint)
	}
	coordinator, scaler := job.TaskGroups[0].Tasks[0], job.TaskGroups[1].Tasks[0]
	for name, want := range map[string]string{"KEEP": "7d", "SPLIT": "true", "GATHER": "albums", "TO": "parts", "ALLOW": "s3://in/a,/shared/in", "ARTIFACTS": "s3://out/b", "CONFIG": "${NOMAD_SECRETS_DIR}/queue.hcl"} {
		if got := coordinator.Env["RETINUE_COORDINATOR_"+name]; got != want {
			t.Errorf("RETINUE_COORDINATOR_%s is %q, not %q", name, got, want)
		}
	}
	const key = `{{ with nomadVar "nomad/jobs/cuts" }}[default]` + "\n" + `aws_access_key_id = {{ .aws_access_key_id }}` + "\n" + `aws_secret_access_key = {{ .aws_secret_access_key }}`
	for _, task := range []*nomad.Task{coordinator, scaler} {
		found := map[string]string{}
		for _, template := range task.Templates {
			if *template.Perms != "600" {
				t.Errorf("%s has the template %s with mode %s", task.Name, *template.DestPath, *template.Perms)
			}
			found[*template.DestPath] = *template.EmbeddedTmpl
		}
		if !strings.HasPrefix(found["secrets/aws-credentials"], key) || task.Env["AWS_SHARED_CREDENTIALS_FILE"] != "${NOMAD_SECRETS_DIR}/aws-credentials" {
			t.Errorf("%s finds its key in %q: %q", task.Name, task.Env["AWS_SHARED_CREDENTIALS_FILE"], found["secrets/aws-credentials"])
		}
		if config := found["secrets/queue.hcl"]; (config == "work_queue \"cuts\" {\nschedule \"nightly\" { cron = \"30 3 * * *\" }\n}\n") != (task == coordinator) {
			t.Errorf("%s has the configuration %q", task.Name, config)
		}
	}
	if job, complaint = parse(t, spec); job == nil || job.TaskGroups[0].Tasks[0].Env["AWS_SHARED_CREDENTIALS_FILE"] != "" || len(job.TaskGroups[0].Tasks[0].Templates) != 1 {
		t.Errorf("a queue that needs none of it: %s", complaint)
	}

	spec = filepath.Join(harness.RepoRoot(t), "jobspecs", "work-queue-pipeline", "work-queue-pipeline.nomad.hcl")
	job, complaint = parse(t, spec, "-var", "job_name=p", "-var", `split=["words"]`, "-var", `gather=["count"]`, "-var", `coordinator_config={ words = "retry { crash_attempts = 9 }" }`, "-var", "artifacts=s3://out/b", "-var", "keep=36h", "-var", "aws_credentials=true")
	if job == nil {
		t.Fatal(complaint)
	}
	for _, group := range job.TaskGroups[:3] {
		env := group.Tasks[0].Env
		got := strings.Join([]string{env["RETINUE_COORDINATOR_TO"], env["RETINUE_COORDINATOR_SPLIT"], env["RETINUE_COORDINATOR_GATHER"], env["RETINUE_COORDINATOR_CONFIG"]}, " ")
		want := map[string]string{"words": "p-count true  ${NOMAD_SECRETS_DIR}/queue.hcl", "count": "  p-top ", "top": "   "}[*group.Name]
		if got != want || env["RETINUE_COORDINATOR_ALLOW"] != "s3://out/b" || env["RETINUE_COORDINATOR_KEEP"] != "36h" || env["AWS_SHARED_CREDENTIALS_FILE"] == "" {
			t.Errorf("stage %s: %q, not %q: %v", *group.Name, got, want, env)
		}
	}
}
