// Package sigpipe keeps a driver plugin and its helper processes alive when
// nobody reads their standard error any more, as after a crash of the agent that
// started them (hashicorp/nomad#27815, hashicorp/go-plugin#114). The Go runtime
// ends a process that writes to a broken pipe on descriptor 1 or 2; one that asked
// for SIGPIPE gets EPIPE from the write instead.
//
// Nomad's executor and docker_logger are this same binary executed again; they run
// in the init functions of their packages and never return from there. So this
// package must be initialised before them: it imports nothing but the standard
// library, main imports it first, and a test looks at the order of initialisation.
//
// It must be Notify and not Ignore: ignored signals are inherited by the processes
// of the tasks, where `yes | head` would then never end.
package sigpipe

import (
	"os"
	"os/signal"
	"syscall"
)

func init() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
}
