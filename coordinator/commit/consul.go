package commit

import (
	"context"
	"fmt"

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

// Get implements KV, linearizable: a stale answer would execute an item again.
func (c Consul) Get(ctx context.Context, key string) ([]byte, error) {
	token, err := c.Client.Token()
	if err != nil {
		return nil, err
	}
	pair, _, err := c.Client.KV().Get(c.Prefix+key, (&api.QueryOptions{Token: token, RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return nil, c.Client.Advice(err)
	}
	if pair == nil {
		return nil, nil
	}
	return pair.Value, nil
}
