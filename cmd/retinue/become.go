package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"retinue/coordinator/command"
	"retinue/coordinator/source/dial"
)

// become replaces this process by a smaller or larger program for the same command line, where there is one in the same folder. It
// returns in every other case: then this program does what it can. It has to come before any signal is caught: one that this process
// had taken would be lost.
func become(args []string) {
	switch {
	case len(args) < 2:
	case serves(args[1:]):
		replaceBy("retinue-elector", args)
	case dial.Elsewhere(command.SchemeOf(args[1], args[2:], os.LookupEnv)) != "":
		replaceBy(command.Program, args)
	}
}

// serves says whether this is the command line of an elector that serves, and lives as long as its allocation: retinue-elector is the
// same with less memory.
func serves(args []string) bool {
	return args[0] == "elector" && (len(args) == 1 || args[1] == "run" || strings.HasPrefix(args[1], "-") && args[1] != "-h" && args[1] != "--help")
}

// replaceBy makes this process run a program of one verb, which is told by its name what was called.
func replaceBy(program string, args []string) {
	self, err := os.Executable()
	if err != nil {
		return
	}
	_ = syscall.Exec(filepath.Join(filepath.Dir(self), program), append([]string{"retinue " + args[1]}, args[2:]...), os.Environ())
}
