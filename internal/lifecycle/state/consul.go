package state

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"time"

	consul "github.com/hashicorp/consul/api"

	"retinue/internal/hint"
)

// consulLimit is the largest value of Consul's KV store with its default configuration (limits.kv_max_value_size).
const consulLimit = 512 << 10

// Consul is a store in Consul's KV: for state that has to outlive the job's allocations and the node, up to 512 KB. The
// token needs key:write on the key and on KEY.rejected.
type Consul struct {
	Client *consul.Client
	Key    string
}

// ConsulKey is where the state of a task goes.
func ConsulKey(id Identity) string { return path.Join("retinue", "state", id.path()) }

// Limit implements Store.
func (c *Consul) Limit() int64 { return consulLimit }

// Read implements Store.
func (c *Consul) Read(ctx context.Context) ([]byte, error) {
	pair, _, err := c.Client.KV().Get(c.Key, (&consul.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("read key %s: %w", c.Key, err), "the token needs key:read there")
	}
	if pair == nil {
		return nil, ErrNone
	}
	return pair.Value, nil
}

// Write implements Store.
func (c *Consul) Write(ctx context.Context, record []byte) error {
	if _, err := c.Client.KV().Put(&consul.KVPair{Key: c.Key, Value: record}, (&consul.WriteOptions{}).WithContext(ctx)); err != nil {
		return hint.Wrap(fmt.Errorf("write key %s: %w", c.Key, err), "the token needs key:write there")
	}
	return nil
}

// Reject implements Store. The record and why it was rejected move in one transaction.
func (c *Consul) Reject(ctx context.Context, why string) error {
	pair, _, err := c.Client.KV().Get(c.Key, (&consul.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil || pair == nil {
		return err
	}
	reason, err := json.Marshal(map[string]any{"why": why, "at": time.Now().UTC()})
	if err != nil {
		return err
	}
	ops := consul.TxnOps{
		{KV: &consul.KVTxnOp{Verb: consul.KVSet, Key: c.Key + ".rejected", Value: pair.Value}},
		{KV: &consul.KVTxnOp{Verb: consul.KVSet, Key: c.Key + ".rejected.why", Value: reason}},
		{KV: &consul.KVTxnOp{Verb: consul.KVDeleteCAS, Key: c.Key, Index: pair.ModifyIndex}},
	}
	ok, answer, _, err := c.Client.Txn().Txn(ops, (&consul.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("set key %s aside: %w", c.Key, err)
	}
	if !ok && len(answer.Errors) > 0 {
		return fmt.Errorf("set key %s aside: %s", c.Key, answer.Errors[0].What)
	}
	return nil
}
