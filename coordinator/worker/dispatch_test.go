package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue/coordinator/item"
	"retinue/internal/hint"
	"retinue/internal/taskapi"
)

// nomadOfChildren is what Nomad is to a dispatching coordinator: a parameterized job, tokens, children and their ends.
type nomadOfChildren struct {
	t  *testing.T
	mu sync.Mutex

	parent   map[string]any
	children map[string]*child // by id
	tokens   map[string]*child
	index    int
	changed  chan struct{}
	refuse   int // a status for every request
	made     []string
	found    int // tokens that were known
}

type child struct {
	id      string
	meta    map[string]string
	payload []byte
	stopped bool
	alloc   map[string]any
}

func newNomad(t *testing.T) *nomadOfChildren {
	n := &nomadOfChildren{t: t, children: map[string]*child{}, tokens: map[string]*child{}, changed: make(chan struct{}), index: 1}
	n.parent = map[string]any{"ParameterizedJob": map[string]any{"Payload": "optional", "MetaRequired": []string{"retinue_item"}, "MetaOptional": []string{"retinue_dir", "retinue_attempt", "retinue_stage"}},
		"TaskGroups": []any{map[string]any{"Name": "worker", "Count": 1, "Tasks": []any{map[string]any{"Name": "worker", "Driver": "raw_exec"}}}}}
	return n
}

func (n *nomadOfChildren) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.URL.Path == "/v1/jobs" {
		jobs := []any{}
		for _, c := range n.children {
			if c.alloc == nil && !c.stopped {
				jobs = append(jobs, map[string]any{"ID": c.id, "Meta": c.meta})
			}
		}
		json.NewEncoder(w).Encode(jobs)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v1/job/")
	name, verb, _ := strings.Cut(path, "/")
	if at := strings.LastIndex(path, "/"); strings.Contains(path, "dispatch-") && at > strings.Index(path, "dispatch-") {
		name, verb = path[:at], path[at+1:]
	} else if strings.Contains(path, "dispatch-") {
		name, verb = path, ""
	}
	c := n.children[name]
	switch {
	case n.refuse != 0:
		http.Error(w, "no", n.refuse)
	case name == "thumb" && verb == "":
		json.NewEncoder(w).Encode(n.parent)
	case name == "thumb" && verb == "summary":
		alive := 0
		for _, c := range n.children {
			if c.alloc == nil && !c.stopped {
				alive++
			}
		}
		json.NewEncoder(w).Encode(map[string]any{"Children": map[string]int{"Pending": alive / 2, "Running": alive - alive/2, "Dead": len(n.children) - alive}})
	case name == "thumb" && verb == "dispatch":
		token := r.URL.Query().Get("idempotency_token")
		if old := n.tokens[token]; old != nil {
			n.found++
			json.NewEncoder(w).Encode(map[string]any{"DispatchedJobID": old.id})
			return
		}
		var req struct {
			Meta    map[string]string
			Payload []byte
		}
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			n.t.Error(err)
		}
		c = &child{id: fmt.Sprintf("thumb/dispatch-%d", len(n.children)), meta: req.Meta, payload: req.Payload}
		n.children[c.id], n.tokens[token], n.made = c, c, append(n.made, token)
		n.bump()
		json.NewEncoder(w).Encode(map[string]any{"DispatchedJobID": c.id, "EvalID": "e"})
	case c == nil:
		http.Error(w, "job not found", http.StatusNotFound)
	case r.Method == http.MethodDelete:
		c.stopped = true
		n.bump()
		w.Write([]byte("{}"))
	case verb == "":
		json.NewEncoder(w).Encode(map[string]any{"Stop": c.stopped})
	default:
		for r.URL.Query().Get("index") == strconv.Itoa(n.index) && r.Context().Err() == nil {
			changed := n.changed
			n.mu.Unlock()
			select {
			case <-changed:
			case <-r.Context().Done():
			}
			n.mu.Lock()
		}
		w.Header().Set("X-Nomad-Index", strconv.Itoa(n.index))
		allocs := []any{}
		if c.alloc != nil {
			allocs = append(allocs, c.alloc)
			if c.alloc["ClientStatus"] == "lost" { // Nomad has made another one in the same moment
				allocs = append(allocs, map[string]any{"ClientStatus": "running", "DesiredStatus": "run", "NodeName": "node-8", "CreateIndex": 9})
			}
		}
		json.NewEncoder(w).Encode(allocs)
	}
}

func (n *nomadOfChildren) bump() {
	n.index++
	close(n.changed)
	n.changed = make(chan struct{})
}

// ends gives a child of this number an allocation that has ended like this.
func (n *nomadOfChildren) ends(number int, status string, events ...map[string]any) *child {
	n.t.Helper()
	var c *child
	eventually(n.t, func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		c = n.children[fmt.Sprintf("thumb/dispatch-%d", number)]
		return c != nil
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	c.alloc = map[string]any{"ID": "alloc-of-" + c.id, "ClientStatus": status, "DesiredStatus": "run", "NodeName": "node-7", "CreateIndex": 5, "TaskStates": map[string]any{"worker": map[string]any{"State": "dead", "Events": events}}}
	n.bump()
	return c
}

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 30 s")
		}
	}
}

func exit(code int) map[string]any {
	return map[string]any{"Type": "Terminated", "Details": map[string]string{"exit_code": strconv.Itoa(code), "signal": "0", "oom_killed": "false"}}
}

// dispatcher is a coordinator's worker; each call makes another one, as after a restart.
func (n *nomadOfChildren) dispatcher(work string) *Dispatch {
	n.t.Helper()
	srv := httptest.NewServer(n)
	n.t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	api, err := taskapi.New(taskapi.Config{Addr: srv.URL}, func(string) string { return "" })
	if err != nil {
		n.t.Fatal(err)
	}
	return &Dispatch{API: api, Job: "thumb", Folders: Folders{Work: work, Final: nil}, Codes: DefaultExitCodes(), Beat: func(string, bool) {}}
}

func dispatchTask(attempt int) *item.Task {
	return &item.Task{Attempt: "photo.1.abc", ID: "photo 7/x", Stage: "thumbs", N: attempt, Max: 5, Fence: 99, Body: []byte("payload")}
}

func call(ctx context.Context, w *Dispatch, t *item.Task) chan Verdict {
	got := make(chan Verdict, 1)
	go func() { got <- w.Call(ctx, []*item.Task{t})[0] }()
	return got
}

// How a child ended says what became of the attempt.
func TestDispatchVerdicts(t *testing.T) {
	for name, test := range map[string]struct {
		status string
		events []map[string]any
		kind   Kind
		says   string
	}{
		"done":           {"complete", []map[string]any{exit(0)}, Ack, ""},
		"retry":          {"failed", []map[string]any{exit(1)}, Retry, "exit code 1"},
		"refused":        {"failed", []map[string]any{exit(65)}, Dead, "65"},
		"dropped":        {"failed", []map[string]any{exit(99)}, Drop, ""},
		"a signal":       {"failed", []map[string]any{{"Type": "Terminated", "Details": map[string]string{"exit_code": "137", "signal": "9"}}}, Crashed, "signal 9"},
		"a shell":        {"failed", []map[string]any{exit(137)}, Crashed, "signal 9"},
		"out of memory":  {"failed", []map[string]any{{"Type": "Terminated", "Details": map[string]string{"exit_code": "137", "oom_killed": "true"}}}, Crashed, "memory"},
		"a lost node":    {"lost", nil, Crashed, "node-7 was lost"},
		"no such image":  {"failed", []map[string]any{{"Type": "Driver Failure", "DisplayMessage": "no such image"}}, NotReady, "no such image"},
		"without a word": {"failed", nil, Crashed, "ended as failed"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNomad(t)
			w := n.dispatcher("")
			if err := w.Open(); err != nil {
				t.Fatal(err)
			}
			got := call(t.Context(), w, dispatchTask(1))
			c := n.ends(0, test.status, test.events...)
			v := <-got
			if v.Kind != test.kind || !strings.Contains(v.Reason, test.says) || v.Node != "node-7" || v.Alloc != "alloc-of-thumb/dispatch-0" {
				t.Errorf("%+v", v)
			}
			if string(c.payload) != "payload" || c.meta["retinue_item"] != "photo 7/x" || c.meta["retinue_attempt"] != "1" || c.meta["retinue_fence"] != "" {
				t.Errorf("the child got %q, %v; only what the job declares may be sent", c.payload, c.meta)
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			if c.stopped != (test.kind == Crashed) { // Nomad must not replace what nobody waits for
				t.Errorf("stopped: %v", c.stopped)
			}
		})
	}
}

// A coordinator that begins an attempt anew finds its child, while it runs and after its end; no second one is made. An attempt that does
// not count gets a new child, one that counts has a token of its own.
func TestDispatchOnce(t *testing.T) {
	n := newNomad(t)
	work := t.TempDir()
	first := n.dispatcher(work)
	if err := first.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, kill := context.WithCancelCause(t.Context())
	got := call(ctx, first, dispatchTask(1))
	eventually(t, func() bool { n.mu.Lock(); defer n.mu.Unlock(); return len(n.made) == 1 })
	kill(fmt.Errorf("infra: the coordinator stops"))
	if v := <-got; v.Kind != Stopped || v.Output != nil {
		t.Fatalf("%+v", v)
	}
	n.mu.Lock()
	c := n.children["thumb/dispatch-0"]
	if c.stopped {
		t.Error("the child ends with its coordinator")
	}
	dir := c.meta["retinue_dir"]
	n.mu.Unlock()
	if data, err := os.ReadFile(filepath.Join(dir, "input")); err != nil || string(data) != "payload" || c.payload != nil {
		t.Fatalf("the input: %q, %v; payload %q", data, err, c.payload)
	}

	second := n.dispatcher(work)
	later := dispatchTask(1)
	later.Fence, later.Attempt = 100, "photo.1.def"
	got = call(t.Context(), second, later)
	if err := os.WriteFile(filepath.Join(dir, "out", "thumb.png"), []byte("PNG"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), []byte(`{"verdict":"ack"}`), 0o666); err != nil {
		t.Fatal(err)
	}
	n.ends(0, "complete", exit(0))
	v := <-got
	if v.Kind != Ack || string(v.Output.Result) != "PNG" || len(n.made) != 1 {
		t.Fatalf("%+v, dispatched %v", v, n.made)
	}
	third := n.dispatcher(work) // a third one finds it ended
	if v := third.Call(t.Context(), []*item.Task{dispatchTask(1)})[0]; v.Kind != Ack || len(n.made) != 1 {
		t.Fatalf("%+v, dispatched %v", v, n.made)
	}
	third.Discard(v.Output)
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder is left")
	}

	got = call(t.Context(), third, dispatchTask(2)) // counted: another token
	n.ends(1, "failed", exit(127))
	if v := <-got; v.Kind != NotReady {
		t.Errorf("%+v", v)
	}
	got = call(t.Context(), third, dispatchTask(2)) // not counted: the child that is there has not worked
	n.ends(2, "failed", exit(65))
	if v := <-got; v.Kind != Dead || len(n.made) != 3 {
		t.Errorf("%+v, dispatched %v", v, n.made)
	}
}

// A job never has more children than it may, whichever coordinator made them: those of one that has died count, and an item that waits for
// room burns none of its time and can be cancelled.
func TestDispatchOutstanding(t *testing.T) {
	n := newNomad(t)
	numbered := func(i int) *item.Task {
		task := dispatchTask(1)
		task.ID, task.Attempt = fmt.Sprintf("item-%d", i), fmt.Sprintf("item-%d.1", i)
		return task
	}
	made := func() int { n.mu.Lock(); defer n.mu.Unlock(); return len(n.made) }
	first := n.dispatcher(t.TempDir())
	first.Outstanding = 2
	ctx, kill := context.WithCancelCause(t.Context())
	left := []chan Verdict{call(ctx, first, numbered(0)), call(ctx, first, numbered(1))}
	eventually(t, func() bool { return made() == 2 })
	kill(fmt.Errorf("infra: the coordinator stops"))
	for _, got := range left {
		<-got
	}

	second := n.dispatcher(first.Folders.Work)
	second.Outstanding = 2
	waits := make(chan string, 100)
	second.Beat = func(id string, again bool) {
		select {
		case waits <- id:
		default:
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	never := call(ctx, second, numbered(7))
	next := []chan Verdict{call(t.Context(), second, numbered(2)), call(t.Context(), second, numbered(3))}
	for seen := map[string]bool{}; len(seen) < 3; {
		seen[<-waits] = true
	}
	old := call(t.Context(), second, numbered(0)) // it has a child, and needs no room
	eventually(t, func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.found == 1 })
	if made() != 2 {
		t.Fatalf("%d children, and two were there", made())
	}
	cancel(ErrCancelled)
	if v := <-never; v.Kind != Stopped {
		t.Errorf("%+v", v)
	}
	for i := range 4 { // one ends, one is made
		n.ends(i, "complete", exit(0))
		if i < 2 {
			eventually(t, func() bool { return made() == 3+i })
		}
	}
	for _, got := range append(next, old) {
		if v := <-got; v.Kind != Ack {
			t.Errorf("%+v", v)
		}
	}
	if made() != 4 {
		t.Errorf("%d children of four items", made())
	}
	if left, _ := filepath.Glob(filepath.Join(second.Folders.Work, "dispatch", "item-7*")); len(left) != 0 {
		t.Errorf("an item that never began left %v", left)
	}
}

// Cancellation and the end of its time stop a child, and nothing of it is left.
func TestDispatchStops(t *testing.T) {
	for _, cause := range []error{ErrCancelled, ErrTimeout} {
		n := newNomad(t)
		w := n.dispatcher(t.TempDir())
		if err := w.Open(); err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancelCause(t.Context())
		got := call(ctx, w, dispatchTask(1))
		eventually(t, func() bool { n.mu.Lock(); defer n.mu.Unlock(); return len(n.made) == 1 })
		end(cause)
		v := <-got
		n.mu.Lock()
		stopped := n.children["thumb/dispatch-0"].stopped
		n.mu.Unlock()
		if want := map[bool]Kind{true: TimedOut, false: Stopped}[cause == ErrTimeout]; v.Kind != want || !stopped || v.Output == nil {
			t.Fatalf("%v: %+v, stopped %v", cause, v, stopped)
		}
		w.Discard(v.Output)
		if left, _ := filepath.Glob(filepath.Join(w.Folders.Work, "dispatch", "*")); len(left) != 0 {
			t.Errorf("%v: left %v", cause, left)
		}
	}
}

// A child shows progress in its folder, which a coordinator that finds it sees too.
func TestDispatchProgress(t *testing.T) {
	n := newNomad(t)
	work := t.TempDir()
	for range 2 {
		w, beats := n.dispatcher(work), make(chan string, 1000)
		w.Signs = Signs{Every: 5 * time.Millisecond, Beat: func(id string, _ bool) { beats <- id }}
		ctx, end := context.WithCancel(t.Context())
		task := dispatchTask(1)
		got := call(ctx, w, task)
		if said := w.Progress(&item.Task{ID: "another"}); said != nil {
			t.Errorf("another one: %s", said)
		}
		eventually(t, func() bool {
			dirs, err := filepath.Glob(filepath.Join(work, "dispatch", "*", "input"))
			return err == nil && len(dirs) == 1 && os.WriteFile(filepath.Join(filepath.Dir(dirs[0]), "progress.json"), []byte("[7]"), 0o666) == nil
		})
		eventually(t, func() bool { return string(w.Progress(task)) == "[7]" })
		beat(t, beats, task.ID)
		end()
		<-got
		if said := w.Progress(task); said != nil {
			t.Errorf("of a call that is over: %s", said)
		}
	}
}

// A job that cannot work is refused at once, with what to do; a Nomad that does not answer, or refuses, burns no attempt.
func TestDispatchRefuses(t *testing.T) {
	group := func(driver string) []any {
		return []any{map[string]any{"Name": "worker", "Count": 1, "Tasks": []any{map[string]any{"Name": "worker", "Driver": driver}}}}
	}
	optional := map[string]any{"Payload": "optional"}
	for says, parent := range map[string]map[string]any{
		"driver exec":          {"ParameterizedJob": optional, "TaskGroups": group("exec")},
		"is not parameterized": {"TaskGroups": group("docker")},
		"has 2 groups":         {"ParameterizedJob": optional, "TaskGroups": append(group("docker"), group("docker")...)},
		"takes no payload":     {"ParameterizedJob": map[string]any{"Payload": "forbidden"}, "TaskGroups": group("docker")},
		`metadata "color"`:     {"ParameterizedJob": map[string]any{"Payload": "optional", "MetaRequired": []string{"color"}}, "TaskGroups": group("docker")},
	} {
		n := newNomad(t)
		n.parent = parent
		if err := n.dispatcher("").Open(); err == nil || !strings.Contains(err.Error(), says) || hint.Of(err) == "" {
			t.Errorf("%s: %v", says, err)
		}
	}
	n := newNomad(t)
	w := n.dispatcher("")
	large := dispatchTask(1)
	large.Body = make([]byte, MaxPayload+1)
	if v := w.Call(t.Context(), []*item.Task{large})[0]; v.Kind != Dead || !strings.Contains(v.Reason, "--work") {
		t.Errorf("%+v", v)
	}
	for status, kind := range map[int]Kind{http.StatusForbidden: NotReady, http.StatusInternalServerError: NotReady, http.StatusTooManyRequests: Infra} {
		n.refuse = status
		if v := n.dispatcher("").Call(t.Context(), []*item.Task{dispatchTask(1)})[0]; v.Kind != kind {
			t.Errorf("%d: %+v", status, v)
		}
	}
	if err := n.dispatcher("").Open(); err != nil {
		t.Errorf("Nomad does not answer at the start: %v; it may later", err)
	}
}
