package commit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"retinue/coordinator/blob"
	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// Bucket is a KV in an object store, which has to honour If-None-Match: see Probe.
type Bucket struct {
	Client *blob.Client
	Base   *url.URL // s3://BUCKET/PREFIX
}

// Create implements KV.
func (b Bucket) Create(ctx context.Context, key string, value []byte) ([]byte, error) {
	err := b.Client.Create(ctx, below(b.Base, key), value)
	if err == nil || !errors.Is(err, blob.ErrExists) {
		return value, err
	}
	current, err := b.Get(ctx, key)
	if err == nil && current == nil {
		err = fmt.Errorf("key %s was deleted while it was read", key)
	}
	return current, err
}

// Get implements KV.
func (b Bucket) Get(ctx context.Context, key string) ([]byte, error) {
	value, _, err := b.Client.ReadAll(ctx, below(b.Base, key), MaxRecord)
	return value, err
}

// Each implements KV.
func (b Bucket) Each(ctx context.Context, prefix string, see func(key string) error) error {
	root := strings.TrimPrefix(below(b.Base, "").Path, "/")
	return b.Client.Each(ctx, below(b.Base, prefix), func(key string) error { return see(strings.TrimPrefix(key, root)) })
}

// Delete implements KV. Stores cannot delete under a condition: another value that appears between the look and the deed goes with it.
func (b Bucket) Delete(ctx context.Context, key string, value []byte) error {
	current, err := b.Get(ctx, key)
	if err != nil || current == nil || !bytes.Equal(current, value) {
		return err
	}
	return b.Client.Delete(ctx, below(b.Base, key))
}

// Probe finds out whether the store creates an object only where none is. One that does not would let two attempts commit.
func (b Bucket) Probe(ctx context.Context) error {
	u := below(b.Base, "probe/"+source.NewID())
	if err := b.Client.Create(ctx, u, []byte("one")); err != nil {
		return err
	}
	err := b.Client.Create(ctx, u, []byte("two"))
	left := b.Client.Delete(ctx, u)
	switch {
	case err == nil:
		return hint.Wrap(fmt.Errorf("%s does not honour If-None-Match: it replaced an object that was there", b.Base), "two attempts could commit the same item there; use a store that has conditional writes (S3, MinIO), or another journal")
	case !errors.Is(err, blob.ErrExists):
		return err
	}
	return left
}
