package worker

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue/coordinator/item"
)

func folders(t *testing.T) Folders {
	t.Helper()
	return Folders{Work: filepath.Join(t.TempDir(), "wq")}
}

func shell(t *testing.T, script string, change func(*Exec)) *Exec {
	t.Helper()
	w := &Exec{Folders: folders(t), Command: []string{"/bin/sh", "-c", script}, Codes: DefaultExitCodes(), Grace: 100 * time.Millisecond}
	if change != nil {
		change(w)
	}
	if err := w.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func task(id, body string) *item.Task {
	return &item.Task{Attempt: item.FileName(id) + ".1.a", ID: id, Stage: "s", Key: "k", N: 1, Max: 5, Fence: 77, Deadline: time.Now().Add(time.Minute), Body: []byte(body)}
}

func TestExecVerdicts(t *testing.T) {
	for script, want := range map[string]Verdict{
		"exit 0":                            {Kind: Ack},
		"exit 1":                            {Kind: Retry, Reason: "exit code 1"},
		"exit 75":                           {Kind: Retry, Reason: "exit code 75"},
		"echo no >&2; exit 65":              {Kind: Dead, Reason: "exit code 65", Stderr: "no\n"},
		"exit 99":                           {Kind: Drop, Reason: "exit code 99"},
		"exit 127":                          {Kind: NotReady, Reason: "the worker is broken: exit code 127"},
		"/no/such/command 2>&-":             {Kind: NotReady, Reason: "the worker is broken: exit code 127"},
		"kill -9 $$":                        {Kind: Crashed, Reason: "killed by signal 9 (killed)"},
		"sh -c 'kill -9 $$' 2>&-; exit 137": {Kind: Crashed, Reason: "exit code 137: killed by signal 9"},
		`echo '{"verdict":"drop","reason":"old"}' >status`:                                   {Kind: Drop, Reason: "old"},
		`echo '{"verdict":"retry","retry_after":"30s"}' >status`:                             {Kind: Retry, RetryAfter: 30 * time.Second},
		`echo '{"verdict":"dead"}' >status; exit 1`:                                          {Kind: Retry, Reason: "exit code 1"},
		`echo '{"verdict":"maybe"}' >status`:                                                 {Kind: Retry, Reason: `status: verdict "maybe" is none of ack, retry, drop, dead, not_ready`},
		`echo nonsense >"$RETINUE_OUTPUT/_result.json"`:                                      {Kind: Retry, Reason: "output: _result.json is not JSON"},
		`mkdir -p out/_next; echo '{"file":"../meta.json"}' >out/_next/1.json`:               {Kind: Retry, Reason: `output: a message names the file "../meta.json"`},
		`mkdir -p out/_next; echo '{"body":"x","file":"y"}' >out/_next/1.json`:               {Kind: Retry, Reason: "output: _next/1.json: message: it has 2 of body, body_base64 and file, want 1"},
		`mkdir -p out/_next; ln -s /etc/passwd out/p; echo '{"file":"p"}' >out/_next/1.json`: {Kind: Retry},
	} {
		w := shell(t, script, nil)
		got := w.Call(t.Context(), []*item.Task{task("a", "x")})[0]
		if got.Kind != want.Kind || want.Reason != "" && got.Reason != want.Reason || got.RetryAfter != want.RetryAfter || got.Stderr != want.Stderr {
			t.Errorf("%s: %+v, want %+v", script, got, want)
		}
		w.Discard(got.Output)
		if left, _ := os.ReadDir(filepath.Join(w.Folders.Work, "run")); len(left) != 0 {
			t.Errorf("%s: %d folders stay", script, len(left))
		}
	}
	for command, want := range map[string]string{
		"/no/such/worker": "the worker is broken: start /no/such/worker: no such file or directory",
		"no-such-worker":  `the worker is broken: start exec: "no-such-worker": executable file not found in $PATH`,
		"/etc/passwd":     "the worker is broken: start /etc/passwd: permission denied",
		"./input":         "the worker is broken: start ./input: permission denied",
	} {
		w := shell(t, "", func(w *Exec) { w.Command = []string{command} })
		if got := w.Call(t.Context(), []*item.Task{task("a", "")})[0]; got.Kind != NotReady || got.Reason != want {
			t.Errorf("%s: %+v", command, got)
		}
	}
}

func TestExecContract(t *testing.T) {
	w := shell(t, `cat >"$RETINUE_OUTPUT/stdin"; cat "$RETINUE_INPUT"; echo "$RETINUE_ITEM $RETINUE_STAGE $RETINUE_KEY $RETINUE_ATTEMPT $RETINUE_MAX_ATTEMPTS $RETINUE_FENCE" >out/env
		test "$RETINUE_DEADLINE_MS" -gt 1000 && grep -q '"fence":77' meta.json && echo '{"n":1}' >out/_result.json
		mkdir out/_next; echo '{"file":"env","key":"k2","priority":3,"delay":"5s","headers":{"a":"b"}}' >out/_next/2.json; echo '{"body":"first"}' >out/_next/1.json`, nil)
	got := w.Call(t.Context(), []*item.Task{task("a/b", "payload")})[0]
	if got.Kind != Ack || string(got.Output.Result) != `{"n":1}`+"\n" {
		t.Fatalf("%+v %+v", got, got.Output)
	}
	names := []string{}
	for _, f := range got.Output.Files {
		names = append(names, f.Name+" "+strconv.FormatInt(f.Size, 10))
	}
	if s := strings.Join(names, ", "); s != "env 15, stdin 7, stdout 7" {
		t.Errorf("files: %s", s)
	}
	next := got.Output.Next
	if len(next) != 2 || string(next[0].Body) != "first" || string(next[1].Body) != "a/b s k 1 5 77\n" || next[1].Key != "k2" || next[1].Priority != 3 || next[1].Delay != 5*time.Second || next[1].Headers["a"] != "b" {
		t.Errorf("next: %+v", next)
	}
}

// What fetches inputs tells what its worker tells; one that has no folder tells nothing.
func TestProgressBehindInputs(t *testing.T) {
	w, it := shell(t, "", nil), task("a", "")
	dir := filepath.Join(w.Folders.Work, "run", it.Attempt)
	if err := errors.Join(os.MkdirAll(dir, 0o777), os.WriteFile(filepath.Join(dir, "progress.json"), []byte("7"), 0o666)); err != nil {
		t.Fatal(err)
	}
	if said := (&Inputs{Worker: w}).Progress(it); string(said) != "7" {
		t.Errorf("%s", said)
	}
	if said := (&Inputs{Worker: NewHTTP("http://127.0.0.1:1/")}).Progress(it); said != nil {
		t.Errorf("%s", said)
	}
}

// A large output goes on by reference, and the next stage checks that it is what was meant.
func TestReferences(t *testing.T) {
	done := t.TempDir()
	w := shell(t, `head -c 300000 /dev/zero >out/big; mkdir out/_next; echo '{"file":"big"}' >out/_next/1.json`, func(w *Exec) {
		w.Folders.Final = func(t *item.Task) *url.URL { return &url.URL{Scheme: "file", Path: filepath.Join(done, t.Stage, t.ID)} }
	})
	got := w.Call(t.Context(), []*item.Task{task("a", "")})[0]
	if got.Kind != Ack || got.Output.Next[0].Input == nil {
		t.Fatalf("%+v %+v", got, got.Output)
	}
	ref := got.Output.Next[0].Input
	if err := os.MkdirAll(filepath.Join(done, "s"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(got.Output.Out, filepath.Join(done, "s", "a")); err != nil {
		t.Fatal(err)
	}
	run := func(ref item.Reference, allow ...string) Verdict {
		w := shell(t, "wc -c <input", func(w *Exec) { w.Folders.Allow = allow })
		next := task("b", "")
		next.Input = &ref
		return w.Call(t.Context(), []*item.Task{next})[0]
	}
	if v := run(*ref, done); v.Kind != Ack || strings.TrimSpace(string(v.Output.Result)) != "300000" {
		t.Errorf("%+v", v)
	}
	if v := run(*ref); v.Kind != Retry || !strings.Contains(v.Reason, "not below a folder") {
		t.Errorf("from anywhere: %+v", v)
	}
	if v := run(item.Reference{URL: "file:///etc/passwd", Size: 1}, done); v.Kind != Retry || !strings.Contains(v.Reason, "not below") {
		t.Errorf("passwd: %+v", v)
	}
	wrong := *ref
	wrong.SHA256 = strings.Repeat("0", 64)
	if v := run(wrong, done); v.Kind != Retry || !strings.Contains(v.Reason, "SHA-256") {
		t.Errorf("another file: %+v", v)
	}
	wrong = *ref
	wrong.Size--
	if v := run(wrong, done); v.Kind != Retry || !strings.Contains(v.Reason, "bytes") {
		t.Errorf("another size: %+v", v)
	}
}

// At the deadline the whole group goes, grandchildren and those who ignore SIGTERM included.
func TestExecDeadline(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	w := shell(t, fmt.Sprintf(`trap '' TERM; sleep 300 & echo $! $$ >%s; wait; sleep 300`, pids), nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan Verdict, 1)
	go func() { ended <- w.Call(ctx, []*item.Task{task("a", "")})[0] }()
	var text []byte
	for len(strings.Fields(string(text))) < 2 {
		text, _ = os.ReadFile(pids)
		time.Sleep(time.Millisecond)
	}
	cancel(ErrTimeout)
	if v := <-ended; v.Kind != TimedOut || v.Reason != "longer than max_runtime" {
		t.Errorf("%+v", v)
	}
	for _, field := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		for alive(pid) {
			time.Sleep(time.Millisecond)
		}
	}
}

// What a command leaves behind in its group ends with it: it could still write to the output.
func TestExecLeavesNobody(t *testing.T) {
	w := shell(t, "sleep 300 >/dev/null 2>&1 & echo $!", nil)
	v := w.Call(t.Context(), []*item.Task{task("a", "")})[0]
	pid, err := strconv.Atoi(strings.TrimSpace(string(v.Output.Result)))
	if v.Kind != Ack || err != nil {
		t.Fatalf("%+v, %v", v, err)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it lives")
		}
	}
}

func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(data), ") Z ")
}

// The next process ends what the commands of a killed one left, and clears their folders.
func TestLeftovers(t *testing.T) {
	f := folders(t)
	attempt := filepath.Join(f.Work, "run", "old")
	if err := os.MkdirAll(filepath.Join(attempt, "out"), 0o777); err != nil {
		t.Fatal(err)
	}
	left, err := os.StartProcess("/bin/sleep", []string{"sleep", "300"}, &os.ProcAttr{Env: []string{"RETINUE_OUTPUT=" + filepath.Join(attempt, "out")}})
	if err != nil {
		t.Fatal(err)
	}
	defer left.Kill()
	for { // it has its environment once it is what it was started for
		if env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", left.Pid)); strings.HasPrefix(string(env), "RETINUE_OUTPUT=") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	lock, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	state, err := left.Wait()
	if err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the leftover: %v, %v", state, err)
	}
	if _, err := os.Stat(attempt); !os.IsNotExist(err) {
		t.Errorf("its folder: %v", err)
	}
	if _, err := f.Open(); err == nil || !strings.Contains(err.Error(), "another coordinator") {
		t.Errorf("a second one in the same folder: %v", err)
	}
}

func TestLines(t *testing.T) {
	tasks := []*item.Task{task("a", "1"), task("b", "\xff"), task("c", "3")}
	run := func(script string) []Verdict {
		w := &Lines{Exec{Folders: folders(t), Command: []string{"/bin/sh", "-c", script}, Codes: DefaultExitCodes(), Grace: time.Second}}
		if err := w.Open(); err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return w.Call(t.Context(), tasks)
	}
	kinds := func(vs []Verdict) string {
		var out []string
		for _, v := range vs {
			text := string(v.Kind)
			if v.Whole {
				text += "*"
			}
			out = append(out, text)
		}
		return strings.Join(out, " ")
	}
	for script, want := range map[string]string{
		`sed 's/^{"id":"\(.\)".*/{"id":"\1","verdict":"ack","output":{"n":1}}/'`:                                     "ack ack ack",
		`echo '{"id":"c","verdict":"dead"}'; echo '{"id":"a","verdict":"retry","retry_after":3}'; echo '{"id":"b"}'`: "retry ack dead",
		`echo '{"id":"a"}'; kill -9 $$`:                "ack crash* crash*",
		`echo '{"id":"a"}'; echo '{"id":"b"}'; exit 1`: "ack ack retry",
		`exit 127`:                         "not_ready* not_ready* not_ready*",
		`true`:                             "retry* retry* retry*",
		`echo '{"id":"a"}'; echo nonsense`: "ack retry* retry*",
	} {
		if got := kinds(run(script)); got != want {
			t.Errorf("%s: %s, want %s", script, got, want)
		}
	}
	vs := run(`grep -c . >/dev/null; echo '{"id":"a","next":[{"body":"x"}],"output":"text"}'`)
	if o := vs[0].Output; string(o.Result) != `"text"` || len(o.Next) != 1 {
		t.Errorf("%+v", o)
	}
}
