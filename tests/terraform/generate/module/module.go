// Package module knows how the files of a Terraform module follow from a
// jobspec. Its output depends on its input alone, so that a test can compare.
package module

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// renamed are variables of jobspecs whose names Terraform keeps for itself.
var renamed = map[string]string{"count": "replicas"}

// regexReplace is a call of a function that Terraform calls replace, with slashes.
var regexReplace = regexp.MustCompile(`regex_replace\(([^,]+), "([^"]*)", `)

const (
	beginMark = "<!-- generated: inputs and outputs -->"
	endMark   = "<!-- end of generated -->"
)

// RepoRoot finds the root module above the working folder.
func RepoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(data, []byte("module retinue\n")) {
			return dir, nil
		}
	}
	return "", errors.New("not below the root module of the project")
}

// Patterns names the modules that are made from a jobspec.
func Patterns(root string) ([]string, error) {
	specs, err := filepath.Glob(filepath.Join(root, "jobspecs", "*", "*.nomad.hcl"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, spec := range specs {
		name := filepath.Base(filepath.Dir(spec))
		if _, err := os.Stat(filepath.Join(root, "terraform", "modules", name)); err == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// Generate returns the content of every generated file by its path.
func Generate(root string) (map[string][]byte, error) {
	files := map[string][]byte{}
	names, err := Patterns(root)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := generatePattern(root, name, files); err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
	}
	readmes, err := filepath.Glob(filepath.Join(root, "terraform", "modules", "*", "README.md"))
	if err != nil {
		return nil, err
	}
	for _, readme := range readmes {
		content, err := tables(readme, files)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", readme, err)
		}
		files[readme] = content
	}
	return files, nil
}

func generatePattern(root, name string, files map[string][]byte) error {
	source := filepath.Join(root, "jobspecs", name, name+".nomad.hcl")
	dir := filepath.Join(root, "terraform", "modules", name)
	jobspec, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	files[filepath.Join(dir, name+".nomad.hcl")] = jobspec
	extra, err := os.ReadFile(filepath.Join(dir, "variables.extra.tf.txt"))
	if err != nil {
		return err
	}
	variables, err := Variables(jobspec, source)
	if err != nil {
		return err
	}
	header := fmt.Sprintf("# Generated from jobspecs/%s/%s.nomad.hcl (and variables.extra.tf.txt). Change that, then `make generate`.\n\n", name, name)
	files[filepath.Join(dir, "variables.tf")] = hclwrite.Format(append(append([]byte(header), variables...), extra...))
	return nil
}

// Variables turns the variable blocks of a jobspec into those of a Terraform
// module: the same text, with Terraform's names, and null refused.
func Variables(jobspec []byte, filename string) ([]byte, error) {
	file, diags := hclwrite.ParseConfig(jobspec, filename, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diags
	}
	var out bytes.Buffer
	for _, block := range file.Body().Blocks() {
		if block.Type() != "variable" {
			continue
		}
		name := block.Labels()[0]
		var text bytes.Buffer
		for _, token := range block.BuildTokens(nil) {
			text.Write(bytes.Repeat([]byte{' '}, token.SpacesBefore))
			text.Write(token.Bytes)
		}
		body := strings.TrimSpace(text.String())
		if to := renamed[name]; to != "" {
			body = strings.Replace(body, fmt.Sprintf("variable %q", name), fmt.Sprintf("variable %q", to), 1)
			body = strings.ReplaceAll(body, "var."+name, "var."+to)
			body = strings.ReplaceAll(body, "The "+name+" ", "The "+to+" ")
		}
		body = regexReplace.ReplaceAllString(body, `replace($1, "/$2/", `)
		body = strings.TrimSuffix(body, "}") + "  nullable = false\n}"
		out.WriteString(body + "\n\n")
	}
	return hclwrite.Format(out.Bytes()), nil
}

// tables replaces the generated part of a README.
func tables(readme string, files map[string][]byte) ([]byte, error) {
	old, err := os.ReadFile(readme)
	if err != nil {
		return nil, err
	}
	head, rest, ok := strings.Cut(string(old), beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return nil, fmt.Errorf("the marks %q and %q are missing", beginMark, endMark)
	}
	dir := filepath.Dir(readme)
	read := func(name string) ([]byte, error) {
		if content, ok := files[filepath.Join(dir, name)]; ok {
			return content, nil
		}
		return os.ReadFile(filepath.Join(dir, name))
	}
	variables, err := read("variables.tf")
	if err != nil {
		return nil, err
	}
	outputs, err := read("outputs.tf")
	if err != nil {
		return nil, err
	}
	in, err := inputRows(variables)
	if err != nil {
		return nil, err
	}
	out, err := outputRows(outputs)
	if err != nil {
		return nil, err
	}
	return []byte(head + beginMark + "\n\n## Inputs\n\n| name | description | type | default |\n|---|---|---|---|\n" + in +
		"\n## Outputs\n\n| name | description |\n|---|---|\n" + out + "\n" + endMark + tail), nil
}

func inputRows(source []byte) (string, error) {
	file, diags := hclwrite.ParseConfig(source, "variables.tf", hcl.InitialPos)
	if diags.HasErrors() {
		return "", diags
	}
	var rows []string
	for _, block := range file.Body().Blocks() {
		value := func(name string) string {
			attr := block.Body().GetAttribute(name)
			if attr == nil {
				return ""
			}
			return strings.Join(strings.Fields(string(attr.Expr().BuildTokens(nil).Bytes())), " ")
		}
		def := "required"
		if d := value("default"); d != "" {
			def = "`" + d + "`"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s | `%s` | %s |\n", block.Labels()[0], strings.Trim(value("description"), `"`), value("type"), def))
	}
	// What must be given comes first.
	sort.SliceStable(rows, func(i, j int) bool {
		return strings.HasSuffix(rows[i], "| required |\n") && !strings.HasSuffix(rows[j], "| required |\n")
	})
	return strings.Join(rows, ""), nil
}

func outputRows(source []byte) (string, error) {
	file, diags := hclwrite.ParseConfig(source, "outputs.tf", hcl.InitialPos)
	if diags.HasErrors() {
		return "", diags
	}
	var rows strings.Builder
	for _, block := range file.Body().Blocks() {
		attr := block.Body().GetAttribute("description")
		if attr == nil {
			return "", fmt.Errorf("output %s has no description", block.Labels()[0])
		}
		fmt.Fprintf(&rows, "| `%s` | %s |\n", block.Labels()[0], strings.Trim(strings.TrimSpace(string(attr.Expr().BuildTokens(nil).Bytes())), `"`))
	}
	return rows.String(), nil
}
