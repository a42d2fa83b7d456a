package coordinator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"retinue/coordinator/blob"
	"retinue/coordinator/commit"
	"retinue/coordinator/source/dial"
	"retinue/coordinator/worker"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
)

// withInputs lets a worker have inputs that lie elsewhere, where they are allowed.
func (s Settings) withInputs(w worker.Worker, beat func(id string, again bool)) (worker.Worker, error) {
	_, addresses := s.allowed()
	if len(addresses) == 0 {
		return w, nil
	}
	var prefixes []blob.Prefix
	for _, a := range addresses {
		p, err := blob.ParsePrefix(a)
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
		prefixes = append(prefixes, p)
	}
	dir := s.Input.Cache
	if dir == "" {
		dir = filepath.Join(s.Worker.Work, "cache")
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		p := &reader{}
		size := p.size("cache_size", s.Input.CacheSize)
		var cache *blob.Cache
		if cache, err = blob.NewCache(dir, size, prefixes, blob.ReadEnvironment(os.Getenv)); err == nil {
			return &worker.Inputs{Worker: w, Fetcher: cache, Remote: blob.Remote, Blame: blob.Blame, Refuse: func(err error) bool { return errors.Is(err, blob.ErrTooLarge) }, Beat: beat}, nil
		}
	}
	return nil, errors.Join(hint.Wrap(fmt.Errorf("open the cache of inputs: %w", err), "--cache names a folder that this one may write to and that the worker shares"), w.Close())
}

// artifacts puts an object store for files before a commit point for records.
func (s Settings) artifacts(ctx context.Context, records commit.Point) (commit.Point, error) {
	base, err := artifactsBase(s.Output.Artifacts)
	if err != nil {
		return nil, err
	}
	a := commit.Artifacts{Point: records, Client: blob.NewClient(blob.ReadEnvironment(os.Getenv), nil), Base: base}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := a.Probe(ctx); err != nil {
		return nil, withHint(fmt.Errorf("write to %s: %w", s.Output.Artifacts, err), storeHint)
	}
	return a, nil
}

// openJournal opens the store of the records.
func (s Settings) openJournal(ctx context.Context) (commit.KV, error) {
	j, err := parseJournal(s.Output.Journal)
	if err != nil {
		return nil, err
	}
	switch j.store {
	case "broker":
		return dial.Journal(s.Source.Broker, j.name)
	case "s3":
		b := commit.Bucket{Client: blob.NewClient(blob.ReadEnvironment(os.Getenv), nil), Base: j.base}
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		if err := b.Probe(ctx); err != nil {
			return nil, withHint(fmt.Errorf("try the journal %s: %w", s.Output.Journal, err), storeHint)
		}
		return b, nil
	}
	client, err := consulkit.New(consulkit.Config{MaxConns: 8})
	if err != nil {
		return nil, err
	}
	return commit.Consul{Client: client, Prefix: j.prefix()}, nil
}

const storeHint = "the bucket must exist, and the key in AWS_ACCESS_KEY_ID (or AWS_SHARED_CREDENTIALS_FILE) may put, get, list and delete objects below that prefix; AWS_ENDPOINT_URL names a store that is not AWS"

// withHint adds a hint to an error that has none.
func withHint(err error, text string) error {
	if hint.Of(err) != "" {
		return err
	}
	return hint.Wrap(err, "%s", text)
}
