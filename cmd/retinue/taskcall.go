package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/hint"
	"retinue/internal/lifecycle/manage"
	"retinue/internal/nomadkit"
)

const reachNomad = "NOMAD_ADDR must reach Nomad and NOMAD_TOKEN needs read-job and alloc-exec in the task's namespace; on the local cluster: eval \"$(retinue dev env)\""

// managedTask is a row of `retinue task ls`.
type managedTask struct {
	Managed bool `json:"managed"`
	Denied  bool `json:"denied,omitempty"` // the token may not ask
	manage.Description
}

func nomadClient() (*nomad.Client, error) {
	client, err := nomad.NewClient(nomad.DefaultConfig())
	if err != nil {
		return nil, fmt.Errorf("configure the Nomad client: %w", err)
	}
	return client, nil
}

// findTask looks an allocation up by the beginning of its ID, and its task.
func findTask(ctx context.Context, client *nomad.Client, target string) (*nomad.Allocation, string, error) {
	id, task, _ := strings.Cut(target, "/")
	if len(id) < 2 || strings.Trim(id, "0123456789abcdef-") != "" {
		return nil, "", usageError{hint.Wrap(fmt.Errorf("%q is no allocation", target), "name it ALLOC or ALLOC/TASK; `retinue task ls` shows them")}
	}
	q := (&nomad.QueryOptions{Prefix: id[:len(id)-len(id)%2], Params: map[string]string{"resources": "false"}}).WithContext(ctx)
	stubs, _, err := client.Allocations().List(q)
	if err != nil {
		return nil, "", hint.Wrap(fmt.Errorf("look up allocation %s: %w", id, err), reachNomad)
	}
	stubs = slices.DeleteFunc(stubs, func(s *nomad.AllocationListStub) bool { return !strings.HasPrefix(s.ID, id) })
	if len(stubs) != 1 {
		return nil, "", hint.Wrap(fmt.Errorf("%d allocations begin with %s", len(stubs), id), "`retinue task ls` shows them; NOMAD_NAMESPACE says in which namespace")
	}
	alloc, _, err := client.Allocations().Info(stubs[0].ID, (&nomad.QueryOptions{Namespace: stubs[0].Namespace}).WithContext(ctx))
	if err != nil {
		return nil, "", hint.Wrap(fmt.Errorf("look up allocation %s: %w", id, err), reachNomad)
	}
	names := runningTasks(alloc.TaskStates)
	switch {
	case task != "" && alloc.TaskStates[task] == nil:
		return nil, "", hint.Wrap(fmt.Errorf("allocation %s has no task %s", shortID(alloc.ID), task), "it has: %s", strings.Join(names, ", "))
	case task == "" && len(names) != 1:
		return nil, "", hint.Wrap(fmt.Errorf("allocation %s has %d running tasks", shortID(alloc.ID), len(names)), "name one as ALLOC/TASK: %s", strings.Join(names, ", "))
	case task == "":
		task = names[0]
	}
	return alloc, task, nil
}

func runningTasks(states map[string]*nomad.TaskState) []string {
	var names []string
	for name, s := range states {
		if s.State == "running" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

const probe = "/v1/task"

var errNoAnswer = errors.New("no answer")

// execTask sends one request to the task's driver; the answer goes to stdout. ok: its status was 2xx.
func execTask(ctx context.Context, client *nomad.Client, alloc *nomad.Allocation, task, method, path, body string, stdout io.Writer) (ok bool, err error) {
	// Another driver may take the command line for a program of the task, and never answer. The lifecycle driver answers
	// this question at once, so it comes before every other.
	if path != probe {
		if _, err := execTask(ctx, client, alloc, task, "GET", probe, "", io.Discard); err != nil {
			return false, err
		}
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, 15*time.Second, errNoAnswer)
		defer cancel()
	}
	command := []string{manage.Prefix, method, path}
	if body != "" {
		command = append(command, body)
	}
	code, err := nomadkit.AskDriver(ctx, client, alloc, task, command, stdout, io.Discard)
	if err != nil {
		if errors.Is(context.Cause(ctx), errNoAnswer) {
			return false, unmanaged(shortID(alloc.ID) + "/" + task)
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		advice := "a task that the lifecycle driver does not run cannot answer; `retinue task ls` shows which it runs. " + reachNomad
		if denied(err) {
			advice = "the token needs alloc-exec in the namespace of the task, and for raw_exec alloc-node-exec too"
		}
		return false, hint.Wrap(fmt.Errorf("ask the driver of task %s of allocation %s: %w", task, shortID(alloc.ID), err), "%s", advice)
	}
	if code != 0 && code != 1 { // a shell's "not found", most likely
		return false, unmanaged(shortID(alloc.ID) + "/" + task)
	}
	return code == 0, nil
}

// denied says that Nomad's ACL has refused a request.
func denied(err error) bool { return err != nil && strings.Contains(err.Error(), "Permission denied") }

func unmanaged(target string) error {
	return hint.Wrap(fmt.Errorf("the lifecycle driver does not run task %s", target), "install the driver on the client and start the task again: plugins/README.md")
}

// taskAnswer asks the driver of a task, and returns the whole answer.
func taskAnswer(ctx context.Context, target, method, path, body string) (answer []byte, ok bool, err error) {
	client, err := nomadClient()
	if err != nil {
		return nil, false, err
	}
	alloc, task, err := findTask(ctx, client, target)
	if err != nil {
		return nil, false, err
	}
	var out bytes.Buffer
	ok, err = execTask(ctx, client, alloc, task, method, path, body, &out)
	return out.Bytes(), ok, err
}

// refusal turns an answer that says no into an error with its hint.
func refusal(target string, answer []byte) error {
	var r manage.Refusal
	if err := json.Unmarshal(answer, &r); err != nil || r.Message == "" {
		return unmanaged(target)
	}
	if r.Hint == "" {
		return errors.New(r.Message)
	}
	return hint.Wrap(errors.New(r.Message), "%s", r.Hint)
}

// streamTask hands an answer on as it comes. An error of the driver is an error here, and nothing is written of it.
func streamTask(ctx context.Context, target, path string, w io.Writer) error {
	client, err := nomadClient()
	if err != nil {
		return err
	}
	alloc, task, err := findTask(ctx, client, target)
	if err != nil {
		return err
	}
	held := &holdRefusal{w: w}
	ok, err := execTask(ctx, client, alloc, task, "GET", path, "", held)
	if err != nil {
		return err
	}
	if !ok {
		return refusal(target, held.held)
	}
	return held.flush()
}

// holdRefusal hands on what is written, but keeps back the beginning of an answer that may be an error.
type holdRefusal struct {
	w    io.Writer
	held []byte
	open bool
}

func (h *holdRefusal) Write(p []byte) (int, error) {
	const begins = `{"error":`
	if !h.open {
		h.held = append(h.held, p...)
		n := min(len(h.held), len(begins))
		if string(h.held[:n]) == begins[:n] && len(h.held) < 64<<10 {
			return len(p), nil
		}
		if err := h.flush(); err != nil {
			return 0, err
		}
		h.open = true
		return len(p), nil
	}
	return h.w.Write(p)
}

func (h *holdRefusal) flush() error {
	_, err := h.w.Write(h.held)
	h.held = nil
	return err
}

// listTasks asks the drivers of all running tasks, eight at a time.
func listTasks(ctx context.Context, job string) ([]managedTask, error) {
	client, err := nomadClient()
	if err != nil {
		return nil, err
	}
	stubs, _, err := client.Allocations().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("list allocations: %w", err), reachNomad)
	}
	rows := []managedTask{}
	var work sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, 8)
	for _, stub := range stubs {
		if stub.ClientStatus != nomad.AllocClientStatusRunning || job != "" && stub.JobID != job {
			continue
		}
		for _, name := range runningTasks(stub.TaskStates) {
			work.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				row := managedTask{Description: manage.Description{Info: manage.Info{Namespace: stub.Namespace, Job: stub.JobID, Group: stub.TaskGroup, Task: name, Alloc: stub.ID, Node: stub.NodeName}}}
				alloc := &nomad.Allocation{ID: stub.ID, NodeID: stub.NodeID, Namespace: stub.Namespace}
				var out bytes.Buffer
				var d manage.Description
				ok, err := execTask(ctx, client, alloc, name, "GET", "/v1/task", "", &out)
				row.Denied = denied(err)
				if err == nil && ok && json.Unmarshal(out.Bytes(), &d) == nil && d.Alloc != "" {
					row.Managed, row.Description = true, d
				}
				mu.Lock()
				defer mu.Unlock()
				rows = append(rows, row)
			})
		}
	}
	work.Wait()
	slices.SortFunc(rows, func(a, b managedTask) int {
		return strings.Compare(a.Job+"/"+a.Alloc+"/"+a.Task, b.Job+"/"+b.Alloc+"/"+b.Task)
	})
	return rows, ctx.Err()
}
