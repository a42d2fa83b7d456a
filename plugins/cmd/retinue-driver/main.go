// Command retinue-driver is a Nomad task driver in front of another one, which it
// starts: see package driver. The agent starts it from its plugin_dir:
//
//	plugin "retinue-docker" {
//	  args = ["-as", "docker", "/usr/lib/retinue/retinue-inner", "docker"]
//	}
package main

import (
	// First: see the package comment.
	_ "retinue/plugins/sigpipe"

	"flag"
	"fmt"
	"os"
	"runtime"

	"retinue/plugins/driver"
)

const usage = `A Nomad task driver that gives the tasks of another driver a lifecycle.

Usage, in the configuration of a Nomad client whose plugin_dir has a file or a link
of the name retinue-docker:

  plugin "retinue-docker" {
    args = ["-as", "docker", "/usr/lib/retinue/retinue-inner", "docker"]
    config {
      # the configuration of the inner driver, and:
      lifecycle {
        stop_budget = "5m"   # no hook holds a task for longer
      }
    }
  }

Arguments: the program of the inner driver plugin, and its arguments.

Flags:
`

func main() {
	runtime.LockOSThread() // the inner process ends with this thread, so this must be the main one
	as := flag.String("as", os.Getenv("RETINUE_DRIVER_AS"), "`name` to register under: docker, exec or raw_exec to replace the built-in driver (environment RETINUE_DRIVER_AS; default: the inner driver's name)")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		fail(fmt.Errorf("no inner driver plugin given"))
	}
	if err := driver.Serve(flag.Args(), driver.Options{As: *as, Log: driver.NewLogger()}); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "Error: %v\nHint: run it with -help to see how an agent's configuration starts it\n", err)
	os.Exit(1)
}
