package commit

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Redis is a KV in Redis: SET NX below a prefix. It keeps a record as well as it keeps anything: what a failover or a crash without
// appendfsync always loses can be committed again.
type Redis struct {
	DB     *redis.Client
	Prefix string
}

// Create implements KV.
func (r Redis) Create(ctx context.Context, key string, value []byte) ([]byte, error) {
	created, err := r.DB.SetNX(ctx, r.Prefix+key, value, 0).Result()
	if err != nil {
		return nil, err
	}
	if created {
		return value, nil
	}
	current, err := r.Get(ctx, key)
	if err == nil && current == nil {
		err = fmt.Errorf("key %s was deleted while it was read", r.Prefix+key)
	}
	return current, err
}

// Get implements KV.
func (r Redis) Get(ctx context.Context, key string) ([]byte, error) {
	value, err := r.DB.Get(ctx, r.Prefix+key).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return value, err
}

// Each implements KV. All keys of the database are looked at, a thousand at a time.
func (r Redis) Each(ctx context.Context, prefix string, see func(key string) error) error {
	glob := strings.NewReplacer("*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`, `\`, `\\`).Replace(r.Prefix+prefix) + "*"
	seen := map[string]bool{} // a scan may return a key twice
	for cursor := uint64(0); ; {
		keys, next, err := r.DB.Scan(ctx, cursor, glob, 1000).Result()
		if err != nil {
			return err
		}
		for _, key := range keys {
			if key = strings.TrimPrefix(key, r.Prefix); seen[key] {
				continue
			}
			seen[key] = true
			if err := see(key); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

var deleteIfSame = redis.NewScript(`if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`)

// Delete implements KV.
func (r Redis) Delete(ctx context.Context, key string, value []byte) error {
	return deleteIfSame.Run(ctx, r.DB, []string{r.Prefix + key}, value).Err()
}
