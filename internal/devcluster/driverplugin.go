package devcluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"retinue/internal/hint"
)

// The two programs of the task-driver plugin, beside retinue where they were
// built: the decorator, and the process behind it that serves Nomad's own drivers.
const (
	driverProgram = "retinue-driver"
	innerProgram  = "retinue-inner"
)

// DriverPluginBeside says whether both programs of the task-driver plugin are in the folder of
// a retinue binary.
func DriverPluginBeside(retinueBin string) bool {
	for _, name := range []string{driverProgram, innerProgram} {
		if info, err := os.Stat(filepath.Join(filepath.Dir(retinueBin), name)); err != nil || !info.Mode().IsRegular() {
			return false
		}
	}
	return true
}

// pluginDir is the agents' plugin_dir: a link for each driver, because an agent
// tells plugins apart by the name of their file.
func (p Plan) pluginDir() string { return filepath.Join(p.Dir, "bin", "plugins") }

// StateDir is the folder of all nodes that tasks may save their state in: store = "dir:PATH".
func (p Plan) StateDir() string { return filepath.Join(p.Dir, "states") }

// InnerProgram is the program behind the decorator, for the agents' configuration.
func (p Plan) InnerProgram() string { return filepath.Join(p.binDir(), innerProgram) }

// decorated are the drivers that the plugin takes the place of, none without it.
func (p Plan) decorated() []string {
	if !p.DriverPlugin {
		return nil
	}
	names := []string{DriverRawExec}
	if p.Root {
		names = append(names, DriverExec)
	}
	if p.DockerSocket != "" {
		names = append(names, DriverDocker)
	}
	return names
}

// findDriverPlugin decides whether the cluster's drivers are decorated.
func (u *upper) findDriverPlugin(p *Plan, retinueBin string) error {
	if u.cfg.DriverPlugin == "off" {
		return nil
	}
	p.DriverPlugin = DriverPluginBeside(retinueBin)
	switch {
	case p.DriverPlugin:
		u.say("tasks can have a lifecycle block: the drivers are those of %s", driverProgram)
	case u.cfg.DriverPlugin == "on":
		return hint.Wrap(fmt.Errorf("there are no %s and %s beside %s", driverProgram, innerProgram, retinueBin), "`make plugin` builds them in a checkout")
	}
	return nil
}

// installDriverPlugin copies the programs into the cluster's bin folder and makes
// the links that the agents load.
func (p Plan) installDriverPlugin(retinueBin string) error {
	if !p.DriverPlugin {
		return nil
	}
	if !DriverPluginBeside(retinueBin) {
		return hint.Wrap(fmt.Errorf("the cluster in %s uses %s, which is not beside %s any more", p.Dir, driverProgram, retinueBin),
			"`make plugin` builds it in a checkout")
	}
	for _, name := range []string{driverProgram, innerProgram} {
		if err := copyProgram(filepath.Join(filepath.Dir(retinueBin), name), filepath.Join(p.binDir(), name)); err != nil {
			return err
		}
	}
	if err := errors.Join(os.MkdirAll(p.pluginDir(), 0o755), os.MkdirAll(p.StateDir(), 0o700)); err != nil {
		return diskError(err)
	}
	for _, driver := range p.decorated() {
		link := filepath.Join(p.pluginDir(), "retinue-"+driver)
		target := filepath.Join(p.binDir(), driverProgram)
		if linksTo(link, target) {
			continue
		}
		if err := errors.Join(os.RemoveAll(link), os.Symlink(target, link)); err != nil {
			return diskError(err)
		}
	}
	return nil
}
