//go:build cgo

package inner

import "github.com/hashicorp/nomad/drivers/exec"

// addExec is for builds with cgo alone: without it the driver's isolation is
// compiled out and it would run tasks with none, and no error.
func addExec(all map[string]factory) { all["exec"] = exec.NewExecDriver }
