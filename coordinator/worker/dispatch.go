package worker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"retinue/coordinator/item"
	"retinue/internal/hint"
	"retinue/internal/taskapi"
)

// Dispatch makes one Nomad job of each item: a child of a parameterized job. It is for items that take longer than half a minute or need a
// container of their own.
//
// A child is named by its item and attempt, by Nomad's idempotency token. A coordinator that begins the same attempt, because another one or
// an earlier process of its own has died, gets the child that is there, running or ended. So the end of a coordinator does not end
// a child, and no attempt is dispatched twice while Nomad remembers the child (job_gc_threshold, 4 hours by default).
type Dispatch struct {
	API *taskapi.Client
	Job string // the parameterized job
	// Folders.Work is a folder that all nodes share: input and output of a child are in WORK/dispatch. "": the item travels
	// as the job's payload, and only the exit code comes back.
	Folders Folders
	Codes   ExitCodes
	Beat    func(id string, again bool)
	Signs   Signs // in the folders of children
	// Outstanding bounds the children of Job that wait or run, whichever coordinator made them; 0 is MaxOutstanding.
	Outstanding int

	mu     sync.Mutex
	parent *parent
	looked time.Time
	dirs   sync.Map // folders of the attempts that are waited for, by item

	room room
}

// ErrCancelled is the cause of the end of a call whose item was cancelled: its child is stopped. At any other end but a timeout the child
// goes on, for whoever has the item next.
var ErrCancelled = errors.New("cancelled")

// MaxPayload is the largest item that travels as a job's payload. Nomad takes 16 KiB, and keeps it in the memory of its servers.
const MaxPayload = 12 << 10

// MaxOutstanding bounds the children of a coordinator: Nomad's leader keeps every job in memory.
const MaxOutstanding = 1000

// The names of a child's metadata. The parent declares those that it wants.
const (
	metaDir = "retinue_dir"
	dirName = "dispatch"
)

// How often a parent is looked at again, and how long one look for a change of a child waits at Nomad.
const (
	parentFor = 30 * time.Second
	childWait = 10 * time.Second
	childPoll = time.Second
)

// parent is what counts of the parameterized job.
type parent struct {
	meta    []string // that it takes
	payload bool     // it takes one
}

// Open prepares the folder, and refuses a job that cannot work. One that cannot be asked now is asked again later.
func (w *Dispatch) Open() error {
	if w.Folders.Work != "" {
		if err := os.MkdirAll(filepath.Join(w.Folders.Work, dirName), 0o777); err != nil {
			return hint.Wrap(err, "--work names a folder that all nodes share, and this one may write to; without it only exit codes come back")
		}
		w.sweep()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var unfit *unfitError
	if _, err := w.fit(ctx); errors.As(err, &unfit) {
		return err
	}
	return nil
}

// Close implements Worker. Children go on.
func (w *Dispatch) Close() error { return nil }

// Discard implements Worker.
func (w *Dispatch) Discard(o *Output) { discard(o) }

// Progress implements Progressive.
func (w *Dispatch) Progress(task *item.Task) json.RawMessage {
	dir, ok := w.dirs.Load(task.ID)
	if !ok {
		return nil
	}
	return progressOf(dir.(string))
}

// sweep removes what coordinators that died left of children that have ended, or never began.
func (w *Dispatch) sweep() {
	for _, pattern := range []string{"*.new", "*.ended"} {
		left, _ := filepath.Glob(filepath.Join(w.Folders.Work, dirName, pattern)) // the pattern is right
		for _, dir := range left {
			if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
				_ = os.RemoveAll(dir) // another coordinator may do the same
			}
		}
	}
}

// unfitError is a parent that no item can be given to, whatever happens.
type unfitError struct{ what string }

func (e *unfitError) Error() string { return e.what }

// fit looks at the parent: now and then, because it may be changed while this runs.
func (w *Dispatch) fit(ctx context.Context) (*parent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.parent != nil && time.Since(w.looked) < parentFor {
		return w.parent, nil
	}
	var job struct {
		Stop             bool
		ParameterizedJob *struct {
			Payload      string
			MetaRequired []string
			MetaOptional []string
		}
		TaskGroups []struct {
			Name  string
			Count int
			Tasks []struct{ Name, Driver string }
		}
	}
	if _, err := w.API.Do(ctx, http.MethodGet, "/v1/job/"+url.PathEscape(w.Job), nil, nil, &job); err != nil {
		return nil, fmt.Errorf("look at the parameterized job %s: %w", w.Job, err)
	}
	unfit := func(advice, format string, args ...any) error {
		return hint.Wrap(&unfitError{"job " + w.Job + " " + fmt.Sprintf(format, args...)}, "%s", advice)
	}
	p := job.ParameterizedJob
	switch {
	case p == nil:
		return nil, unfit("give it a parameterized block; jobspecs/work-queue-dispatch has one", "is not parameterized")
	case len(job.TaskGroups) != 1 || job.TaskGroups[0].Count != 1:
		return nil, unfit("an item is one allocation: write one group with count = 1", "has %d groups", len(job.TaskGroups))
	case w.Folders.Work == "" && p.Payload == "forbidden":
		return nil, unfit("write payload = \"optional\", or give a shared folder with --work", "takes no payload")
	case w.Folders.Work != "" && p.Payload == "required":
		return nil, unfit("write payload = \"optional\": with --work the item is a file in a shared folder", "wants a payload")
	}
	for _, task := range job.TaskGroups[0].Tasks {
		if task.Driver == "exec" {
			return nil, unfit("use docker or raw_exec: the exec driver links some 150,000 files for each item, which stops a node", "has the driver exec in task %s", task.Name)
		}
	}
	known := w.meta(&item.Task{}, "x")
	for _, name := range p.MetaRequired {
		if _, ok := known[name]; !ok {
			return nil, unfit("an item gives retinue_dir, _item, _stage, _key, _attempt, _max_attempts and _fence", "requires the metadata %q", name)
		}
	}
	w.parent = &parent{meta: slices.Concat(p.MetaRequired, p.MetaOptional), payload: p.Payload != "forbidden"}
	w.looked = time.Now()
	return w.parent, nil
}

func (w *Dispatch) meta(t *item.Task, dir string) map[string]string {
	m := map[string]string{"retinue_item": t.ID, "retinue_stage": t.Stage, "retinue_key": t.Key, "retinue_attempt": strconv.Itoa(t.N),
		"retinue_max_attempts": strconv.Itoa(t.Max), "retinue_fence": strconv.FormatUint(t.Fence, 10)}
	if dir != "" {
		m[metaDir] = dir
	}
	return m
}

// redispatches bounds how often an attempt that does not count is made anew.
const redispatches = 1000

// Call implements Worker. It has one task.
func (w *Dispatch) Call(ctx context.Context, tasks []*item.Task) []Verdict {
	task := tasks[0]
	for again := range redispatches {
		v, old := w.attempt(ctx, task, again)
		// A child that was there already and ended without counting: it is known, and the next one is asked for.
		if old && v.Kind == NotReady {
			w.Discard(outputOf(v))
			continue
		}
		return []Verdict{v}
	}
	return []Verdict{{Kind: NotReady, Reason: fmt.Sprintf("%d children of this attempt have not worked", redispatches)}}
}

func outputOf(v Verdict) *Output {
	if v.Output == nil {
		return &Output{}
	}
	return v.Output
}

// token names one child of one attempt; the item's id may be long, or hold what a folder's name may not.
func token(t *item.Task, again int) string {
	sum := sha256.Sum256([]byte(t.Stage + "\x00" + t.ID))
	name := item.FileName(t.ID)
	return fmt.Sprintf("%s-%s.%d.%d", name[:min(len(name), 60)], hex.EncodeToString(sum[:6]), t.N, again)
}

// attempt dispatches one child, or finds the one that is there, and waits for its end. old: it had ended before.
func (w *Dispatch) attempt(ctx context.Context, task *item.Task, again int) (v Verdict, old bool) {
	p, err := w.fit(ctx)
	if err != nil {
		return w.failed(ctx, err), false
	}
	if err := w.takeRoom(ctx, task); err != nil {
		return w.failed(ctx, err), false
	}
	child, dir, created, v, err := w.begin(ctx, p, task, token(task, again))
	w.giveRoom()
	if err != nil {
		return v, false
	}
	if dir != "" {
		w.dirs.Store(task.ID, dir)
		defer w.dirs.Delete(task.ID)
	}
	stop := w.Signs.follow(ctx, dir, task.ID)
	v, first := w.await(ctx, task, child)
	stop()
	v = w.collect(dir, task, v)
	return v, first && !created
}

// begin makes the folder of a child and the child, or finds both. With an error it says what that means for the attempt.
func (w *Dispatch) begin(ctx context.Context, p *parent, task *item.Task, name string) (child, dir string, created bool, v Verdict, err error) {
	if w.Folders.Work != "" {
		dir = filepath.Join(w.Folders.Work, dirName, name)
		if v, err = w.offer(dir, task); err != nil {
			return "", "", false, v, err
		}
	} else if len(task.Body) > MaxPayload || task.Input != nil {
		err = fmt.Errorf("the item has %d bytes or is a reference, and without a shared folder (--work) only %d travel with a job", len(task.Body), MaxPayload)
		return "", "", false, Verdict{Kind: Dead, Reason: err.Error()}, err
	}
	if child, created, err = w.dispatch(ctx, p, task, name, dir); err != nil {
		return "", "", false, w.failed(ctx, err), err
	}
	return child, dir, created, Verdict{}, nil
}

// offer makes the folder of a child in one step. One that is there belongs to a child that may run.
func (w *Dispatch) offer(dir string, task *item.Task) (Verdict, error) {
	if _, err := os.Stat(dir); err == nil {
		return Verdict{}, nil
	}
	tmp := dir + "." + strconv.FormatUint(task.Fence, 36) + ".new"
	err := w.Folders.make(tmp, task)
	if err == nil {
		err = forAll(tmp, filepath.Join(tmp, "out"))
	}
	if err == nil {
		if err = os.Rename(tmp, dir); err != nil {
			if _, statErr := os.Stat(dir); statErr == nil {
				err = nil // another coordinator was faster
			}
		}
	}
	os.RemoveAll(tmp)
	if err != nil {
		return inputVerdict(err), err
	}
	return Verdict{}, nil
}

// dispatch asks for the child of a token. created is false when it was there.
func (w *Dispatch) dispatch(ctx context.Context, p *parent, task *item.Task, name, dir string) (child string, created bool, err error) {
	in := map[string]any{"JobID": w.Job}
	meta := map[string]string{}
	for key, value := range w.meta(task, dir) {
		if slices.Contains(p.meta, key) {
			meta[key] = value
		}
	}
	in["Meta"] = meta
	if dir == "" && p.payload {
		in["Payload"] = task.Body
	}
	// A request that was begun is waited for: whoever ends the call must know which child there is.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var out struct{ DispatchedJobID, EvalID string }
	if _, err := w.API.Do(ctx, http.MethodPut, "/v1/job/"+url.PathEscape(w.Job)+"/dispatch", url.Values{"idempotency_token": {name}}, in, &out); err != nil {
		return "", false, fmt.Errorf("dispatch job %s: %w", w.Job, err)
	}
	return out.DispatchedJobID, out.EvalID != "", nil
}

// failed is what an error of Nomad means. Nothing was executed as far as is known, and the token finds what was.
func (w *Dispatch) failed(ctx context.Context, err error) Verdict {
	if ctx.Err() != nil {
		return stopped(ctx)
	}
	v := Verdict{Kind: NotReady, Reason: err.Error()}
	if full := (*roomError)(nil); errors.As(err, &full) {
		return v
	}
	if h := hint.Of(err); h != "" {
		v.Reason += " (" + h + ")"
	}
	if code, _ := taskapi.Status(err); code == 0 || code == http.StatusTooManyRequests {
		v.Kind = Infra // not reached
	}
	return v
}

// await waits for the end of a child. first: it had ended when it was looked at first.
func (w *Dispatch) await(ctx context.Context, task *item.Task, child string) (v Verdict, first bool) {
	index, started := "", false
	for look := 0; ; look++ {
		a, next, err := w.look(ctx, child, index)
		switch {
		case ctx.Err() != nil:
			return w.leave(ctx, child), false
		case err == nil:
			index = next
			if v, ended := w.judge(a); ended {
				v.Node, v.Alloc = a.NodeName, a.ID
				if v.Kind == Crashed { // Nomad would replace an allocation that was lost or drained, and nobody waits for that one
					_ = w.stop(ctx, child)
				}
				return v, look == 0
			}
			if !started { // the time of an attempt begins when it runs
				w.Beat(task.ID, true)
				started = a != nil && a.ClientStatus == "running"
			}
			continue
		}
		if code, _ := taskapi.Status(err); code == http.StatusNotFound {
			return Verdict{Kind: Crashed, Reason: "job " + child + " is gone"}, look == 0
		}
		select { // Nomad does not answer; the child goes on without it
		case <-time.After(childPoll):
		case <-ctx.Done():
		}
	}
}

// alloc is a child's allocation.
type alloc struct {
	ID                string
	ClientStatus      string
	ClientDescription string
	DesiredStatus     string
	NodeName          string
	CreateIndex       uint64
	TaskStates        map[string]struct {
		State  string
		Failed bool
		Events []event
	}
}

type event struct {
	Type           string
	DisplayMessage string
	Details        map[string]string
}

// look returns the child's first allocation, nil when there is none yet, as soon as it differs from what index has seen. A later one replaces
// one whose node was lost or drained, and has the folder of one that may still run: it is no attempt. A child that was stopped before it had
// one is an error like one that is gone.
func (w *Dispatch) look(ctx context.Context, child, index string) (*alloc, string, error) {
	query := url.Values{"wait": {childWait.String()}}
	if index != "" {
		query.Set("index", index)
	}
	var allocs []alloc
	next, err := w.API.Do(ctx, http.MethodGet, "/v1/job/"+url.PathEscape(child)+"/allocations", query, nil, &allocs)
	if err != nil {
		return nil, "", err
	}
	if len(allocs) == 0 {
		var job struct{ Stop bool }
		if _, err := w.API.Do(ctx, http.MethodGet, "/v1/job/"+url.PathEscape(child), nil, nil, &job); err != nil {
			return nil, "", err
		}
		if job.Stop {
			return nil, "", &taskapi.StatusError{Code: http.StatusNotFound, Body: "the job was stopped before it ran"}
		}
		return nil, next, nil
	}
	first := slices.MinFunc(allocs, func(a, b alloc) int { return cmp.Compare(a.CreateIndex, b.CreateIndex) })
	return &first, next, nil
}

// judge says how an allocation ended, if it has.
func (w *Dispatch) judge(a *alloc) (Verdict, bool) {
	if a == nil {
		return Verdict{}, false
	}
	switch a.ClientStatus {
	case "lost":
		return Verdict{Kind: Crashed, Reason: "its node " + a.NodeName + " was lost"}, true
	case "complete", "failed":
	default:
		return Verdict{}, false
	}
	if a.ClientStatus == "complete" && a.DesiredStatus == "stop" && !terminated(a) {
		return Verdict{Kind: Crashed, Reason: "the job was stopped"}, true
	}
	for name, task := range a.TaskStates {
		for _, e := range slices.Backward(task.Events) {
			if e.Type != "Terminated" {
				continue
			}
			if e.Details["oom_killed"] == "true" {
				return Verdict{Kind: Crashed, Reason: "task " + name + " was killed: out of memory"}, true
			}
			if sig := e.Details["signal"]; sig != "" && sig != "0" {
				return Verdict{Kind: Crashed, Reason: "task " + name + " was killed by signal " + sig}, true
			}
			code, err := strconv.Atoi(e.Details["exit_code"])
			if err != nil {
				return Verdict{Kind: Crashed, Reason: "task " + name + ": " + e.DisplayMessage}, true
			}
			if code == 128+9 || code == 128+11 || code == 128+6 { // a shell reports the death of its last command so
				return Verdict{Kind: Crashed, Reason: fmt.Sprintf("exit code %d: killed by signal %d", code, code-128)}, true
			}
			return w.Codes.verdict(code), true
		}
		for _, e := range slices.Backward(task.Events) { // it did not come to a process: image, artifact, template
			if e.Type == "Driver Failure" || e.Type == "Setup Failure" || e.Type == "Failed Artifact Download" {
				return Verdict{Kind: NotReady, Reason: "the worker is broken: task " + name + ": " + item.Printable(e.DisplayMessage, maxReason)}, true
			}
		}
	}
	return Verdict{Kind: Crashed, Reason: "the allocation ended as " + a.ClientStatus + ": " + item.Printable(a.ClientDescription, maxReason)}, true
}

func terminated(a *alloc) bool {
	for _, task := range a.TaskStates {
		if slices.ContainsFunc(task.Events, func(e event) bool { return e.Type == "Terminated" }) {
			return true
		}
	}
	return false
}

// leave ends the wait for a child. It is stopped, not purged, when its time is over or its item was cancelled: a job that is purged may run on.
func (w *Dispatch) leave(ctx context.Context, child string) Verdict {
	cause := context.Cause(ctx)
	v := stopped(ctx)
	if errors.Is(cause, ErrTimeout) || errors.Is(cause, ErrHeartbeat) || errors.Is(cause, ErrCancelled) {
		v.Output = &Output{} // what it left is of no use
		if err := w.stop(ctx, child); err != nil {
			v.Reason += "; its job " + child + " may run on: " + err.Error()
		}
	}
	return v
}

func (w *Dispatch) stop(ctx context.Context, child string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := w.API.Do(ctx, http.MethodDelete, "/v1/job/"+url.PathEscape(child), nil, nil, nil)
	if code, _ := taskapi.Status(err); code == http.StatusNotFound {
		return nil
	}
	return err
}

// collect reads what a child left. One that runs on keeps its folder.
func (w *Dispatch) collect(dir string, task *item.Task, v Verdict) Verdict {
	switch {
	case dir == "" || v.Kind == Stopped && v.Output == nil:
		v.Output = nil
		return v
	case v.Kind == Stopped || v.Kind == TimedOut || v.Kind == Crashed: // something may still run there, where nobody sees it: the folder is renamed away first
		taken := dir + ".ended"
		if err := os.Rename(dir, taken); err == nil {
			dir = taken
		}
	}
	return w.Folders.collect(dir, task, v)
}
