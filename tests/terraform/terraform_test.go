package terraform_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"retinue/tests/harness"
	"retinue/tests/terraform/standin"
)

// providers are for tests that need no cluster.
var providers = harness.Share(func(t harness.T) string { return serve(t, nil) })

// serve starts the stand-in providers for Terraform to attach to.
func serve(t harness.T, env standin.Env) string {
	t.Helper()
	reattach, stop, err := standin.Serve(harness.NomadBinary(t), env)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(stop)
	return reattach
}

// terraform runs the program in a copy of a module or an example.
type terraform struct {
	t   *testing.T
	dir string
	env []string
}

// newTerraform copies the whole terraform folder, because examples refer to
// modules, and works in one of its folders.
func newTerraform(t *testing.T, dir string) *terraform {
	t.Helper()
	harness.Need(t, harness.Terraform)
	return copyTerraform(t, dir, providers.Get(t))
}

func copyTerraform(t *testing.T, dir, reattach string, env ...string) *terraform {
	t.Helper()
	tree := harness.Dir(t, "tf")
	if err := os.CopyFS(tree, os.DirFS(filepath.Join(harness.RepoRoot(t), "terraform"))); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(tree, "terraform.rc") // not the user's own
	if err := os.WriteFile(config, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return &terraform{t: t, dir: filepath.Join(tree, dir), env: append([]string{
		"TF_REATTACH_PROVIDERS=" + reattach,
		"TF_CLI_CONFIG_FILE=" + config,
		"TF_IN_AUTOMATION=1",
		"TF_INPUT=0",
		"CHECKPOINT_DISABLE=1",
	}, env...)}
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

func (tf *terraform) exec(args ...string) (string, error) {
	tf.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "terraform", args...)
	cmd.Dir = tf.dir
	cmd.Env = append(os.Environ(), tf.env...)
	out, err := cmd.CombinedOutput()
	return colours.ReplaceAllString(string(out), ""), err
}

// run expects success and returns the output.
func (tf *terraform) run(args ...string) string {
	tf.t.Helper()
	out, err := tf.exec(args...)
	if err != nil {
		tf.t.Fatalf("terraform %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// fails expects a failure with a complaint. Terraform wraps its messages in
// boxes, so words are compared, not lines.
func (tf *terraform) fails(complaint string, args ...string) {
	tf.t.Helper()
	out, err := tf.exec(args...)
	if err == nil {
		tf.t.Fatalf("terraform %s succeeds:\n%s", strings.Join(args, " "), out)
	}
	words := strings.Join(strings.Fields(strings.NewReplacer("│", " ", "╷", " ", "╵", " ").Replace(out)), " ")
	if !strings.Contains(words, complaint) {
		tf.t.Errorf("terraform %s: the message lacks %q:\n%s", strings.Join(args, " "), complaint, out)
	}
}
