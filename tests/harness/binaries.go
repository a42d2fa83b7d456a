package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// RepoRoot is the folder of the root module.
func RepoRoot(t T) string {
	t.Helper()
	dir, err := repoRoot()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return dir
}

var repoRoot = sync.OnceValues(func() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module retinue\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not below the root module of the project")
		}
		dir = parent
	}
})

// RetinueBinary is the path of the project's binary as users get it: static,
// so that it also runs in an image made from nothing. $RETINUE_BIN names one
// that is built already.
func RetinueBinary(t T) string {
	t.Helper()
	if path := os.Getenv("RETINUE_BIN"); path != "" {
		return path
	}
	return build(t, staticBuild)
}

// RetinueRaceBinary is the project's binary with the race detector: it ends
// with exit code 66 after a data race.
func RetinueRaceBinary(t T) string { t.Helper(); return build(t, raceBuild) }

type buildMode struct {
	name string
	env  string
	args []string
}

var (
	staticBuild = buildMode{"retinue", "CGO_ENABLED=0", nil}
	raceBuild   = buildMode{"retinue-race", "CGO_ENABLED=1", []string{"-race"}}
)

var builds struct {
	sync.Mutex
	path map[string]string
}

// build makes a binary once per run. Runs share the output, which go build
// leaves alone when it is up to date; each has a link of its own to it, so that
// a rebuild by somebody else does not change a program under a test.
func build(t T, mode buildMode) string {
	t.Helper()
	root := RepoRoot(t)
	r := theRun(t)
	builds.Lock()
	defer builds.Unlock()
	if path := builds.path[mode.name]; path != "" {
		return path
	}
	path, err := buildShared(root, r.dir, mode)
	if err != nil {
		t.Fatalf("build %s: %v", mode.name, err)
	}
	if builds.path == nil {
		builds.path = map[string]string{}
	}
	builds.path[mode.name] = path
	return path
}

func buildShared(root, dir string, mode buildMode) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "retinue", "tests", strings.ReplaceAll(strings.Trim(root, "/"), "/", "-"))
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, mode.name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	own := filepath.Join(dir, mode.name)
	programs := map[string]string{own: "./cmd/retinue"}
	if mode.name == staticBuild.name { // what a cluster ships
		for _, name := range []string{"retinue-broker", "retinue-elector", "retinue-coordinator"} {
			programs[filepath.Join(dir, name)] = "./cmd/" + name
		}
	}
	for path, program := range programs {
		shared := filepath.Join(cache, filepath.Base(path))
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath"}, mode.args...), "-o", shared, program)...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), mode.env)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w\n%s", err, out)
		}
		data, err := os.ReadFile(shared)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			return "", err
		}
	}
	return own, nil
}
