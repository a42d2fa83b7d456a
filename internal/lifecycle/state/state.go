// Package state keeps what an application saves when it is stopped and gives it
// back when it starts again, on whichever node (section 3 of the paper).
//
// A state is one sealed record: a line that names the format, a line of JSON
// that describes the state (version, app_version, where it comes from, size,
// SHA-256), and the application's bytes. The same record goes into every store:
// the allocation's own folder, which Nomad moves with ephemeral_disk; a folder
// of the host; a key of Consul; a variable of Nomad.
//
// What it promises: Save returns when the record is durable, and a save that
// fails leaves the older record whole. Load gives back exactly what was saved,
// or an error. A record that cannot be used is set aside, never removed.
package state

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"retinue/internal/hint"
	"retinue/internal/lifecycle"
)

// Format is the version of the record.
const Format = 1

const magic = "retinue-state 1\n"

// maxMeta bounds the describing line, in bytes.
const maxMeta = 4 << 10

// Meta describes a saved state.
type Meta struct {
	Version    int       `json:"version"`
	AppVersion string    `json:"app_version,omitempty"`
	Job        string    `json:"job,omitempty"`
	Group      string    `json:"group,omitempty"`
	Task       string    `json:"task,omitempty"`
	Alloc      string    `json:"alloc,omitempty"`
	SavedAt    time.Time `json:"saved_at"`
	Size       int64     `json:"size"` // bytes
	SHA256     string    `json:"sha256"`
}

// Damaged is a record that cannot be used, and will not get better.
type Damaged struct{ Why string }

func (d *Damaged) Error() string { return "the saved state is damaged: " + d.Why }

// Damaged tells the lifecycle that the record may be set aside.
func (d *Damaged) Damaged() bool { return true }

func damaged(format string, args ...any) error { return &Damaged{fmt.Sprintf(format, args...)} }

// Seal makes a record. It sets Version, Size and SHA256.
func Seal(meta Meta, data []byte) ([]byte, error) {
	sum := sha256.Sum256(data)
	meta.Version, meta.Size, meta.SHA256 = Format, int64(len(data)), hex.EncodeToString(sum[:])
	line, err := json.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("describe the state: %w", err)
	}
	if len(line) > maxMeta {
		return nil, fmt.Errorf("the description of the state has %d bytes, %d are allowed: shorten app_version", len(line), maxMeta)
	}
	record := make([]byte, 0, len(magic)+len(line)+1+len(data))
	record = append(record, magic...)
	record = append(record, line...)
	record = append(record, '\n')
	return append(record, data...), nil
}

// Open checks a record and returns what is in it. Its error is a *Damaged.
func Open(record []byte) (Meta, []byte, error) {
	rest, ok := bytes.CutPrefix(record, []byte(magic))
	if !ok {
		first, _, _ := bytes.Cut(record[:min(len(record), 40)], []byte("\n"))
		return Meta{}, nil, damaged("it begins with %q, not with %q", first, strings.TrimSpace(magic))
	}
	line, data, ok := bytes.Cut(rest, []byte("\n"))
	if !ok || len(line) > maxMeta {
		return Meta{}, nil, damaged("its description has no end")
	}
	var meta Meta
	if err := json.Unmarshal(line, &meta); err != nil {
		return Meta{}, nil, damaged("its description: %v", err)
	}
	sum := sha256.Sum256(data)
	switch {
	case meta.Version != Format:
		return Meta{}, nil, damaged("it has version %d, this driver reads %d", meta.Version, Format)
	case meta.Size != int64(len(data)):
		return Meta{}, nil, damaged("it has %d bytes, %d were saved", len(data), meta.Size)
	case meta.SHA256 != hex.EncodeToString(sum[:]):
		return Meta{}, nil, damaged("its SHA-256 is another one")
	}
	return meta, data, nil
}

// ErrNone says that a store has no record.
var ErrNone = errors.New("no state was saved")

// Store holds one record.
type Store interface {
	// Read returns the record, or ErrNone.
	Read(ctx context.Context) ([]byte, error)
	// Write makes record the newest, durably, or leaves the older one whole.
	Write(ctx context.Context, record []byte) error
	// Reject sets the record aside, over one that was set aside before. Afterwards Read gives ErrNone.
	Reject(ctx context.Context, why string) error
	// Limit is the size of the largest record, in bytes.
	Limit() int64
}

// Keeper seals what an application saves, and opens it. It implements lifecycle.States.
type Keeper struct {
	Store   Store
	Meta    Meta             // Job, Group, Task, Alloc and AppVersion of this task
	MaxSize int64            // bytes of the application's state; 0: lifecycle.DefaultStateSize
	Now     func() time.Time // nil: time.Now
}

var _ lifecycle.States = (*Keeper)(nil)

func (k *Keeper) maxSize() int64 {
	if k.MaxSize > 0 {
		return k.MaxSize
	}
	return lifecycle.DefaultStateSize
}

// Save implements lifecycle.States.
func (k *Keeper) Save(ctx context.Context, data []byte) error {
	if int64(len(data)) > k.maxSize() {
		return hint.Wrap(fmt.Errorf("the state has %d bytes, %d are allowed", len(data), k.maxSize()), "raise max_size in save_state, or save less")
	}
	meta := k.Meta
	meta.SavedAt = time.Now().UTC()
	if k.Now != nil {
		meta.SavedAt = k.Now().UTC()
	}
	record, err := Seal(meta, data)
	if err != nil {
		return err
	}
	if limit := k.Store.Limit(); int64(len(record)) > limit {
		return hint.Wrap(fmt.Errorf("the state has %d bytes with its description, the store takes %d", len(record), limit), "save less, or use the store alloc or dir")
	}
	if err := k.Store.Write(ctx, record); err != nil {
		return fmt.Errorf("save the state: %w", err)
	}
	return nil
}

// Load implements lifecycle.States.
func (k *Keeper) Load(ctx context.Context) (lifecycle.State, bool, error) {
	record, err := k.Store.Read(ctx)
	if errors.Is(err, ErrNone) {
		return lifecycle.State{}, false, nil
	}
	if err != nil {
		return lifecycle.State{}, false, fmt.Errorf("read the saved state: %w", err)
	}
	meta, data, err := Open(record)
	if err != nil {
		return lifecycle.State{}, false, err
	}
	return lifecycle.State{Data: data, Version: meta.Version, AppVersion: meta.AppVersion, SavedAt: meta.SavedAt}, true, nil
}

// Reject implements lifecycle.States.
func (k *Keeper) Reject(ctx context.Context, why string) error { return k.Store.Reject(ctx, why) }

// Show returns the description of the newest state, without its bytes.
func (k *Keeper) Show(ctx context.Context) (Meta, error) {
	record, err := k.Store.Read(ctx)
	if err != nil {
		return Meta{}, err
	}
	meta, _, err := Open(record)
	return meta, err
}
