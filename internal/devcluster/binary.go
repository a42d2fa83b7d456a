package devcluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"

	"retinue/internal/hint"
	"retinue/internal/toolchain"
)

// ownBinary finds a static retinue for the cluster's tasks: the running program
// if it is one, otherwise one built from the checkout that the working directory
// is in (`go run`, `go test` and a cgo build are no static retinue).
func ownBinary(ctx context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the retinue binary: %w", err)
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Path == "retinue/cmd/retinue" {
		if static, err := isStatic(self); err == nil && static {
			return self, nil
		}
	}
	root, err := toolchain.Checkout()
	if err != nil {
		return "", hint.Wrap(fmt.Errorf("%s is not a static retinue, and there is no source to build one: %w", self, err),
			"build it with `CGO_ENABLED=0 go build ./cmd/retinue` in a checkout and run that one")
	}
	return buildOwn(ctx, root)
}

// buildOwn builds retinue and its companions.
func buildOwn(ctx context.Context, root string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	dest := filepath.Join(cache, "retinue", "static")
	if err := os.MkdirAll(dest, 0o755); err != nil {
		return "", diskError(err)
	}
	names := []string{"retinue"}
	for _, c := range companions {
		names = append(names, c.name)
	}
	for _, name := range names {
		// A temporary name first: two processes may build at once.
		tmp := filepath.Join(dest, fmt.Sprintf("%s.%d", name, os.Getpid()))
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", tmp, "./cmd/"+name)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build a static %s in %s: %w\n%s", name, root, err, strings.TrimSpace(string(out)))
		}
		if err := os.Rename(tmp, filepath.Join(dest, name)); err != nil {
			return "", diskError(fmt.Errorf("build a static %s: %w", name, err))
		}
	}
	return filepath.Join(dest, "retinue"), nil
}
