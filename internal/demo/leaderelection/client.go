package leaderelection

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// client writes one numbered value after the other to whoever leads, and
// repeats each until it is acknowledged, as a client of a replicated service does.
type client struct {
	leader func() string // address of the leading application, "" when nobody leads
	http   *http.Client

	mu    sync.Mutex
	acked []ack
}

// ack is a write that the application acknowledged.
type ack struct {
	seq   uint64
	token uint64
}

// run writes until the context ends; pause is the time between two writes.
func (c *client) run(ctx context.Context, pause time.Duration) {
	for seq := uint64(1); ctx.Err() == nil; seq++ {
		for ctx.Err() == nil {
			token, err := c.write(ctx, seq)
			if err == nil {
				c.mu.Lock()
				c.acked = append(c.acked, ack{seq, token})
				c.mu.Unlock()
				break
			}
			sleep(ctx, time.Millisecond)
		}
		sleep(ctx, pause)
	}
}

func (c *client) write(ctx context.Context, seq uint64) (token uint64, err error) {
	addr := c.leader()
	if addr == "" {
		return 0, fmt.Errorf("nobody leads")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	body, _ := json.Marshal(map[string]uint64{"seq": seq})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/write", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		return 0, fmt.Errorf("write %d: %s: %s", seq, resp.Status, text)
	}
	var answer struct {
		Token uint64 `json:"token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return 0, fmt.Errorf("write %d: %w", seq, err)
	}
	return answer.Token, nil
}

func (c *client) acknowledged() []ack {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]ack(nil), c.acked...)
}

// waitFor blocks until the client holds an acknowledgement under a token above after.
func (c *client) waitFor(ctx context.Context, after uint64) error {
	for {
		c.mu.Lock()
		ok := len(c.acked) > 0 && c.acked[len(c.acked)-1].token > after
		c.mu.Unlock()
		if ok {
			return nil
		}
		if !sleep(ctx, time.Millisecond) {
			return fmt.Errorf("no write was acknowledged under a token above %d: %w", after, context.Cause(ctx))
		}
	}
}

// sleep waits for d and says whether it was the time that passed, not the context that ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
