// Command generate makes the parts of the Terraform modules that repeat a
// jobspec: the copy of the jobspec itself (a registry ships only the folder of
// a module), variables.tf, and the tables of the README. One source, so that
// a default or a validation cannot differ between the two ways to run a pattern.
//
//	cd tests && go generate ./...
package main

//go:generate go run .

import (
	"fmt"
	"os"

	"retinue/tests/terraform/generate/module"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	root, err := module.RepoRoot()
	if err != nil {
		return err
	}
	files, err := module.Generate(root)
	if err != nil {
		return err
	}
	for path, content := range files {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
		fmt.Println(path)
	}
	return nil
}
