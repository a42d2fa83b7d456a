package devcluster

import (
	"debug/elf"
	"os"
	"path/filepath"
)

// chrootFiles is what a task of the exec driver sees of the host: a shell and a
// few small tools with the libraries they load, names and certificates, and the
// retinue binary. Nomad hard-links each file for each task.
func chrootFiles(retinueBin string) map[string]string {
	files := map[string]string{retinueBin: taskBinary}
	for _, c := range companions {
		if path := c.beside(retinueBin); path != "" {
			files[path] = c.inTask()
		}
	}
	for _, name := range []string{"/etc/passwd", "/etc/group", "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl/certs/ca-certificates.crt"} {
		addFile(files, name, name)
	}
	for _, name := range []string{"sh", "cat", "sleep", "env", "ls", "date", "id", "mkdir", "rm", "kill", "head", "tail"} {
		for _, dir := range []string{"/bin", "/usr/bin"} {
			if addProgram(files, filepath.Join(dir, name), "/bin/"+name) {
				break
			}
		}
	}
	return files
}

// addFile maps the real file behind source to dest: a symbolic link copied as it
// is would point to nothing in there.
func addFile(files map[string]string, source, dest string) bool {
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return false
	}
	info, err := os.Stat(real)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	if _, taken := files[real]; !taken {
		files[real] = dest
	}
	return true
}

func addProgram(files map[string]string, source, dest string) bool {
	if !addFile(files, source, dest) {
		return false
	}
	addLibraries(files, source, map[string]bool{})
	return true
}

// addLibraries follows the ELF headers: the loader, and every library needed by
// the file or by those libraries.
func addLibraries(files map[string]string, name string, seen map[string]bool) {
	f, err := elf.Open(name)
	if err != nil {
		return // a script or something odd: it will fail by itself, in the task
	}
	defer f.Close()
	if loader := interpreter(f); loader != "" {
		addFile(files, loader, loader)
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return
	}
	for _, lib := range libs {
		if seen[lib] {
			continue
		}
		seen[lib] = true
		for _, dir := range libraryDirs() {
			path := filepath.Join(dir, lib)
			if addFile(files, path, path) {
				addLibraries(files, path, seen)
				break
			}
		}
	}
}

// Libraries returns the shared libraries that a program or a library loads, by
// the names they are loaded under, and the loader that starts the program ("" for a library).
func Libraries(name string) (loader string, libraries map[string]string, err error) {
	f, err := elf.Open(name)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	files := map[string]string{}
	addLibraries(files, name, map[string]bool{})
	libraries = map[string]string{}
	for source, dest := range files {
		if dest == interpreter(f) {
			loader = source
		} else {
			libraries[filepath.Base(dest)] = source
		}
	}
	return loader, libraries, nil
}

// libraryDirs are the loader's usual folders; what is installed elsewhere is
// not among the small tools.
func libraryDirs() []string {
	dirs := []string{"/lib64", "/usr/lib64"}
	for _, pattern := range []string{"/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*"} {
		found, err := filepath.Glob(pattern)
		if err == nil {
			dirs = append(dirs, found...)
		}
	}
	return append(dirs, "/lib", "/usr/lib")
}

func interpreter(f *elf.File) string {
	for _, prog := range f.Progs {
		if prog.Type != elf.PT_INTERP {
			continue
		}
		raw := make([]byte, prog.Filesz)
		if _, err := prog.ReadAt(raw, 0); err != nil || len(raw) == 0 {
			return ""
		}
		return string(raw[:len(raw)-1])
	}
	return ""
}

// isStatic says whether a program needs nothing but the kernel, as it must in a
// scratch image and in a chroot.
func isStatic(name string) (bool, error) {
	f, err := elf.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	return err == nil && len(libs) == 0 && interpreter(f) == "", nil
}
