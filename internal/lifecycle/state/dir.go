package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"retinue/internal/hint"
	"retinue/internal/lifecycle"
)

// Dir is a store in a folder. It never leaves Root: a symbolic link that a task has put there leads nowhere else.
//
// Its files are `state`, `state.rejected` with `state.rejected.why`, and `state.tmp` while one is written.
type Dir struct {
	Root string // exists
	Path string // below Root, with slashes; made when it is not there
}

// Alloc is the store in an allocation's shared folder, which Nomad moves to the next allocation when the group has
// ephemeral_disk { sticky = true  migrate = true }.
func Alloc(sharedDir, task string) *Dir {
	return &Dir{Root: sharedDir, Path: path.Join("data", "retinue", segment(task))}
}

// Host is the store in a folder of the host, such as a host volume. Allowed are the folders that the operator of the client
// has opened for it; below each of them everything is allowed.
func Host(dir string, allowed []string, id Identity) (*Dir, error) {
	dir = filepath.Clean(dir)
	open := slices.ContainsFunc(allowed, func(a string) bool {
		a = filepath.Clean(a)
		return filepath.IsAbs(a) && (dir == a || strings.HasPrefix(dir, strings.TrimSuffix(a, "/")+"/"))
	})
	if !open {
		return nil, hint.Wrap(fmt.Errorf("the folder %s is not open for saved state on this client", dir), "the operator allows it with state_dirs in the plugin's configuration; allowed are: %s", strings.Join(append(allowed, "none"), " "))
	}
	return &Dir{Root: dir, Path: path.Join("retinue", id.path())}, nil
}

// Identity says whose state it is, over all allocations: that of one instance of a task of a job.
type Identity struct {
	Namespace, Job, Group, Task string
	Index                       int // of the allocation in its group
}

func (id Identity) path() string {
	ns := id.Namespace
	if ns == "" {
		ns = "default"
	}
	return path.Join(segment(ns), segment(id.Job), segment(id.Group), segment(id.Task), fmt.Sprint(id.Index))
}

// segment makes one part of a path of a name: letters, digits, - and _ stand, and every other byte becomes %XX.
func segment(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' && i > 0 {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "%%%02X", c)
	}
	if b.Len() == 0 {
		return "%"
	}
	return b.String()
}

// Limit implements Store.
func (d *Dir) Limit() int64 { return lifecycle.MaxStateSize + maxMeta + int64(len(magic)) }

// in opens the folder, and makes it with create.
func (d *Dir) in(create bool, f func(*os.Root) error) error {
	root, err := os.OpenRoot(d.Root)
	if err != nil {
		return hint.Wrap(err, "the folder must exist on the client")
	}
	defer root.Close()
	if create {
		if err := root.MkdirAll(d.Path, 0o700); err != nil {
			return err
		}
	}
	sub, err := root.OpenRoot(d.Path)
	if err != nil {
		return err
	}
	defer sub.Close()
	return f(sub)
}

// Read implements Store.
func (d *Dir) Read(context.Context) (record []byte, err error) {
	err = d.in(false, func(dir *os.Root) error {
		// A pipe in the place of the file must not hold up a start.
		f, err := dir.OpenFile("state", os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return damaged("it is no regular file")
		}
		record, err = io.ReadAll(io.LimitReader(f, d.Limit()+1))
		if err == nil && int64(len(record)) > d.Limit() {
			return damaged("it has more than %d bytes", d.Limit())
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	return record, err
}

// Write implements Store.
func (d *Dir) Write(_ context.Context, record []byte) error {
	return d.in(true, func(dir *os.Root) error {
		return d.replace(dir, "state", record)
	})
}

// replace writes a file beside name, makes it durable and renames it.
func (d *Dir) replace(dir *os.Root, name string, data []byte) (err error) {
	tmp := name + ".tmp"
	if err := dir.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = dir.Remove(tmp) // what failed is said already
		}
	}()
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := dir.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename durable.
func syncDir(dir *os.Root) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Reject implements Store.
func (d *Dir) Reject(_ context.Context, why string) error {
	err := d.in(false, func(dir *os.Root) error {
		if err := dir.Rename("state", "state.rejected"); err != nil {
			return err
		}
		return d.replace(dir, "state.rejected.why", []byte(why+"\n"))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
