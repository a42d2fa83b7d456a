package worker

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"retinue/coordinator/item"
)

// room bounds the children of a job. Slots bound those of a coordinator while it lives; one that is restarted begins with other items, and
// the children of the old ones run on.
type room struct {
	mu     sync.Mutex
	asking int // requests for a child that are under way: Nomad may count them already or not

	living map[place]bool // children that wait or run, as of listed
	listed time.Time
}

// place is one attempt of one item.
type place struct{ stage, id, attempt string }

// How long a call waits for room. Nomad counts a child for a moment after its end; whoever waits longer gives its slot to items that have a child.
const (
	roomPoll     = 50 * time.Millisecond
	roomPatience = 30 * time.Second
)

// roomError says that there were too many children for too long.
type roomError struct{ what string }

func (e *roomError) Error() string { return e.what }

// takeRoom waits until the job has fewer children than it may, or has one of this attempt. giveRoom follows the request for the child. Of
// several coordinators that ask at the same moment, each may make one child more.
func (w *Dispatch) takeRoom(ctx context.Context, task *item.Task) error {
	most := cmp.Or(w.Outstanding, MaxOutstanding)
	began := time.Now()
	for wait := roomPoll; ; wait = min(2*wait, childPoll) {
		taken, err := w.tryRoom(ctx, task, most, wait == childPoll)
		switch {
		case taken || err != nil:
			return err
		case time.Since(began) > roomPatience:
			return &roomError{fmt.Sprintf("%d children of job %s wait or run, as many as may", most, w.Job)}
		}
		w.Beat(task.ID, true) // the time of an attempt has not begun
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryRoom takes room if there is some; look: or if this attempt has it already.
func (w *Dispatch) tryRoom(ctx context.Context, task *item.Task, most int, look bool) (bool, error) {
	w.room.mu.Lock()
	defer w.room.mu.Unlock()
	var summary struct {
		Children *struct{ Pending, Running int }
	}
	if _, err := w.API.Do(ctx, http.MethodGet, "/v1/job/"+url.PathEscape(w.Job)+"/summary", nil, nil, &summary); err != nil {
		return false, fmt.Errorf("count the children of job %s: %w", w.Job, err)
	}
	c := summary.Children
	if c != nil && c.Pending+c.Running+w.room.asking >= most && !(look && w.lives(ctx, task)) {
		return false, nil
	}
	w.room.asking++
	return true, nil
}

func (w *Dispatch) giveRoom() {
	w.room.mu.Lock()
	defer w.room.mu.Unlock()
	w.room.asking--
}

// lives says whether an attempt has a child that waits or runs. It is asked when there is no room, because Nomad goes through all children for it.
func (w *Dispatch) lives(ctx context.Context, task *item.Task) bool {
	if time.Since(w.room.listed) >= childPoll {
		var jobs []struct{ Meta map[string]string }
		query := url.Values{"prefix": {w.Job + "/dispatch-"}, "meta": {"true"}, "filter": {`Status != "dead"`}}
		if _, err := w.API.Do(ctx, http.MethodGet, "/v1/jobs", query, nil, &jobs); err != nil {
			return false // it waits for room as others do
		}
		w.room.living = map[place]bool{}
		for _, job := range jobs {
			w.room.living[place{job.Meta["retinue_stage"], job.Meta["retinue_item"], job.Meta["retinue_attempt"]}] = true
		}
		w.room.listed = time.Now()
	}
	return w.room.living[place{task.Stage, task.ID, strconv.Itoa(task.N)}]
}
