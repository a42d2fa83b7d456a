package compose

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"retinue/internal/hint"
)

var (
	ctyTrue   = cty.True
	ctyString = cty.String
)

// Report says what Inject did, for people and programs.
type Report struct {
	Pattern   string   `json:"pattern"`
	Group     string   `json:"group"`
	Task      string   `json:"task"`
	Tasks     []string `json:"tasks"`              // added to the group
	Settings  []string `json:"settings,omitempty"` // blocks added to the configuration of the main task
	Ports     []string `json:"ports,omitempty"`    // added to its network
	Variables []string `json:"variables"`          // that a -var-file may set
	Replaced  bool     `json:"replaced,omitempty"` // the pattern was there before, from this or another version
	Notes     []string `json:"notes,omitempty"`    // what the user may want to know
}

// edit puts text at a byte of the source.
type edit struct {
	at   int
	text string
}

// Inject puts a fragment around a job. name is the file's, for errors. A job that has the pattern already gets it anew.
func Inject(src []byte, name string, f *Fragment, to Target) ([]byte, Report, error) {
	before, err := Patterns(src, name)
	if err != nil {
		return nil, Report{}, err
	}
	report := Report{Pattern: f.Pattern, Replaced: slices.Contains(before, f.Pattern)}
	if src, err = Remove(src, name, f.Pattern); err != nil {
		return nil, report, err
	}
	crlf := bytes.Contains(src, []byte("\r\n"))
	j, err := parseJob(src, name, to)
	if err != nil {
		return nil, report, err
	}
	if err := j.free(f); err != nil {
		return nil, report, err
	}
	report.Group, report.Task = j.group.Labels[0], j.main.Labels[0]
	report.Tasks, report.Ports, report.Settings = f.tasks, f.ports, f.settings
	edits, err := j.edits(f, &report)
	if err != nil {
		return nil, report, err
	}
	out := apply(j.src, edits, crlf)
	if _, err := parseBody(out, name); err != nil {
		return nil, report, fmt.Errorf("the pattern does not fit around this job: %w", err)
	}
	return []byte(out), report, nil
}

// free makes sure that nothing of the fragment's names is taken.
func (j *job) free(f *Fragment) error {
	taken := func(b *hclsyntax.Block, what string) error {
		return j.errorAt(b, fmt.Sprintf("the %s %q is there already", what, b.Labels[0]), "rename it: the pattern brings its own")
	}
	for _, v := range blocks(j.root, "variable") {
		if len(v.Labels) == 1 && strings.HasPrefix(v.Labels[0], f.prefix+"_") {
			return taken(v, "variable")
		}
	}
	for _, t := range blocks(j.group.Body, "task") {
		if len(t.Labels) == 1 && slices.Contains(f.tasks, t.Labels[0]) {
			return taken(t, "task")
		}
	}
	if j.network != nil {
		for _, p := range blocks(j.network.Body, "port") {
			if len(p.Labels) == 1 && slices.Contains(f.ports, p.Labels[0]) {
				return taken(p, "port")
			}
		}
	}
	return nil
}

// edits lists what goes where.
func (j *job) edits(f *Fragment, report *Report) ([]edit, error) {
	inner := lineOf(j.src, j.group.TypeRange.Start.Byte) + "  "
	group := indent(f.group, inner)
	var edits []edit
	switch {
	case f.network == "":
	case j.network == nil:
		group = inner + "network {\n" + indent(f.network, inner+"  ") + inner + "}\n\n" + group
	default:
		if err := j.severalLines(j.network); err != nil {
			return nil, err
		}
		edits = append(edits, j.into(j.network, f.Pattern, indent(f.network, inner+"  ")))
	}
	if strings.TrimSpace(group) != "" {
		edits = append(edits, j.into(j.group, f.Pattern, group))
	}
	if f.config != "" {
		configs, err := j.configs(f.settings)
		if err != nil {
			return nil, err
		}
		if len(configs) == 0 {
			edits = append(edits, j.into(j.main, f.Pattern, inner+"  config {\n"+indent(f.config, inner+"    ")+inner+"  }\n"))
		}
		for _, c := range configs {
			edits = append(edits, j.into(c, f.Pattern, indent(f.config, lineOf(j.src, c.TypeRange.Start.Byte)+"  ")))
		}
	}
	if main := j.mainText(f); main != "" {
		edits = append(edits, j.into(j.main, f.Pattern, indent(main, inner+"  ")))
	}
	top, err := j.top(f, report)
	if err != nil {
		return nil, err
	}
	return append(edits, top...), nil
}

// into puts text at the end of a block.
func (j *job) into(b *hclsyntax.Block, pattern, text string) edit {
	line := strings.LastIndexByte(j.src[:b.CloseBraceRange.Start.Byte], '\n') + 1
	return edit{line, marked(pattern, text, lineOf(j.src, b.TypeRange.Start.Byte)+"  ")}
}

// configs are the config blocks of the main task, those too that a dynamic block makes; none where the driver needs none.
func (j *job) configs(settings []string) ([]*hclsyntax.Block, error) {
	configs := blocks(j.main.Body, "config")
	for _, d := range blocks(j.main.Body, "dynamic") {
		if len(d.Labels) == 1 && d.Labels[0] == "config" {
			configs = append(configs, blocks(d.Body, "content")...)
		}
	}
	for _, c := range configs {
		if err := j.severalLines(c); err != nil {
			return nil, err
		}
		for _, b := range c.Body.Blocks {
			if slices.Contains(settings, b.Type) {
				return nil, j.errorAt(b, fmt.Sprintf("the block %s is there already", b.Type), "it has what the pattern brings: change it by hand, or remove it first")
			}
		}
	}
	return configs, nil
}

// mainText is what the main task gets: of the attributes only those that it does not have.
func (j *job) mainText(f *Fragment) string {
	var text strings.Builder
	for _, e := range f.main {
		if e.name != "" && j.main.Body.Attributes[e.name] != nil {
			continue
		}
		text.WriteString(e.text)
	}
	return text.String()
}

// top is what goes to the end of the file: variables and locals.
func (j *job) top(f *Fragment, report *Report) ([]edit, error) {
	driver, err := j.driver()
	if err != nil {
		return nil, err
	}
	mode, err := j.networkMode()
	if err != nil {
		return nil, err
	}
	leader := j.leader()
	if leader != nil && leader != j.main {
		report.Notes = append(report.Notes, fmt.Sprintf("task %s stays the group's leader: Nomad stops it first", leader.Labels[0]))
	}
	values := []string{driver, mode, j.address(), fmt.Sprint(leader == nil)}
	var own strings.Builder
	for _, v := range f.variables {
		own.WriteString(v + "\n")
		report.Variables = append(report.Variables, label(v))
	}
	var locals strings.Builder
	locals.WriteString("locals {\n  # Of this job, when the pattern was put around it.\n")
	width := len(f.prefix) + len("_network_mode")
	for i, name := range filled {
		fmt.Fprintf(&locals, "  %-*s = %s\n", width, f.prefix+"_"+name, values[i])
	}
	locals.WriteString("\n" + indent(f.locals, "  ") + "}\n")
	if f.locals == "" { // a fragment that needs nothing of the job
		locals.Reset()
	}

	end := j.src
	var edits []edit
	if !strings.HasSuffix(end, "\n") {
		edits = append(edits, edit{len(end), "\n"})
	}
	var missing []string
	for _, v := range f.shared {
		report.Variables = append(report.Variables, label(v))
		if !slices.ContainsFunc(blocks(j.root, "variable"), func(b *hclsyntax.Block) bool { return len(b.Labels) == 1 && b.Labels[0] == label(v) }) {
			missing = append(missing, v)
		}
	}
	if len(missing) > 0 {
		edits = append(edits, edit{len(end), marked(common, strings.Join(missing, "\n"), "")})
	}
	return append(edits, edit{len(end), marked(f.Pattern, own.String()+locals.String(), "")}), nil
}

// label is the name of a variable block.
func label(block string) string {
	_, rest, _ := strings.Cut(block, `"`)
	name, _, _ := strings.Cut(rest, `"`)
	return name
}

// apply makes the edits, in the file's own kind of line ends.
func apply(src string, edits []edit, crlf bool) string {
	slices.SortStableFunc(edits, func(a, b edit) int { return a.at - b.at })
	var out strings.Builder
	at := 0
	for _, e := range edits {
		out.WriteString(src[at:e.at])
		if crlf {
			e.text = strings.ReplaceAll(e.text, "\n", "\r\n")
		}
		out.WriteString(e.text)
		at = e.at
	}
	out.WriteString(src[at:])
	return out.String()
}

// Unknown is the error for a pattern that has no fragment.
func Unknown(pattern string, known []string) error {
	return hint.Wrap(fmt.Errorf("no pattern %q can be put around a job", pattern), "there are: %s", strings.Join(known, ", "))
}
