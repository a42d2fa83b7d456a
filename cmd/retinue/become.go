package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"retinue/coordinator/command"
)

// become replaces this process by a program for this one verb, where there is one in the same folder: it lives as long as its
// allocation, and is the same with less memory, or with more brokers. It returns in every other case: then this program does what it
// can. It has to come before any signal is caught: one that this process had taken would be lost.
func become(args []string) {
	switch {
	case len(args) < 2 || len(args) > 2 && (args[2] == "-h" || args[2] == "--help"):
	case args[1] == "elector" && (len(args) == 2 || args[2] == "run" || strings.HasPrefix(args[2], "-")): // it serves
		replaceBy("retinue-elector", args)
	case args[1] == "coordinator", args[1] == "scaler":
		replaceBy(command.Program, args)
	}
}

// replaceBy makes this process run a program of one verb, which is told by its name what was called.
func replaceBy(program string, args []string) {
	self, err := os.Executable()
	if err != nil {
		return
	}
	_ = syscall.Exec(filepath.Join(filepath.Dir(self), program), append([]string{"retinue " + args[1]}, args[2:]...), os.Environ())
}
