package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"retinue/coordinator/item"
	"retinue/internal/disk"
)

// The files of an attempt's folder by which a worker shows that there is progress, and how much.
const (
	heartbeatName = "heartbeat"
	progressName  = "progress.json"
)

// MaxProgress bounds what an attempt says of how far it is, in bytes.
const MaxProgress = 4 << 10

// Progressive is a worker whose attempts can say how far they are.
type Progressive interface {
	// Progress is the JSON that a running attempt has written; nil where there is none, or nothing that can be read.
	Progress(task *item.Task) json.RawMessage
}

// ParseProgress returns data when it is what an attempt may say: JSON of at most MaxProgress bytes.
func ParseProgress(data []byte) (json.RawMessage, bool) {
	data = bytes.TrimSpace(data)
	return data, len(data) <= MaxProgress && json.Valid(data)
}

// progressOf reads what stands in an attempt's folder. A worker that writes it without a rename may be in the middle of it.
func progressOf(dir string) json.RawMessage {
	data, err := disk.Read(filepath.Join(dir, progressName), MaxProgress)
	if err != nil {
		return nil
	}
	said, ok := ParseProgress(data)
	if !ok {
		return nil
	}
	return said
}

// Signs notices progress in the folders of attempts.
type Signs struct {
	Every time.Duration // how often is looked; 0: never, as nobody waits for signs
	Beat  func(id string, again bool)
}

// SignsWithin are looked for often enough that one within limit is seen; a limit of 0 is none.
func SignsWithin(limit time.Duration, beat func(id string, again bool)) Signs {
	return Signs{Every: min(limit/4, time.Second), Beat: beat}
}

// follow tells of each sign in dir until ctx ends or stop is called.
func (s Signs) follow(ctx context.Context, dir, id string) (stop func()) {
	if s.Every == 0 || dir == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		tick := time.NewTicker(s.Every)
		defer tick.Stop()
		for last := (sign{}); ; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if last.changed(dir) {
				s.Beat(id, false)
			}
		}
	}()
	return cancel
}

// sign is when a worker showed progress last, by the clock of whoever keeps the files: it is compared with itself alone.
type sign struct{ at [2]time.Time }

// changed says whether there was another sign since it was asked last.
func (s *sign) changed(dir string) bool {
	now := sign{}
	for i, name := range []string{heartbeatName, progressName} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
			now.at[i] = info.ModTime()
		}
	}
	before := *s
	*s = now
	return now != before
}
