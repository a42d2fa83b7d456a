package worker

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
)

// claiming runs the worker's side of w with a shell command for each item.
func claiming(t *testing.T, w *Watch, script string) (stop, abandon func()) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	hard, abandon := context.WithCancel(context.Background())
	ended := make(chan struct{})
	c := &Claims{Work: w.Folders.Work, Command: []string{"sh", "-c", script}, Grace: 100 * time.Millisecond, Slots: 2, Codes: DefaultExitCodes()}
	go func() { _ = c.Run(ctx, hard); close(ended) }()
	t.Cleanup(func() { stop(); abandon(); <-ended })
	return stop, abandon
}

// A command beside the coordinator means by its end what it means as a command of the coordinator.
func TestClaims(t *testing.T) {
	w, _ := watching(t)
	claiming(t, w, `echo "bad $RETINUE_ITEM" >&2
		case $RETINUE_ITEM in
		ok) cat ;; file) echo more > "$RETINUE_OUTPUT/file" ;;
		retry) exit 1 ;; dead) exit 65 ;; drop) exit 99 ;; broken) exit 127 ;; crash) kill -SEGV $$ ;;
		esac`)
	for name, want := range map[string]Kind{"ok": Ack, "file": Ack, "retry": Retry, "dead": Dead, "drop": Drop, "broken": NotReady, "crash": Crashed} {
		v := w.Call(t.Context(), []*item.Task{task(name, "hello")})[0]
		if v.Kind != want {
			t.Errorf("%s: %+v", name, v)
			continue
		}
		switch {
		case name == "ok" && string(v.Output.Result) != "hello":
			t.Errorf("its result is %q", v.Output.Result)
		case name == "file" && (len(v.Output.Files) != 1 || v.Output.Files[0].Name != "file"):
			t.Errorf("its files are %v", v.Output.Files)
		case want != Ack && !strings.Contains(v.Stderr, "bad "+name):
			t.Errorf("%s: the end of stderr is %q", name, v.Stderr)
		case name == "crash" && !strings.Contains(v.Reason, "signal 11"):
			t.Errorf("it crashed for %q", v.Reason)
		}
		w.Discard(v.Output)
	}
}

// What the coordinator takes back ends; a worker that ends lets go of what it has, without a verdict.
func TestClaimsEnd(t *testing.T) {
	w, _ := watching(t)
	_, abandon := claiming(t, w, `echo $$ > "$RETINUE_OUTPUT/pid"; exec sleep 60`)
	ctx, cancel := context.WithCancelCause(t.Context())
	_, run, ended := offer(t, ctx, w, task("long", "x"))
	pid := filepath.Join(run, "out", "pid")
	until(t, "the command runs", func() bool { _, err := os.Stat(pid); return err == nil })
	until(t, "its pid is written", func() bool { text, err := os.ReadFile(pid); return err == nil && len(text) > 0 })
	text, err := os.ReadFile(pid)
	must(t, err)
	cancel(ErrTimeout)
	if v := <-ended; v.Kind != TimedOut {
		t.Errorf("%+v", v)
	}
	proc := "/proc/" + strings.TrimSpace(string(text))
	until(t, "the command has ended", func() bool { _, err := os.Stat(proc); return err != nil })

	_, run, ended = offer(t, t.Context(), w, task("orphan", "x"))
	until(t, "the command runs", func() bool { _, err := os.Stat(filepath.Join(run, "out", "pid")); return err == nil })
	time.AfterFunc(2*lockPoll, abandon) // the lock must have been seen
	if v := <-ended; v.Kind != Crashed {
		t.Errorf("%+v", v)
	}
}

// A worker of another user can do its part.
func TestClaimsOfNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skip: needs root to become nobody")
	}
	w, _ := watching(t)
	for dir := w.Folders.Work; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) { // as an allocation's folder is
		must(t, os.Chmod(dir, 0o755))
	}
	_, _, ended := offer(t, t.Context(), w, task("a", "hello"))
	cmd := exec.Command("sh", "-ec", `cd "$1"; r=$(ls ready); mv ready/$r run/$r; cp run/$r/input run/$r/out/o; touch run/$r/_DONE`, "sh", w.Folders.Work)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if v := <-ended; v.Kind != Ack || string(v.Output.Result) != "hello" {
		t.Errorf("%+v", v)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// A worker that dies in the very moment of its claim, before anybody has seen its lock, is noticed.
func TestClaimsDieAtOnce(t *testing.T) {
	w, _ := watching(t)
	ready, run, ended := offer(t, t.Context(), w, task("a", "hello"))
	must(t, os.WriteFile(filepath.Join(ready, lockedName), nil, 0o666)) // what it leaves behind
	must(t, os.Rename(ready, run))
	select {
	case v := <-ended:
		if v.Kind != Crashed {
			t.Errorf("%+v", v)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nobody notices")
	}

	// Half a claim is none: another worker takes the item.
	ready, run, ended = offer(t, t.Context(), w, task("b", "hello"))
	c := &Claims{Work: w.Folders.Work}
	must(t, os.WriteFile(filepath.Join(ready, lockedName), nil, 0o666))
	first := c.take(filepath.Base(run))
	if first < 0 {
		t.Fatal("not claimed")
	}
	if second := c.take(filepath.Base(run)); second >= 0 {
		t.Error("claimed twice")
	}
	must(t, os.WriteFile(filepath.Join(run, "_DONE"), nil, 0o666))
	if v := <-ended; v.Kind != Ack {
		t.Errorf("%+v", v)
	}
	unix.Close(first)
}

// An idle slot is told of what is offered, also when the coordinator makes its folder late or anew.
func TestOffersAreTold(t *testing.T) {
	work := t.TempDir()
	o := openOffers(work, 1)
	defer o.close()
	if o.notices == nil {
		t.Skip("skip: no inotify")
	}
	ready := filepath.Join(work, readyDir)
	for range 2 {
		if o.watch(); o.watched.Load() {
			t.Fatal("a folder that is not there is watched")
		}
		must(t, os.Mkdir(ready, 0o777))
		o.watch()
		for _, name := range []string{"a", "b"} {
			must(t, os.Mkdir(filepath.Join(work, name), 0o777))
			must(t, os.Rename(filepath.Join(work, name), filepath.Join(ready, name)))
			select {
			case <-o.news:
			case <-time.After(10 * time.Second):
				t.Fatal("it is told nothing")
			}
		}
		must(t, os.RemoveAll(ready))
		until(t, "the end of the folder is known", func() bool { return !o.watched.Load() })
		select { // whoever waited looks in vain
		case <-o.news:
		case <-time.After(10 * time.Second):
			t.Fatal("the end of the folder woke nobody")
		}
	}
}
