package compose

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"retinue/internal/hint"
)

// job is a parsed job specification and the places in it that a fragment goes to.
type job struct {
	src     string
	name    string
	root    *hclsyntax.Body
	group   *hclsyntax.Block
	network *hclsyntax.Block // nil: the group has none
	main    *hclsyntax.Block
}

// Target says where in a job a fragment goes. Empty fields are found out where there is no doubt.
type Target struct {
	Group string // the only group of the job
	Task  string // the group's leader, or its only task without a lifecycle block
}

func parseJob(src []byte, name string, to Target) (*job, error) {
	if trimmed := bytes.TrimSpace(src); len(trimmed) == 0 {
		return nil, hint.Wrap(fmt.Errorf("%s is empty", name), "give a job specification in HCL")
	} else if trimmed[0] == '{' {
		return nil, hint.Wrap(fmt.Errorf("%s is JSON", name), "give the HCL that it was made of: only there do variables and comments live on")
	}
	j := &job{src: string(src), name: name}
	var err error
	if j.root, err = parseBody(j.src, name); err != nil {
		return nil, hint.Wrap(err, "`nomad job validate %s` tells more", name)
	}
	jobs := blocks(j.root, "job")
	if len(jobs) != 1 {
		return nil, hint.Wrap(fmt.Errorf("%s has %d job blocks", name, len(jobs)), "give a job specification, with one job block")
	}
	if err := j.findGroup(jobs[0], to.Group); err != nil {
		return nil, err
	}
	if err := j.findMain(to.Task); err != nil {
		return nil, err
	}
	switch networks := blocks(j.group.Body, "network"); {
	case len(networks) == 1:
		j.network = networks[0]
	case len(networks) > 1:
		return nil, j.errorAt(networks[1], "a second network block in the group", "Nomad takes one network in a group")
	}
	return j, nil
}

func (j *job) findGroup(parent *hclsyntax.Block, wanted string) error {
	groups := blocks(parent.Body, "group")
	for _, d := range blocks(parent.Body, "dynamic") {
		if len(groups) == 0 && len(d.Labels) == 1 && d.Labels[0] == "group" {
			return j.errorAt(d, "the groups are dynamic", "a pattern goes around a group that is written out; write the one that needs it as `group \"NAME\" { … }`")
		}
	}
	var err error
	if j.group, err = choose(j, groups, wanted, "group", "--group"); err != nil {
		return err
	}
	return j.severalLines(j.group)
}

func (j *job) findMain(wanted string) error {
	tasks := blocks(j.group.Body, "task")
	candidates := tasks
	if wanted == "" {
		if leaders := slices.DeleteFunc(slices.Clone(tasks), func(b *hclsyntax.Block) bool { return !leads(b) }); len(leaders) == 1 {
			candidates = leaders
		} else {
			candidates = slices.DeleteFunc(slices.Clone(tasks), func(b *hclsyntax.Block) bool { return len(blocks(b.Body, "lifecycle")) > 0 })
		}
	}
	var err error
	if j.main, err = choose(j, candidates, wanted, "task", "--task"); err != nil {
		return err
	}
	return j.severalLines(j.main)
}

// choose takes the block that is wanted, or the only one.
func choose(j *job, from []*hclsyntax.Block, wanted, kind, flag string) (*hclsyntax.Block, error) {
	var names []string
	for _, b := range from {
		if len(b.Labels) != 1 {
			return nil, j.errorAt(b, "a "+kind+" without a name", "write "+kind+` "NAME" { … }`)
		}
		if wanted == b.Labels[0] || wanted == "" && len(from) == 1 {
			return b, nil
		}
		names = append(names, b.Labels[0])
	}
	switch {
	case len(names) == 0:
		return nil, hint.Wrap(fmt.Errorf("%s: no %s to go around", j.name, kind), "a pattern goes around a group with a main task that is written out, not dynamic")
	case wanted != "":
		return nil, hint.Wrap(fmt.Errorf("%s has no %s %q", j.name, kind, wanted), "it has: %s", strings.Join(names, ", "))
	}
	return nil, hint.Wrap(fmt.Errorf("%s has %d %ss: %s", j.name, len(names), kind, strings.Join(names, ", ")), "name the one that the pattern goes around with %s", flag)
}

// leads says whether a task is its group's leader.
func leads(task *hclsyntax.Block) bool {
	a := task.Body.Attributes["leader"]
	if a == nil {
		return false
	}
	v, diags := a.Expr.Value(nil)
	return diags.HasErrors() || v.IsKnown() && !v.IsNull() && v.Equals(ctyTrue).True()
}

// leader is the group's task that Nomad stops first, or nil.
func (j *job) leader() *hclsyntax.Block {
	for _, t := range blocks(j.group.Body, "task") {
		if leads(t) {
			return t
		}
	}
	return nil
}

// driver is the main task's, as an expression that holds outside the job too.
func (j *job) driver() (string, error) {
	a := j.main.Body.Attributes["driver"]
	if a == nil {
		return "", j.errorAt(j.main, "a task without a driver", "every task names its driver")
	}
	if err := j.global(a); err != nil {
		return "", err
	}
	if v, diags := a.Expr.Value(nil); !diags.HasErrors() && v.Type() == ctyString && !slices.Contains([]string{"docker", "exec", "raw_exec"}, v.AsString()) {
		return `"docker"`, nil // the helper runs beside it in a container
	}
	return j.textOf(a.Expr), nil
}

// networkMode is the group's, as an expression that holds outside the job too.
func (j *job) networkMode() (string, error) {
	if j.network == nil || j.network.Body.Attributes["mode"] == nil {
		return `"host"`, nil
	}
	a := j.network.Body.Attributes["mode"]
	return j.textOf(a.Expr), j.global(a)
}

var plainLabel = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// address is where the application answers: its only port or the one called http, as Nomad fills it in. Empty: nobody can say.
func (j *job) address() string {
	if j.network == nil {
		return `""`
	}
	ports := blocks(j.network.Body, "port")
	for _, p := range ports {
		if len(p.Labels) == 1 && plainLabel.MatchString(p.Labels[0]) && (len(ports) == 1 || p.Labels[0] == "http") {
			return `"${NOMAD_ADDR_` + p.Labels[0] + `}"`
		}
	}
	return `""`
}

// global refuses an expression with names that are known only where it stands.
func (j *job) global(a *hclsyntax.Attribute) error {
	for _, t := range a.Expr.Variables() {
		if root := t.RootName(); root != "var" && root != "local" {
			return hint.Wrap(fmt.Errorf("%s: %s depends on %s, which is not known to a helper beside the task", at(j.name, a.NameRange), a.Name, root),
				"write it in terms of var and local")
		}
	}
	return nil
}

func (j *job) textOf(e hclsyntax.Expression) string {
	r := e.Range()
	return j.src[r.Start.Byte:r.End.Byte]
}

func (j *job) severalLines(b *hclsyntax.Block) error {
	if b.OpenBraceRange.Start.Line == b.CloseBraceRange.Start.Line {
		return j.errorAt(b, "a "+b.Type+" in a single line", "write it in several lines, so that more fits in")
	}
	return nil
}

func (j *job) errorAt(b *hclsyntax.Block, what, advice string) error {
	return hint.Wrap(errors.New(at(j.name, b.TypeRange)+": "+what), "%s", advice)
}

func at(name string, r hcl.Range) string { return fmt.Sprintf("%s:%d", name, r.Start.Line) }

func blocks(body *hclsyntax.Body, kind string) []*hclsyntax.Block {
	var found []*hclsyntax.Block
	for _, b := range body.Blocks {
		if b.Type == kind {
			found = append(found, b)
		}
	}
	return found
}
