package devcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

const stateFormat = 1

// Tokens are the ACL tokens of a cluster; empty without ACLs.
type Tokens struct {
	Nomad        string            `json:"nomad,omitempty"`         // management
	Consul       string            `json:"consul,omitempty"`        // management
	NomadServers string            `json:"nomad_servers,omitempty"` // what Nomad servers use at Consul
	NomadClients string            `json:"nomad_clients,omitempty"` // what Nomad clients use at Consul
	Agents       map[string]string `json:"agents,omitempty"`        // Consul agents, by node
}

// state is the file state.json: all that must survive the command that wrote it.
type state struct {
	Format    int                       `json:"format"`
	Version   string                    `json:"version"` // of the retinue that made it
	Ready     bool                      `json:"ready"`   // Up came to its end
	Plan      Plan                      `json:"plan"`
	Tokens    Tokens                    `json:"tokens"`
	NomadBin  string                    `json:"nomad_bin"`
	ConsulBin string                    `json:"consul_bin"`
	Agents    map[string]procfs.Process `json:"agents"`
}

// loadState reads the state of the cluster in dir; an error that is
// fs.ErrNotExist when there is none.
func loadState(dir string) (*state, error) {
	name := filepath.Join(dir, "state.json")
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var st state
	if err := json.Unmarshal(raw, &st); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if st.Format != stateFormat {
		return nil, fmt.Errorf("read %s: format %d, this retinue writes %d", name, st.Format, stateFormat)
	}
	return &st, nil
}

// save replaces the file in one step: a reader, or a crash, sees the old state
// or the new one.
func (st *state) save() error {
	raw, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return writeFile(st.Plan.stateFile(), append(raw, '\n'), 0o600)
}

func writeFile(name string, data []byte, mode os.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return diskError(err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	return diskError(err)
}

// diskError adds advice to the failures of a folder that people can mend.
func diskError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return hint.Wrap(err, "the disk is full: free some space (a cluster needs some 300 MB), or choose another folder with --dir")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return hint.Wrap(err, "choose a folder that you may write to with --dir")
	case errors.Is(err, unix.ENOTDIR):
		return hint.Wrap(err, "a part of the path is a file: choose another folder with --dir")
	}
	return err
}

// dirLock is the lock on a cluster's folder: one up or down at a time.
type dirLock struct{ file *os.File }

// lockDir makes the folder if need be and locks it, waiting for whoever has it.
// waiting is called once when there is somebody to wait for.
func lockDir(ctx context.Context, dir string, waiting func(holder string)) (*dirLock, error) {
	name := filepath.Join(dir, "lock")
	told := false
	for {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, diskError(fmt.Errorf("make the folder: %w", err))
		}
		lock, err := tryLock(name)
		if err == nil {
			return lock, nil
		}
		// ErrNotExist: a down has removed the folder under us; make it again.
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, fs.ErrNotExist) {
			return nil, diskError(fmt.Errorf("lock the folder: %w", err))
		}
		if !told && waiting != nil {
			told = true
			raw, _ := os.ReadFile(name) // only for the message
			waiting(strings.TrimSpace(string(raw)))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the lock on %s: %w", dir, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func tryLock(name string) (*dirLock, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	// The lock counts only if the file is still the one at this path.
	mine, err1 := f.Stat()
	there, err2 := os.Stat(name)
	if err1 != nil || err2 != nil || !os.SameFile(mine, there) {
		f.Close()
		return nil, fs.ErrNotExist
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "pid %d\n", os.Getpid()) // only for the message to others
	}
	return &dirLock{file: f}, nil
}

func (l *dirLock) release() { l.file.Close() }
