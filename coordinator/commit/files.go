package commit

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"retinue/coordinator/source"
)

// Files is a KV in a folder that all nodes share. New names have to be seen by all nodes at once: an NFS mount needs lookupcache=none and actimeo=0.
type Files struct {
	Dir  string
	Sync bool
}

// StoreOf is the store beside a commit point; nil when it has none.
func StoreOf(p Point) KV {
	switch p := p.(type) {
	case Journal:
		return p.KV
	case Rename:
		return Files{Dir: filepath.Join(p.Dir, ".store"), Sync: p.Sync}
	case Artifacts:
		return StoreOf(p.Point)
	}
	return nil
}

func (f Files) path(key string) string { return filepath.Join(f.Dir, filepath.FromSlash(key)) }

// Create implements KV: a complete file gets its name by link, which fails where one is.
func (f Files) Create(ctx context.Context, key string, value []byte) ([]byte, error) {
	path := f.path(key)
	dir := filepath.Dir(path)
	tmp := filepath.Join(dir, ".tmp-"+source.NewID())
	defer os.Remove(tmp)
	var err error
	for range 10 { // a folder that has become empty is removed
		if err = os.MkdirAll(dir, 0o777); err != nil {
			return nil, err
		}
		if err = os.WriteFile(tmp, value, 0o666); err == nil && f.Sync {
			err = syncPath(tmp)
		}
		if err == nil {
			err = os.Link(tmp, path)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		current, err := f.Get(ctx, key)
		if err == nil && current == nil {
			err = errors.New("key " + key + " was deleted while it was read")
		}
		if err == nil && f.Sync { // whoever made it may have been killed before it had its name on the disk
			err = syncPath(dir)
		}
		return current, err
	case err == nil && f.Sync:
		err = syncPath(dir)
	}
	return value, err
}

// Get implements KV.
func (f Files) Get(_ context.Context, key string) ([]byte, error) {
	value, err := os.ReadFile(f.path(key))
	return value, ignoreMissing(err)
}

// Each implements KV.
func (f Files) Each(_ context.Context, prefix string, see func(key string) error) error {
	return filepath.WalkDir(f.path(prefix), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".") {
			return ignoreMissing(err)
		}
		key, err := filepath.Rel(f.Dir, path)
		if err != nil {
			return err
		}
		return see(filepath.ToSlash(key))
	})
}

// Delete implements KV. The folder goes with its last file.
func (f Files) Delete(ctx context.Context, key string, value []byte) error {
	current, err := f.Get(ctx, key)
	if err != nil || current == nil || !bytes.Equal(current, value) {
		return err
	}
	if err := os.Remove(f.path(key)); err != nil {
		return ignoreMissing(err)
	}
	_ = os.Remove(filepath.Dir(f.path(key))) // it fails while there are others
	return nil
}
