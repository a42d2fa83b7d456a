package worker

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"retinue/coordinator/item"
)

// Fetcher brings inputs by reference to the disk.
type Fetcher interface {
	// Fetch returns the path of a link to the payload, which belongs to attempt until Release; progress is called as it comes.
	Fetch(ctx context.Context, ref item.Reference, attempt string, progress func()) (string, error)
	Release(attempt string)
	// Counts are what happened since the start: inputs that were there, were fetched, could not be had, and the bytes that came.
	Counts() (hits, fetched, failed, bytes uint64)
}

// Inputs fetches what lies elsewhere before another worker is called. Fetching is no time of the attempt: it may take as long as
// something arrives, and what is wrong with a store is not counted.
type Inputs struct {
	Worker
	Fetcher Fetcher
	Remote  func(address string) bool
	Blame   func(error) bool // the reference is to blame, not the store
	Refuse  func(error) bool // nor will another attempt help
	// Beat is told that an attempt makes progress; again: its time begins anew.
	Beat func(id string, again bool)
}

// Complete passes on what a worker that answered 202 says later.
func (w *Inputs) Complete(id string, fence uint64, v Verdict) bool {
	async, ok := w.Worker.(interface {
		Complete(id string, fence uint64, v Verdict) bool
	})
	return ok && async.Complete(id, fence, v)
}

// Progress implements Progressive, where the worker does.
func (w *Inputs) Progress(task *item.Task) json.RawMessage {
	if p, ok := w.Worker.(Progressive); ok {
		return p.Progress(task)
	}
	return nil
}

// Call implements Worker.
func (w *Inputs) Call(ctx context.Context, tasks []*item.Task) []Verdict {
	verdicts := make([]Verdict, len(tasks))
	var whole []*item.Task
	var at []int
	for i, task := range tasks {
		if task.Input != nil && w.Remote(task.Input.URL) {
			defer w.Fetcher.Release(task.Attempt)
			if v, ok := w.fetch(ctx, task); !ok {
				verdicts[i] = v
				continue
			}
		}
		whole, at = append(whole, task), append(at, i)
	}
	if len(whole) > 0 {
		for i, v := range w.Worker.Call(ctx, whole) {
			verdicts[at[i]] = v
		}
	}
	return verdicts
}

// beatEvery is how often progress is told.
const beatEvery = 500 * time.Millisecond

func (w *Inputs) fetch(ctx context.Context, task *item.Task) (Verdict, bool) {
	began := time.Now()
	told := began
	path, err := w.Fetcher.Fetch(ctx, *task.Input, task.Attempt, func() {
		if now := time.Now(); now.Sub(told) >= beatEvery {
			told = now
			w.Beat(task.ID, true)
		}
	})
	took := time.Since(began)
	switch {
	case err == nil:
		task.Path = path
		task.Deadline = task.Deadline.Add(took)
		w.Beat(task.ID, true)
		return Verdict{}, true
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), ErrTimeout) && !errors.Is(context.Cause(ctx), ErrHeartbeat):
		return stopped(ctx), false
	case w.Refuse(err):
		return Verdict{Kind: Dead, Reason: "input: " + err.Error()}, false
	case w.Blame(err):
		return Verdict{Kind: Retry, Reason: "input: " + err.Error()}, false
	}
	return Verdict{Kind: Infra, Reason: "fetch the input: " + err.Error()}, false
}
