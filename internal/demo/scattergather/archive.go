package scattergather

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"retinue/internal/demo/artifact"
	"retinue/internal/devcluster"
	"retinue/internal/hint"
)

// modules asks Python which files it needs to run a program, without the machine's own additions to it.
const modules = `
import json, os, runpy, sys, sysconfig, traceback, encodings.idna, encodings.latin_1
runpy.run_path(sys.argv[1], run_name="packed")
std = sysconfig.get_path("stdlib")
files = [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
print(json.dumps({"program": os.path.realpath(sys.executable), "home": os.path.relpath(std, sys.base_prefix), "std": std,
                  "files": [f for f in files if f.startswith(std + "/")]}))`

// PackPython packs a Python program with the interpreter of this machine and
// all it loads, so that it runs in an image made from nothing, in a chroot and on
// the host alike. Started by the loader in it:
//
//	python/ld.so --library-path python/lib python/bin/python3 -S merge.py     with PYTHONHOME=python
func PackPython(ctx context.Context, program string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "python3", "-I", "-S", "-c", modules, program)
	out, err := cmd.Output()
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("ask python3 what %s needs: %w", filepath.Base(program), err), "the demonstration's merge is written in Python: install python3")
	}
	var need struct {
		Program, Home, Std string
		Files              []string
	}
	if err := json.Unmarshal(out, &need); err != nil {
		return nil, fmt.Errorf("ask python3 what %s needs: %w", filepath.Base(program), err)
	}
	a := artifact.New()
	a.AddFile("merge.py", 0o644, program)
	a.AddFile("python/bin/python3", 0o755, need.Program)
	loader, libraries, err := devcluster.Libraries(need.Program)
	if err != nil || loader == "" {
		return nil, hint.Wrap(fmt.Errorf("%s is no dynamic program: %w", need.Program, err), "use the python3 of the distribution")
	}
	a.AddFile("python/ld.so", 0o755, loader)
	for _, file := range need.Files {
		rel, err := filepath.Rel(need.Std, file)
		if err != nil {
			return nil, err
		}
		a.AddFile(filepath.Join("python", need.Home, rel), 0o644, file)
		if strings.HasSuffix(file, ".so") {
			if _, more, err := devcluster.Libraries(file); err == nil {
				for name, source := range more {
					libraries[name] = source
				}
			}
		}
	}
	for name, source := range libraries {
		a.AddFile("python/lib/"+name, 0o755, source)
	}
	return a.Bytes()
}
