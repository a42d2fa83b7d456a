package commit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
)

// Forgetter is a commit point that can forget. Several may forget at once: each record goes once.
type Forgetter interface {
	// Turn says whether the caller is the first to ask in this slot of time.
	Turn(ctx context.Context, stage, slot string) (bool, error)
	// Turned says whether somebody has asked in this slot. Slots of a stage before the last one are forgotten.
	Turned(ctx context.Context, stage, slot string) (bool, error)
	// Forget removes the records of a stage that ended before a moment and that may says may go, their files first, and returns how
	// many. What is left half done by a crash is finished by the next call.
	Forget(ctx context.Context, stage string, before time.Time, may func(item.Record) (bool, error)) (int, error)
}

// Turn implements Forgetter.
func (j Journal) Turn(ctx context.Context, stage, slot string) (bool, error) {
	prefix, mine := "turn/"+stage+"/", []byte(source.NewID())
	first, err := j.KV.Create(ctx, prefix+slot, mine)
	if err != nil || string(first) != string(mine) {
		return false, err
	}
	return true, j.KV.Each(ctx, prefix, func(key string) error {
		if key == prefix+slot {
			return nil
		}
		value, err := j.KV.Get(ctx, key)
		if err == nil && value != nil {
			err = j.KV.Delete(ctx, key, value)
		}
		return err
	})
}

// Turned implements Forgetter.
func (j Journal) Turned(ctx context.Context, stage, slot string) (bool, error) {
	value, err := j.KV.Get(ctx, "turn/"+stage+"/"+slot)
	return value != nil, err
}

// Forget implements Forgetter.
func (j Journal) Forget(ctx context.Context, stage string, before time.Time, may func(item.Record) (bool, error)) (int, error) {
	removed := 0
	err := j.KV.Each(ctx, "commit/"+stage+"/", func(name string) error {
		value, err := j.KV.Get(ctx, name)
		if err != nil || value == nil {
			return err
		}
		rec, err := decode(name, value)
		if err != nil { // not ours to judge: it stays
			return nil
		}
		if !rec.Ended.Before(before) {
			return nil
		}
		if ok, err := may(rec); err != nil || !ok {
			return err
		}
		if err := j.KV.Delete(ctx, name, value); err != nil {
			return err
		}
		removed++
		return nil
	})
	if err != nil {
		return removed, fmt.Errorf("forget records of %s: %w", stage, err)
	}
	return removed, nil
}

// Names of what is no item's folder: no item's name begins with a dot.
const (
	goneName = ".gone-"
	turnName = ".turn-"
)

// Turn implements Forgetter.
func (r Rename) Turn(_ context.Context, stage, slot string) (bool, error) {
	dir := filepath.Join(r.Dir, item.FileName(stage))
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return false, err
	}
	err := os.Mkdir(filepath.Join(dir, turnName+item.FileName(slot)), 0o777)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	turns, err := filepath.Glob(filepath.Join(dir, turnName+"*"))
	for _, path := range turns {
		if filepath.Base(path) != turnName+item.FileName(slot) {
			err = errors.Join(err, ignoreMissing(os.Remove(path)))
		}
	}
	return true, err
}

// Turned implements Forgetter.
func (r Rename) Turned(_ context.Context, stage, slot string) (bool, error) {
	_, err := os.Stat(filepath.Join(r.Dir, item.FileName(stage), turnName+item.FileName(slot)))
	return err == nil, ignoreMissing(err)
}

// Forget implements Forgetter.
func (r Rename) Forget(ctx context.Context, stage string, before time.Time, may func(item.Record) (bool, error)) (int, error) {
	dir := filepath.Join(r.Dir, item.FileName(stage))
	folder, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer folder.Close()
	for removed := 0; ; {
		names, err := folder.Readdirnames(1000)
		for _, name := range names {
			if ctx.Err() != nil {
				return removed, ctx.Err()
			}
			gone, err := r.forget(filepath.Join(dir, name), before, may)
			if err != nil {
				return removed, fmt.Errorf("forget records of %s: %w", stage, err)
			}
			if gone {
				removed++
			}
		}
		if err != nil || len(names) == 0 {
			return removed, nil
		}
	}
}

func (r Rename) forget(path string, before time.Time, may func(item.Record) (bool, error)) (bool, error) {
	info, err := os.Stat(path)
	if err != nil || !info.ModTime().Before(before) { // the folder has not changed since its record was put into it
		return false, ignoreMissing(err)
	}
	if name := filepath.Base(path); strings.HasPrefix(name, ".") { // of a crash, or a turn that is over
		return false, os.RemoveAll(path)
	}
	rec, err := r.read(path)
	if err != nil || rec == nil || !rec.Ended.Before(before) {
		return false, nil
	}
	if ok, err := may(*rec); err != nil || !ok {
		return false, err
	}
	// In one step: an item never has half of its files.
	gone := filepath.Join(filepath.Dir(path), goneName+source.NewID())
	if err := os.Rename(path, gone); err != nil {
		return false, ignoreMissing(err)
	}
	return true, os.RemoveAll(gone)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Turn implements Forgetter.
func (a Artifacts) Turn(ctx context.Context, stage, slot string) (bool, error) {
	f, ok := a.Point.(Forgetter)
	if !ok {
		return false, nil
	}
	return f.Turn(ctx, stage, slot)
}

// Turned implements Forgetter.
func (a Artifacts) Turned(ctx context.Context, stage, slot string) (bool, error) {
	f, ok := a.Point.(Forgetter)
	if !ok {
		return false, nil
	}
	return f.Turned(ctx, stage, slot)
}

// Forget implements Forgetter: the uploads of all attempts at an item go, and then its record.
func (a Artifacts) Forget(ctx context.Context, stage string, before time.Time, may func(item.Record) (bool, error)) (int, error) {
	f, ok := a.Point.(Forgetter)
	if !ok {
		return 0, nil
	}
	return f.Forget(ctx, stage, before, func(rec item.Record) (bool, error) {
		if ok, err := may(rec); err != nil || !ok {
			return ok, err
		}
		err := a.Client.Each(ctx, below(a.items(rec.Stage, rec.ID), ""), func(key string) error { return a.Client.Delete(ctx, below(bucketOf(a.Base), key)) })
		return err == nil, err
	})
}
