package commit

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/consul/api"

	"retinue/internal/consulkit"
)

// Consul is a KV in Consul, below a prefix. Each record is a Raft entry that stays: it is for low rates.
type Consul struct {
	Client *consulkit.Client
	Prefix string // ends with a slash
}

// Create implements KV with cas=0: Consul sets the key only if it does not exist.
func (c Consul) Create(ctx context.Context, key string, value []byte) ([]byte, error) {
	token, err := c.Client.Token()
	if err != nil {
		return nil, err
	}
	created, _, err := c.Client.KV().CAS(&api.KVPair{Key: c.Prefix + key, Value: value}, (&api.WriteOptions{Token: token}).WithContext(ctx))
	if err != nil {
		return nil, c.Client.Advice(err)
	}
	if created {
		return value, nil
	}
	current, err := c.Get(ctx, key)
	if err == nil && current == nil {
		err = fmt.Errorf("key %s was deleted while it was read", c.Prefix+key)
	}
	return current, err
}

// Get implements KV.
func (c Consul) Get(ctx context.Context, key string) ([]byte, error) {
	pair, err := c.pair(ctx, key)
	if err != nil || pair == nil {
		return nil, err
	}
	return pair.Value, nil
}

// pair reads, linearizable: a stale answer would execute an item again.
func (c Consul) pair(ctx context.Context, key string) (*api.KVPair, error) {
	token, err := c.Client.Token()
	if err != nil {
		return nil, err
	}
	pair, _, err := c.Client.KV().Get(c.Prefix+key, (&api.QueryOptions{Token: token, RequireConsistent: true}).WithContext(ctx))
	return pair, c.Client.Advice(err)
}

// Each implements KV. All names come in one answer.
func (c Consul) Each(ctx context.Context, prefix string, see func(key string) error) error {
	token, err := c.Client.Token()
	if err != nil {
		return err
	}
	keys, _, err := c.Client.KV().Keys(c.Prefix+prefix, "", (&api.QueryOptions{Token: token, RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return c.Client.Advice(err)
	}
	for _, key := range keys {
		if err := see(strings.TrimPrefix(key, c.Prefix)); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements KV, if nothing has changed since the look.
func (c Consul) Delete(ctx context.Context, key string, value []byte) error {
	pair, err := c.pair(ctx, key)
	if err != nil || pair == nil || !bytes.Equal(pair.Value, value) {
		return err
	}
	token, err := c.Client.Token()
	if err != nil {
		return err
	}
	_, _, err = c.Client.KV().DeleteCAS(pair, (&api.WriteOptions{Token: token}).WithContext(ctx))
	return c.Client.Advice(err)
}
