// Package commit is the commit point of the work queue: the one place that
// decides, for all nodes, which attempt at an item counts.
//
// What it promises: of all records that are offered for an item, the first one
// is created and every later offer is told that one. An offer whose answer was
// lost may be repeated: it finds its own record. A record that was returned is
// durable as its store is.
package commit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"retinue/coordinator/item"
)

// Point creates records.
type Point interface {
	// Commit offers rec, with the files in the folder out ("": none), and returns the record that counts: rec itself when
	// its Attempt is the winner's. On an error the outcome is not known; offer the same again.
	Commit(ctx context.Context, rec item.Record, out string) (item.Record, error)
	// Read returns the record of an item, nil when it has none.
	Read(ctx context.Context, stage, id string) (*item.Record, error)
	// Cheap says that Read costs next to nothing, so that it is worth asking before every attempt.
	Cheap() bool
}

// KV is a key-value store that can create a key if, and only if, it is absent.
type KV interface {
	// Create returns the value that the key has afterwards: the given one or that of whoever was first.
	Create(ctx context.Context, key string, value []byte) ([]byte, error)
	// Get returns nil for a key that is absent.
	Get(ctx context.Context, key string) ([]byte, error)
	// Each calls see with every key that begins with prefix, which ends with a slash, until see returns an error. What was created before the call is
	// among them; what is created or deleted meanwhile may be.
	Each(ctx context.Context, prefix string, see func(key string) error) error
	// Delete removes a key that has this value; another value, or none, stays as it is.
	Delete(ctx context.Context, key string, value []byte) error
}

// MaxRecord is how large a record in a key-value store may be: Consul takes 512 KiB.
const MaxRecord = 480 << 10

// ErrTooLarge: a record does not fit into the journal, or a file into the object store. Time does not heal it.
type ErrTooLarge struct {
	Size, Limit int64
	What        string
}

func (e ErrTooLarge) Error() string {
	return fmt.Sprintf("the %s of %d bytes is larger than %d", e.What, e.Size, e.Limit)
}

// Journal is a commit point in a key-value store. It keeps no files: outputs travel in the record.
type Journal struct{ KV KV }

func key(stage, id string) string { return "commit/" + stage + "/" + item.FileName(id) }

// Commit implements Point.
func (j Journal) Commit(ctx context.Context, rec item.Record, _ string) (item.Record, error) {
	value, err := encode(rec)
	if err != nil {
		return item.Record{}, fmt.Errorf("commit %s: %w", rec.ID, err)
	}
	if len(value) > MaxRecord {
		return item.Record{}, fmt.Errorf("commit %s: %w", rec.ID, ErrTooLarge{int64(len(value)), MaxRecord, "record"})
	}
	current, err := j.KV.Create(ctx, key(rec.Stage, rec.ID), value)
	if err != nil {
		return item.Record{}, fmt.Errorf("commit %s: %w", rec.ID, err)
	}
	return decode(rec.ID, current)
}

// Read implements Point.
func (j Journal) Read(ctx context.Context, stage, id string) (*item.Record, error) {
	value, err := j.KV.Get(ctx, key(stage, id))
	if err != nil || value == nil {
		return nil, err
	}
	rec, err := decode(id, value)
	return &rec, err
}

// Cheap implements Point.
func (j Journal) Cheap() bool { return false }

// stored is a record as it lies in a journal: a result that goes to the next stage as it is stands there once.
type stored struct {
	item.Record
	ResultIsNext bool `json:"result_is_next,omitempty"`
}

func encode(rec item.Record) ([]byte, error) {
	s := stored{Record: rec}
	if len(rec.Result) > 0 && len(rec.Next) > 0 && bytes.Equal(rec.Result, rec.Next[0].Body) {
		s.Result, s.ResultIsNext = nil, true
	}
	return json.Marshal(s)
}

func decode(id string, value []byte) (item.Record, error) {
	var s stored
	if err := json.Unmarshal(value, &s); err != nil {
		return s.Record, fmt.Errorf("read the record of %s: %w", id, err)
	}
	if s.ResultIsNext && len(s.Next) > 0 {
		s.Result = s.Next[0].Body
	}
	return s.Record, nil
}
