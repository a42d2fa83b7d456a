package harness

import (
	"context"
	"os"
	"path/filepath"
	"sync"

	"retinue/internal/toolchain"
)

// NomadBinary is the Nomad that tests run: $RETINUE_TEST_NOMAD, or the one
// that `retinue dev` would take.
func NomadBinary(t T) string { t.Helper(); return agentBinary(t, "RETINUE_TEST_NOMAD", nomadTool) }

// ConsulBinary is the Consul that tests run: $RETINUE_TEST_CONSUL, or the one
// that `retinue dev` would take.
func ConsulBinary(t T) string { t.Helper(); return agentBinary(t, "RETINUE_TEST_CONSUL", consulTool) }

var (
	nomadTool  = sync.OnceValues(func() (string, error) { return ensure(toolchain.Nomad) })
	consulTool = sync.OnceValues(func() (string, error) { return ensure(toolchain.Consul) })
)

func ensure(tool toolchain.Tool) (string, error) {
	found, err := toolchain.Ensure(context.Background(), tool, nil)
	return found.Path, err
}

func agentBinary(t T, env string, find func() (string, error)) string {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		var err error
		if path, err = find(); err != nil {
			t.Fatalf("%v", err)
		}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return abs
}
