package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// diskBytes is the size of the file system for the contenders' files; the image behind it takes what is written.
const diskBytes = 8 << 30

// openDisk makes a file system as nodes have it, ext4 with its journal, and mounts it for the contenders' files. The root of a small virtual
// machine may be one without: ext4 then looks at every file that was removed in the last seconds when it makes a new one, and
// what is measured is that. It returns how the files lie, for the report.
func (q *queueRig) openDisk(ctx context.Context) (how string, closeDisk func(), err error) {
	image, at := filepath.Join(q.dir, "disk.img"), filepath.Join(q.dir, "disk")
	run := func(name string, args ...string) error {
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return "", nil, err
	}
	f, err := os.Create(image)
	if err != nil {
		return "", nil, err
	}
	if err := f.Truncate(diskBytes); err != nil {
		f.Close()
		return "", nil, err
	}
	if err := f.Close(); err != nil {
		return "", nil, err
	}
	if err := run("mkfs.ext4", "-q", image); err != nil {
		return "", nil, err
	}
	if err := run("mount", "-o", "loop", image, at); err != nil {
		return "", nil, err
	}
	before := q.files
	q.files = at
	return "The files are on ext4 with a journal, in an image.", func() {
		q.files = before
		_ = exec.Command("umount", at).Run() // the folder of the run goes all the same
	}, nil
}
