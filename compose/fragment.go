package compose

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Fragment is what one pattern adds to a job. Its source is HCL with these blocks:
//
//	variable "retinue_…"  once in a file, whatever the number of patterns, when Shared holds it
//	locals                names that begin with Prefix; see filled
//	group                 what the user's group gets
//	network               what the group's network gets, which is made where there is none
//	main                  what the user's main task gets; an attribute that it has already is left alone
//	config                what the config block of the user's main task gets: blocks that it must not have yet
type Fragment struct {
	Pattern   string // such as "leader-election"
	Summary   string // for people, the comment at the head of the source
	prefix    string // of the fragment's own variables and locals
	shared    []string
	variables []string
	locals    string
	group     string
	network   string
	main      []entry
	config    string
	settings  []string // names of the blocks that config has
	tasks     []string // names of the tasks that group has
	ports     []string // labels of the ports that network has
}

// entry is one attribute or one block of a body, with the comments above it.
type entry struct {
	name string // of the attribute; empty for a block
	text string
}

// shared are the variables that every pattern's fragment declares alike.
var shared = map[string]bool{"retinue_image": true, "retinue_command": true, "retinue_consul_http_addr": true}

// filled are the locals of a fragment that are set from the job it goes around, after the fragment's prefix.
var filled = []string{"driver", "network_mode", "address", "leader"}

// ParseFragment reads a fragment. prefix is what its own variables and locals begin with, such as "retinue_elector".
func ParseFragment(pattern, prefix, source string) (*Fragment, error) {
	body, err := parseBody(source, pattern+".fragment.hcl")
	if err != nil {
		return nil, err
	}
	f := &Fragment{Pattern: pattern, Summary: headComment(source), prefix: prefix}
	for _, b := range body.Blocks {
		inner := innerText(source, b)
		switch b.Type {
		case "variable":
			if shared[b.Labels[0]] {
				f.shared = append(f.shared, blockText(source, b))
			} else {
				f.variables = append(f.variables, blockText(source, b))
			}
		case "locals":
			f.locals = inner
		case "group":
			f.group = inner
			for _, t := range b.Body.Blocks {
				if t.Type == "task" {
					f.tasks = append(f.tasks, t.Labels[0])
				}
			}
		case "network":
			f.network = inner
			for _, p := range b.Body.Blocks {
				if p.Type == "port" {
					f.ports = append(f.ports, p.Labels[0])
				}
			}
		case "config":
			f.config = inner
			for _, c := range b.Body.Blocks {
				f.settings = append(f.settings, c.Type)
			}
		case "main":
			f.main = entries(source, b.Body)
		default:
			return nil, fmt.Errorf("fragment of %s: unknown block %q", pattern, b.Type)
		}
	}
	return f, nil
}

func parseBody(source, name string) (*hclsyntax.Body, error) {
	file, diags := hclsyntax.ParseConfig([]byte(source), name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diagError(diags)
	}
	return file.Body.(*hclsyntax.Body), nil
}

// diagError is the first of them, as file:line,column says it.
func diagError(diags hcl.Diagnostics) error {
	d := diags[0]
	return fmt.Errorf("%s: %s: %s", d.Subject, d.Summary, d.Detail)
}
