package commit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
	"retinue/internal/disk"
)

// recordName is the record's file beside the outputs. It also makes the folder not empty, so that even a plain rename
// cannot replace it (see rename).
const recordName = "_record.json"

// Rename is a commit point on a file system that all nodes share: the folder of an attempt's outputs becomes <Dir>/<stage>/<id>
// in one step, or not at all because another one is there.
type Rename struct {
	Dir  string
	Sync bool // survive the loss of power, at about two milliseconds an item
}

// Path is the folder of an item that has ended.
func (r Rename) Path(stage, id string) string {
	return filepath.Join(r.Dir, item.FileName(stage), item.FileName(id))
}

// Commit implements Point.
func (r Rename) Commit(_ context.Context, rec item.Record, out string) (item.Record, error) {
	won, err := r.commit(rec, out)
	if err != nil {
		return won, fmt.Errorf("commit %s: %w", rec.ID, err)
	}
	return won, nil
}

func (r Rename) commit(rec item.Record, out string) (item.Record, error) {
	target := r.Path(rec.Stage, rec.ID)
	rec.Output = target
	if out == "" || !sameDevice(out, r.Dir) { // before anything is copied: a repeated offer, or one that comes too late
		if won, err := r.read(target); won != nil || err != nil {
			return orZero(won), err
		}
		if err := r.makeStage(rec.Stage); err != nil {
			return item.Record{}, err
		}
	}
	folder, err := r.prepare(rec, out)
	if err == nil {
		err = rename(folder, target)
		if errors.Is(err, fs.ErrNotExist) { // the first of its stage
			if err = r.makeStage(rec.Stage); err == nil {
				err = rename(folder, target)
			}
		}
	}
	switch {
	case err == nil:
		if r.Sync {
			err = syncPath(filepath.Dir(target))
		}
		return rec, err
	case errors.Is(err, fs.ErrExist), errors.Is(err, unix.ENOTEMPTY): // too late
		os.RemoveAll(folder)
		won, err := r.read(target)
		if won == nil && err == nil {
			err = fmt.Errorf("%s was removed while it was read", target)
		}
		return orZero(won), err
	}
	return item.Record{}, err
}

// makeStage makes the folder of a stage where there is none.
func (r Rename) makeStage(stage string) error {
	err := os.Mkdir(filepath.Join(r.Dir, item.FileName(stage)), 0o777)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err == nil && r.Sync:
		return syncPath(r.Dir)
	case errors.Is(err, fs.ErrNotExist):
		return os.MkdirAll(filepath.Join(r.Dir, item.FileName(stage)), 0o777)
	}
	return err
}

func orZero(rec *item.Record) item.Record {
	if rec == nil {
		return item.Record{}
	}
	return *rec
}

// prepare returns a folder with outputs and record on the file system of the target, complete on the disk.
func (r Rename) prepare(rec item.Record, out string) (string, error) {
	staging := filepath.Join(r.Dir, item.FileName(rec.Stage), ".tmp-"+rec.Attempt)
	folder := out
	if out == "" || !sameDevice(out, r.Dir) {
		if err := os.RemoveAll(staging); err != nil {
			return "", err
		}
		if err := os.Mkdir(staging, 0o777); err != nil {
			return "", err
		}
		if out != "" {
			if err := os.CopyFS(staging, os.DirFS(out)); err != nil {
				return "", err
			}
		}
		folder = staging
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return "", err
	}
	if err := disk.Write(filepath.Join(folder, recordName), data); err != nil {
		return "", err
	}
	if r.Sync {
		if err := syncTree(folder); err != nil {
			return "", err
		}
	}
	return folder, nil
}

// rename moves a folder where nothing is. A file system that does not know RENAME_NOREPLACE (NFS) gets a plain rename, which
// refuses to replace a folder that is not empty; a committed one has its record in it.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = unix.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Read implements Point.
func (r Rename) Read(_ context.Context, stage, id string) (*item.Record, error) {
	return r.read(r.Path(stage, id))
}

// Cheap implements Point.
func (r Rename) Cheap() bool { return true }

func (r Rename) read(folder string) (*item.Record, error) {
	data, err := os.ReadFile(filepath.Join(folder, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rec, err := decode(filepath.Base(folder), data)
	if err == nil && r.Sync && time.Since(rec.Ended) < settling {
		err = syncPath(filepath.Dir(folder))
	}
	return &rec, err
}

// settling is the age up to which a record that was read may not have its name on the disk: whoever gave it that name may have been killed before he
// saw to it, and the reader acknowledges. File systems do so by themselves within half a minute.
const settling = time.Minute

func sameDevice(a, b string) bool {
	var sa, sb unix.Stat_t
	return unix.Stat(a, &sa) == nil && unix.Stat(b, &sb) == nil && sa.Dev == sb.Dev
}

// syncers is how many files are brought to the disk at once. A file system with a journal takes all that ask at the same time into one commit.
const syncers = 8

// syncTree brings a folder and everything in it to the disk. All that is in the files is on its way before the first of them is waited for: a file
// system that finds places for it only then (ext4) would have a commit of its journal for each.
func syncTree(root string) error {
	var paths []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&(fs.ModeSymlink|fs.ModeNamedPipe|fs.ModeSocket|fs.ModeDevice) != 0 {
			return err
		}
		paths = append(paths, path)
		if d.Type().IsRegular() {
			return startWrite(path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var all errgroup.Group
	all.SetLimit(syncers)
	for _, path := range paths {
		all.Go(func() error { return syncPath(path) })
	}
	return all.Wait()
}

// startWrite begins to bring a file to the disk, and does not wait. A file system that cannot begin is told by syncPath.
func startWrite(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	return unix.Close(fd)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some file systems sync no folders
		return err
	}
	return nil
}
