package worker

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"retinue/coordinator/item"
)

func watching(t *testing.T) (*Watch, chan string) {
	t.Helper()
	beats := make(chan string, 1000)
	w := &Watch{Folders: folders(t), Patience: time.Minute, Beat: func(id string, again bool) {
		if again {
			id += " begins"
		}
		beats <- id
	}}
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w, beats
}

// offer starts a call and returns the folder that a worker would find.
func offer(t *testing.T, ctx context.Context, w *Watch, it *item.Task) (ready, run string, ended chan Verdict) {
	t.Helper()
	ended = make(chan Verdict, 1)
	go func() { ended <- w.Call(ctx, []*item.Task{it})[0] }()
	ready, run = filepath.Join(w.Folders.Work, "ready", it.Attempt), filepath.Join(w.Folders.Work, "run", it.Attempt)
	until(t, "the item is offered", func() bool {
		_, err := os.Stat(filepath.Join(ready, "meta.json"))
		if err != nil { // a worker of the test may have claimed it already
			_, err = os.Stat(run)
		}
		return err == nil
	})
	return ready, run, ended
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWatchVerdicts(t *testing.T) {
	w, _ := watching(t)
	for name, c := range map[string]struct {
		file, text string
		want       Verdict
	}{
		"done":    {"_DONE", "", Verdict{Kind: Ack}},
		"status":  {"status", `{"verdict":"retry","retry_after":"9s","reason":"soon"}`, Verdict{Kind: Retry, Reason: "soon", RetryAfter: 9 * time.Second}},
		"dead":    {"status", `{"verdict":"dead"}`, Verdict{Kind: Dead}},
		"garbled": {"status", `{`, Verdict{Kind: Retry}},
	} {
		ready, run, ended := offer(t, t.Context(), w, task(name, "hello"))
		must(t, os.Rename(ready, run))
		must(t, os.WriteFile(filepath.Join(run, "out", "o"), []byte("out of "+name), 0o666))
		must(t, os.WriteFile(filepath.Join(run, ".tmp"), []byte(c.text), 0o666))
		must(t, os.Rename(filepath.Join(run, ".tmp"), filepath.Join(run, c.file)))
		v := <-ended
		if v.Kind != c.want.Kind || c.want.Reason != "" && v.Reason != c.want.Reason || v.RetryAfter != c.want.RetryAfter {
			t.Errorf("%s: %+v", name, v)
		}
		if v.Kind == Ack && string(v.Output.Result) != "out of done" {
			t.Errorf("%+v", v.Output)
		}
		if _, err := os.Stat(run); !os.IsNotExist(err) {
			t.Errorf("%s: the worker still has the folder: %v", name, err)
		}
		w.Discard(v.Output)
	}
}

// A worker that holds a lock on its claim is missed at once when it is killed.
func TestWatchWorkerKilled(t *testing.T) {
	w, beats := watching(t)
	ready, run, ended := offer(t, t.Context(), w, task("a", "hello"))
	cmd := exec.Command("flock", "-F", ready, "sh", "-c", "mv "+ready+" "+run+"; exec sleep 300")
	if _, err := exec.LookPath("flock"); err != nil {
		t.Skip("skip: no flock program")
	}
	must(t, cmd.Start())
	for <-beats != "a begins" || !exists(run) {
	}
	select {
	case v := <-ended:
		t.Fatalf("ended while the worker lived: %+v", v)
	case <-time.After(3 * lockPoll): // it has to see the lock held
	}
	start := time.Now()
	must(t, cmd.Process.Kill())
	v := <-ended
	cmd.Wait()
	if v.Kind != Crashed || time.Since(start) > 10*time.Second {
		t.Errorf("%+v after %s", v, time.Since(start))
	}
	if exists(run) {
		t.Error("a zombie could still finish the claim")
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func TestWatchTakenBack(t *testing.T) {
	w, _ := watching(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	ready, _, ended := offer(t, ctx, w, task("a", ""))
	cancel(ErrTimeout)
	if v := <-ended; v.Kind != NotReady || exists(ready) {
		t.Errorf("unclaimed: %+v", v)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	ready, run, ended := offer(t, ctx, w, task("b", ""))
	must(t, os.Rename(ready, run))
	must(t, os.WriteFile(filepath.Join(run, "out", "half"), nil, 0o666))
	cancel(ErrTimeout)
	if v := <-ended; v.Kind != TimedOut || exists(run) {
		t.Errorf("claimed: %+v", v)
	}
	w.Patience = 0
	_, _, ended = offer(t, t.Context(), w, task("c", ""))
	if v := <-ended; v.Kind != NotReady {
		t.Errorf("nobody claims: %+v", v)
	}
}

// beat waits for one of an item.
func beat(t *testing.T, beats <-chan string, id string) {
	t.Helper()
	for late := time.After(30 * time.Second); ; {
		select {
		case got := <-beats:
			if got == id {
				return
			}
		case <-late:
			t.Fatalf("no beat %q within 30 s", id)
		}
	}
}

func TestWatchHeartbeat(t *testing.T) {
	w, beats := watching(t)
	ready, run, ended := offer(t, t.Context(), w, task("a", ""))
	must(t, os.Rename(ready, run))
	must(t, os.WriteFile(filepath.Join(run, "heartbeat"), nil, 0o666))
	beat(t, beats, "a")
	if said := w.Progress(task("a", "")); said != nil {
		t.Errorf("a heartbeat alone tells %s", said)
	}
	must(t, os.WriteFile(filepath.Join(run, "progress.json"), []byte("{\"n\": 1}\n"), 0o666))
	beat(t, beats, "a")
	if said := w.Progress(task("a", "")); string(said) != `{"n": 1}` {
		t.Errorf("progress %q", said)
	}
	must(t, os.WriteFile(filepath.Join(run, "_DONE"), nil, 0o666))
	<-ended
}
