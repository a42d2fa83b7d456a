// Package jobspecs embeds the job specifications of the patterns, so that one
// binary can run them and `nomad job run` can read the same files.
package jobspecs

import (
	"embed"
	"fmt"
)

//go:embed */*.nomad.hcl */*.fragment.hcl
var files embed.FS

// Pattern returns the HCL source of the job specification of a pattern, such as "leader-election".
func Pattern(name string) (string, error) {
	src, err := files.ReadFile(name + "/" + name + ".nomad.hcl")
	if err != nil {
		return "", fmt.Errorf("no job specification for the pattern %q: %w", name, err)
	}
	return string(src), nil
}

// Patterns lists the names that Pattern knows, in their order.
func Patterns() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil // an embedded folder can always be read
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Fragment returns the HCL source of what a pattern adds to somebody's own job; ok is false where there is none.
func Fragment(name string) (source string, ok bool) {
	src, err := files.ReadFile(name + "/" + name + ".fragment.hcl")
	return string(src), err == nil
}
