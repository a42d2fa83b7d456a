package leaderelection

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// tenure is a leadership as Consul shows it to anybody.
type tenure struct {
	Token   uint64    // Raft index of the lock
	Alloc   string    // the leading allocation
	Address string    // of the leading application
	Seen    time.Time // when the watch saw it
}

// watch follows the record of an election.
type watch struct {
	mu      sync.Mutex
	current tenure // zero while nobody leads
	past    []tenure
	changed chan struct{}
}

// follow starts a watch of the key that lasts until the context ends.
func follow(ctx context.Context, client *consul.Client, key string) *watch {
	w := &watch{changed: make(chan struct{})}
	go func() {
		var index uint64
		for ctx.Err() == nil {
			pair, meta, err := client.KV().Get(key, (&consul.QueryOptions{WaitIndex: index, WaitTime: time.Minute}).WithContext(ctx))
			if err != nil {
				sleep(ctx, 100*time.Millisecond)
				continue
			}
			if index = meta.LastIndex; index == 0 {
				index = 1
			}
			w.see(pair)
		}
	}()
	return w
}

func (w *watch) see(pair *consul.KVPair) {
	var now tenure
	if pair != nil && pair.Session != "" {
		var record struct {
			Alloc   string `json:"alloc"`
			Address string `json:"address"`
			Session string `json:"session"`
			Token   uint64 `json:"token"`
		}
		if json.Unmarshal(pair.Value, &record) == nil {
			// The token is the index at which the lock was taken. The leader writes it into the
			// record afterwards; until then the record is as the lock left it.
			token := pair.ModifyIndex
			if record.Token != 0 && record.Session == pair.Session {
				token = record.Token
			}
			now = tenure{Token: token, Alloc: record.Alloc, Address: record.Address, Seen: time.Now()}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = now
	if now.Token != 0 && (len(w.past) == 0 || w.past[len(w.past)-1].Token != now.Token) {
		w.past = append(w.past, now)
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// leader returns the address of the leading application, or "".
func (w *watch) leader() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current.Address
}

// next waits for a leadership with a token above after.
func (w *watch) next(ctx context.Context, after uint64) (tenure, error) {
	for {
		w.mu.Lock()
		now, changed := w.current, w.changed
		w.mu.Unlock()
		if now.Token > after {
			return now, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return tenure{}, fmt.Errorf("no leader with a token above %d: %w", after, context.Cause(ctx))
		}
	}
}

// tenures returns every leadership seen so far, in order.
func (w *watch) tenures() []tenure {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]tenure(nil), w.past...)
}
