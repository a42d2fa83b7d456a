package worker

import (
	"context"
	"os"
	"path/filepath"

	"retinue/coordinator/item"
)

// Lines starts a command for each batch: items on stdin, verdicts on stdout, one JSON object a line.
type Lines struct{ Exec }

// Call implements Worker.
func (w *Lines) Call(ctx context.Context, tasks []*item.Task) []Verdict {
	dir := filepath.Join(w.Folders.Work, runDir, tasks[0].Attempt)
	defer os.RemoveAll(dir)
	input := filepath.Join(dir, "input")
	if err := os.Mkdir(dir, 0o777); err != nil {
		return all(tasks, Verdict{Kind: Infra, Reason: err.Error()})
	}
	if err := os.WriteFile(input, encodeBatch(tasks), 0o666); err != nil {
		return all(tasks, Verdict{Kind: Infra, Reason: err.Error()})
	}
	v := w.run(ctx, dir, input, []string{"RETINUE_STAGE=" + tasks[0].Stage, "RETINUE_OUTPUT=" + filepath.Join(dir, "out")})
	stdout, err := os.Open(filepath.Join(dir, "stdout"))
	if err != nil {
		return all(tasks, v)
	}
	defer stdout.Close()
	said, err := ParseVerdicts(stdout)
	if v.Kind == Ack || v.Kind == Drop {
		v.Kind, v.Reason = Retry, "the worker wrote no verdict"
		if err != nil {
			v.Reason = "the worker wrote what is no verdict: " + err.Error()
		}
	}
	return spread(tasks, said, v, w.Folders.To)
}
