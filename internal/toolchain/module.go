package toolchain

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"retinue/internal/hint"
)

// Checkout finds the folder of the root module around the working directory.
func Checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		raw, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(raw), "module retinue\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("the working directory is in no checkout of retinue")
		}
	}
}

// BuildModule builds a program of a Go module on this machine into the user's
// cache folder, as a static binary, and returns its path. It is built again
// only when a file of the module, or Go itself, has changed.
func BuildModule(ctx context.Context, module, pkg string) (string, error) {
	content, err := contentOf(module)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	name := filepath.Base(pkg)
	dest := filepath.Join(cache, "retinue", "tools", name+"-"+content, name)
	if _, err := os.Stat(dest); err == nil {
		return dest, nil
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", hint.Wrap(fmt.Errorf("build %s: %w", pkg, err), "install Go")
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return "", spaceHint(fmt.Errorf("make the cache folder: %w", err))
	}
	// A temporary name first: two processes may build at once.
	tmp := fmt.Sprintf("%s.%d", dest, os.Getpid())
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", tmp, pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", hint.Wrap(fmt.Errorf("build %s: %w\n%s", pkg, err, strings.TrimSpace(string(out))),
			"it needs Go, space on the disk, and the network for the modules the first time")
	}
	if err := os.Rename(tmp, dest); err != nil {
		return "", spaceHint(fmt.Errorf("build %s: %w", pkg, err))
	}
	return dest, nil
}

// contentOf is a short hash of what goes into the build of a module.
func contentOf(module string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
	err := filepath.WalkDir(module, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if name := d.Name(); name != "go.mod" && name != "go.sum" && (!strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go")) {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(module, path)
		fmt.Fprintln(h, rel, len(raw))
		h.Write(raw)
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:16], err
}
