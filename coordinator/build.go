package coordinator

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/worker"
	"retinue/internal/hint"
	"retinue/internal/taskapi"
)

// Point opens the commit point; nil when there is none.
func (s Settings) Point(ctx context.Context) (commit.Point, error) {
	point, err := s.records(ctx)
	if err != nil || s.Output.Artifacts == "" {
		return point, err
	}
	return s.artifacts(ctx, point)
}

// records opens where the records lie.
func (s Settings) records(ctx context.Context) (commit.Point, error) {
	switch s.Output.Commit {
	case CommitRename:
		dir, err := filepath.Abs(s.Output.Done)
		if err == nil {
			err = os.MkdirAll(dir, 0o777)
		}
		if err != nil {
			return nil, hint.Wrap(fmt.Errorf("open the folder of outputs: %w", err), "--done names a folder that all nodes share and this one may write to")
		}
		return commit.Rename{Dir: dir, Sync: s.Output.Sync}, nil
	case CommitJournal:
		kv, err := s.openJournal(ctx)
		if err != nil {
			return nil, err
		}
		return commit.Journal{KV: kv}, nil
	}
	return nil, nil
}

// NewWorker opens the worker. point is where its outputs go; beat is told of progress.
func (s Settings) NewWorker(point commit.Point, beat func(id string, again bool)) (worker.Worker, error) {
	to := s.Output.To != ""
	if s.Worker.Mode == ModeHTTP {
		w := worker.NewHTTP(s.Worker.URL)
		w.Batch, w.Structured, w.To = s.Worker.Batch, s.Worker.Format == "structured", to
		return s.withInputs(w, beat)
	}
	work := ""
	if s.Worker.Work != "" { // none in mode dispatch: only exit codes come back
		var err error
		if work, err = filepath.Abs(s.Worker.Work); err != nil {
			return nil, err
		}
	}
	allow, _ := s.allowed()
	folders := worker.Folders{Work: work, Allow: allow, To: to}
	switch p := point.(type) {
	case commit.Rename:
		folders.Allow = append(folders.Allow, p.Dir)
		folders.Final = func(t *item.Task) *url.URL { return &url.URL{Scheme: "file", Path: p.Path(t.Stage, t.ID)} }
	case commit.Artifacts:
		folders.Final = func(t *item.Task) *url.URL { return p.Place(t.Stage, t.ID, t.Attempt) }
	}
	grace, err := time.ParseDuration(s.Worker.Grace)
	if err != nil {
		return nil, err
	}
	codes := worker.ExitCodes{Ack: s.ExitCodes.Ack, Retry: s.ExitCodes.Retry, Dead: s.ExitCodes.Dead, Drop: s.ExitCodes.Drop, Pause: s.ExitCodes.Pause}
	heartbeat, err := time.ParseDuration(s.Worker.Heartbeat)
	if err != nil {
		return nil, err
	}
	signs := worker.SignsWithin(heartbeat, beat)
	command := worker.Exec{Folders: folders, Command: s.Worker.Command, Grace: grace, Codes: codes, Signs: signs}
	if s.Worker.Mode == ModeDispatch {
		api, err := taskapi.New(taskapi.Config{Addr: s.Worker.Nomad}, os.Getenv)
		if err != nil {
			return nil, err
		}
		w := &worker.Dispatch{API: api, Job: s.Worker.Job, Folders: folders, Codes: codes, Beat: beat, Signs: signs, Outstanding: s.Worker.Outstanding}
		if err := w.Open(); err != nil {
			return nil, err
		}
		return s.withInputs(w, beat)
	}
	var w interface {
		worker.Worker
		Open() error
	}
	switch s.Worker.Mode {
	case ModeExec:
		w = &command
	case ModeLines:
		w = &worker.Lines{Exec: command}
	default:
		w = &worker.Watch{Folders: folders, Patience: 30 * time.Second, Beat: beat}
	}
	if err := w.Open(); err != nil {
		return nil, hint.Wrap(fmt.Errorf("open the work folder %s: %w", work, err), "it must be writable, and only one coordinator may use it")
	}
	return s.withInputs(w, beat)
}
