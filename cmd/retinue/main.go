// Command retinue is the one binary of the project: every helper that a
// jobspec runs beside a user's container, and every verb of the operator.
package main

import (
	"os"
)

func main() {
	become(os.Args)
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
