// Package shim runs a task's lifecycle from inside its container, as process 1:
// for clusters that forbid driver plugins. It starts the application, reaps what
// it leaves behind, forwards signals, and runs the same hooks as the driver.
//
// What it cannot do is change Nomad's kill_timeout: Nomad sends SIGKILL to the
// container when that is over. So all hooks of a stop share the kill timeout
// (budget "shared"), of which a reserve is kept back, and the application is
// killed before Nomad would kill the shim.
package shim
