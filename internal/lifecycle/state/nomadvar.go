package state

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"path"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/hint"
)

// nomadLimit is the largest record that fits into a variable: 64 KB with the names of its items, and the record in base64
// (four bytes for three).
const nomadLimit = (64<<10 - 256) / 4 * 3

// NomadVar is a store in a variable of Nomad: for small state without Consul, up to 64 KB as Nomad counts, 48 KB of record.
// A workload identity may read the variables of its job; to write them it needs a policy with variables write on the path.
type NomadVar struct {
	Client *nomad.Client
	Path   string
}

// NomadPath is where the state of a task goes: below what Nomad lets the job's own identity read.
func NomadPath(id Identity) string {
	return path.Join("nomad", "jobs", id.Job, id.Group, id.Task, fmt.Sprintf("retinue-state-%d", id.Index))
}

// Items of the variable.
const (
	itemState    = "state"
	itemRejected = "rejected"
	itemWhy      = "rejected_why"
)

// Limit implements Store.
func (v *NomadVar) Limit() int64 { return nomadLimit }

func (v *NomadVar) get(ctx context.Context) (*nomad.Variable, error) {
	got, _, err := v.Client.Variables().Read(v.Path, (&nomad.QueryOptions{}).WithContext(ctx))
	var status nomad.UnexpectedResponseError
	if errors.Is(err, nomad.ErrVariablePathNotFound) || errors.As(err, &status) && status.StatusCode() == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("read variable %s: %w", v.Path, err), "the token needs read there")
	}
	return got, nil
}

// Read implements Store.
func (v *NomadVar) Read(ctx context.Context) ([]byte, error) {
	got, err := v.get(ctx)
	if err != nil {
		return nil, err
	}
	if got == nil || got.Items[itemState] == "" {
		return nil, ErrNone
	}
	record, err := base64.StdEncoding.DecodeString(got.Items[itemState])
	if err != nil {
		return nil, damaged("variable %s is no base64: %v", v.Path, err)
	}
	return record, nil
}

// Write implements Store.
func (v *NomadVar) Write(ctx context.Context, record []byte) error {
	return v.put(ctx, func(items map[string]string) {
		items[itemState] = base64.StdEncoding.EncodeToString(record)
		// Two states do not fit into one variable.
		delete(items, itemRejected)
		delete(items, itemWhy)
	})
}

// Reject implements Store.
func (v *NomadVar) Reject(ctx context.Context, why string) error {
	return v.put(ctx, func(items map[string]string) {
		if items[itemState] == "" {
			return
		}
		items[itemRejected], items[itemWhy] = items[itemState], why[:min(len(why), 128)]
		delete(items, itemState)
	})
}

// put changes the items, and tries again when somebody else did meanwhile.
func (v *NomadVar) put(ctx context.Context, change func(map[string]string)) error {
	for {
		old, err := v.get(ctx)
		if err != nil {
			return err
		}
		next := nomad.NewVariable(v.Path)
		if old != nil {
			next.Namespace, next.ModifyIndex = old.Namespace, old.ModifyIndex
			for k, item := range old.Items {
				next.Items[k] = item
			}
		}
		change(next.Items)
		if len(next.Items) == 0 {
			return nil
		}
		_, _, err = v.Client.Variables().CheckedUpdate(next, (&nomad.WriteOptions{}).WithContext(ctx))
		var conflict nomad.ErrCASConflict
		if errors.As(err, &conflict) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return hint.Wrap(fmt.Errorf("write variable %s: %w", v.Path, err), "the token needs a policy with variables write there")
		}
		return nil
	}
}
