// Command retinue-inner serves one of Nomad's own task drivers as a plugin, for
// retinue-driver, which starts it. It is also the executor and the docker_logger of
// the tasks: those run in the init functions of Nomad's packages.
package main

import (
	// First: see the package comment.
	_ "retinue/plugins/sigpipe"

	"context"
	"fmt"
	"os"

	"retinue/plugins/inner"
)

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("want the name of a driver, one of %v", inner.Names()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := inner.Serve(ctx, os.Args[1]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "Error: %v\nHint: this program is started by retinue-driver, as in `retinue-driver -as docker %s docker`\n", err, os.Args[0])
	os.Exit(1)
}
