package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// becomeElector replaces this process by retinue-elector where the command line is that of an elector that serves, and lives as long
// as its allocation, and where that program is in the same folder. It returns in every other case: then this program does the same,
// with more memory. It has to come before any signal is caught: one that this process had taken would be lost.
func becomeElector(args []string) {
	if len(args) < 2 || args[1] != "elector" {
		return
	}
	rest := args[2:]
	if len(rest) > 0 && rest[0] != "run" && (!strings.HasPrefix(rest[0], "-") || rest[0] == "-h" || rest[0] == "--help") {
		return // its other commands, and help
	}
	self, err := os.Executable()
	if err != nil {
		return
	}
	_ = syscall.Exec(filepath.Join(filepath.Dir(self), "retinue-elector"), append([]string{"retinue elector"}, rest...), os.Environ())
}
