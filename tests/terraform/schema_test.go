// Package terraform_test runs the Terraform modules with the real terraform
// program. The providers are stand-ins served by the test itself, because the
// official ones cannot be fetched everywhere.
package terraform_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"retinue/tests/harness"
	"retinue/tests/terraform/generate/module"
)

func TestMain(m *testing.M) {
	// The providers' framework traces every call unless told otherwise.
	os.Setenv("TF_LOG_SDK", "off")
	os.Setenv("TF_LOG_SDK_PROTO", "off")
	os.Setenv("TF_LOG_SDK_FRAMEWORK", "off")
	harness.Main(m)
}

// What is generated from the jobspec is what the generator makes of it now.
// `make generate` repairs a failure.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	files, err := module.Generate(harness.RepoRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 4 {
		t.Fatalf("the generator makes only %d files", len(files))
	}
	for path, want := range files {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s is out of date: run `make generate`", path)
		}
	}
}

// A variable that the module does not hand to the jobspec would be ignored in silence.
func TestEveryJobspecVariableIsPassed(t *testing.T) {
	root := harness.RepoRoot(t)
	names, err := module.Patterns(root)
	if err != nil || len(names) == 0 {
		t.Fatalf("no modules: %v", err)
	}
	declared := regexp.MustCompile(`(?m)^variable "([a-z0-9_]+)"`)
	for _, name := range names {
		jobspec := read(t, filepath.Join(root, "jobspecs", name, name+".nomad.hcl"))
		main := read(t, filepath.Join(root, "terraform", "modules", name, "main.tf"))
		for _, match := range declared.FindAllStringSubmatch(jobspec, -1) {
			if !regexp.MustCompile(`(?m)^ +` + match[1] + ` += (jsonencode\()?var\.`).MatchString(main) {
				t.Errorf("module %s does not pass the variable %s", name, match[1])
			}
		}
	}
}

// Modules have the standard structure, and say what their variables and outputs are.
func TestModuleStructure(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(harness.RepoRoot(t), "terraform", "*", "*"))
	if err != nil || len(dirs) < 3 {
		t.Fatalf("found %d modules and examples: %v", len(dirs), err)
	}
	block := regexp.MustCompile(`(?ms)^(variable|output) "([^"]+)" \{\n(.*?)^\}`)
	for _, dir := range dirs {
		files := []string{"main.tf", "variables.tf", "outputs.tf", "README.md"}
		if filepath.Base(filepath.Dir(dir)) == "modules" {
			files = append(files, "versions.tf")
		}
		for _, file := range files {
			text := read(t, filepath.Join(dir, file))
			for _, match := range block.FindAllStringSubmatch(text, -1) {
				if !regexp.MustCompile(`(?m)^  description += ".+"`).MatchString(match[3]) {
					t.Errorf("%s: %s %s has no description", filepath.Join(dir, file), match[1], match[2])
				}
			}
			if strings.Contains(text, "templatefile(") {
				t.Errorf("%s: templatefile() and the jobspec's own ${} do not mix; use hcl2.vars", file)
			}
		}
	}
}

func TestFormat(t *testing.T) {
	tf := newTerraform(t, "")
	tf.dir = filepath.Join(harness.RepoRoot(t), "terraform")
	tf.run("fmt", "-check", "-diff", "-recursive")
}

func TestValidate(t *testing.T) {
	for _, dir := range []string{"modules/leader-election", "modules/scatter-gather", "modules/scatter-gather-tree", "modules/consul-acl", "examples/leader-election", "examples/scatter-gather"} {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			tf := newTerraform(t, dir)
			tf.run("init")
			tf.run("validate")
		})
	}
}

// The stand-in is no rubber stamp: what is not in its schema is an error.
func TestUnknownAttributeIsAnError(t *testing.T) {
	tf := newTerraform(t, "modules/leader-election")
	main := filepath.Join(tf.dir, "main.tf")
	text := strings.Replace(read(t, main), "  detach ", "  detatch = true\n  detach ", 1)
	if err := os.WriteFile(main, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	tf.run("init")
	tf.fails("Unsupported argument", "validate")
}

// Wrong values are refused by the plan, with a sentence that says what is right.
func TestWrongValues(t *testing.T) {
	election := newTerraform(t, "modules/leader-election")
	election.run("init")
	acl := newTerraform(t, "modules/consul-acl")
	acl.run("init")
	search, tree := newTerraform(t, "modules/scatter-gather"), newTerraform(t, "modules/scatter-gather-tree")
	search.run("init")
	queue, stages := newTerraform(t, "modules/work-queue"), newTerraform(t, "modules/work-queue-pipeline")
	queue.run("init")
	stages.run("init")
	tree.run("init")
	for _, test := range []struct {
		tf        *terraform
		vars      []string
		complaint string
	}{
		{election, []string{"job_name=Not A Name"}, "lower-case letters, digits and dashes"},
		{election, []string{"replicas=-1"}, "must be a whole number"},
		{election, []string{"replicas=1.5"}, "must be a whole number"},
		{election, []string{"driver=podman"}, "The driver must be docker, exec or raw_exec"},
		{election, []string{"network_mode=cni/x"}, "The network_mode must be bridge or host"},
		{election, []string{"revocation=never"}, "The revocation must be safe or fast"},
		{election, []string{"elections=[]"}, "needs at least one name"},
		{election, []string{"replicas=many"}, "a number is required"},
		{election, []string{"no_such_variable=1"}, "undeclared variable"},
		{search, []string{"shards=0"}, "must be a whole number, 1 or more"},
		{search, []string{"roots=-1"}, "must be a whole number, 0 or more"},
		{search, []string{"merge_format=xml"}, "must be ndjson, multipart or batch"},
		{search, []string{"distinct_hosts=perhaps"}, "a bool is required"},
		{tree, []string{"branches=1.5"}, "must be a whole number, 1 or more"},
		{queue, []string{"min_count=3"}, "The min_count must not be above the max_count"},
		{queue, []string{"max_count=-1"}, "must be a whole number, 0 or more"},
		{queue, []string{"queue_url=ftp://x"}, "must begin with nats://"},
		{queue, []string{"keep=soon"}, "must be a time like 7d"},
		{queue, []string{"rate=fast"}, "must be a number a second"},
		{queue, []string{"rate_per_key=5/d"}, "must be a number a second"},
		{queue, []string{"order=tenant"}, "must be message or header:NAME"},
		{queue, []string{"partitions=8"}, "Partitions need order = message"},
		{queue, []string{"partitions=65", "order=message"}, "must be a whole number from 0 to 64"},
		{queue, []string{"partitions=8", "order=message", "queue_url=kafka://x"}, "SQS and Kafka have no partitions"},
		{queue, []string{"to_partitions=8"}, "name it with to"},
		{queue, []string{"divert_slots=4"}, "need a folder that all nodes share"},
		{queue, []string{"divert_slots=4", "volume=shared", "mode=dispatch"}, "in mode dispatch there are none"},
		{queue, []string{"divert_slots=4", "volume=shared", "order=message"}, "is overtaken by those of its key"},
		{queue, []string{"divert_over=1GiB"}, "needs divert_slots"},
		{queue, []string{"divert_over=large"}, "must be a size like 512KiB"},
		{stages, []string{"partitions={orc=3}"}, "There is no stage orc"},
		{stages, []string{"partitions={words=1.5}"}, "must have whole numbers from 0 to 64"},
		{stages, []string{"partitions={words=8}", "queue_url=sqs://eu-central-1"}, "SQS and Kafka have no partitions"},
		{stages, []string{"to_partitions=8"}, "name it with to"},
		{stages, []string{"max_count={orc=3}"}, "There is no stage orc"},
		{stages, []string{"max_count={words=1}", "min_count={words=2}"}, "The min_count of a stage must not be above its max_count"},
		{stages, []string{"min_count={words=-1}"}, "must have whole numbers, 0 or more"},
		{stages, []string{`gather=["top"]`}, "The last stage gathers into nothing"},
		{acl, []string{"job_name=a", "pattern=queue"}, "must be elector, gather, coordinator, broker or scaler"},
		{acl, nil, `No value for required variable`},
		{acl, []string{"job_name=a b"}, "lower-case letters, digits and dashes"},
		{acl, []string{"job_name=a", "task=a b"}, "letters, digits, underscores and dashes"},
	} {
		t.Run(strings.Join(test.vars, ","), func(t *testing.T) {
			args := []string{"plan", "-refresh=false"}
			for _, v := range test.vars {
				args = append(args, "-var", v)
			}
			tf := *test.tf
			tf.t = t
			tf.fails(test.complaint, args...)
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
