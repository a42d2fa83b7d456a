package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"github.com/vmihailenco/msgpack/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/allocfs"
	"retinue/internal/lifecycle/manage"
	"retinue/internal/lifecycle/notify"
	"retinue/internal/lifecycle/state"
)

// task is one task of the inner driver, with its lifecycle. It is the engine's Host.
type task struct {
	d       *Driver
	log     hclog.Logger
	config  *proto.TaskConfig
	id      string // Nomad's: allocation, task and a number
	name    string
	alloc   string
	dir     string // the allocation's, on the host
	netns   string // path of the network namespace; "" is the host's
	env     map[string]string
	cfg     *lifecycle.Config // nil: without a lifecycle block
	engine  *lifecycle.Engine
	states  *state.Keeper            // nil: none, or none that can be used
	start   *proto.StartTaskRequest  // until it was started
	started *proto.StartTaskResponse // nil: not yet, or by an earlier driver

	starting  sync.Mutex // held while the inner driver starts it
	known     bool       // the inner driver has it
	givenUp   bool       // it is not to be started any more
	abandoned sync.Once

	container string        // of docker; "" for others
	exited    chan struct{} // the end was told to the engine
	ctx       context.Context
	cancel    context.CancelFunc
	serving   sync.WaitGroup // the task's sockets
	api       http.Handler   // the management API
	hasEnv    func() bool    // the program `env` is there for exec hooks
}

func (d *Driver) newTask(c *proto.TaskConfig, cfg *lifecycle.Config) *task {
	t := &task{
		d: d, config: c, id: c.Id, name: c.Name, alloc: c.AllocId, dir: c.AllocDir,
		netns: c.GetNetworkIsolationSpec().GetPath(), env: c.Env, cfg: cfg,
		log:    d.log.With("alloc", c.AllocId, "task", c.Name),
		exited: make(chan struct{}),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.hasEnv = sync.OnceValue(t.lookForEnv)
	return t
}

// begin gives the task its engine.
func (t *task) begin(open func(lifecycle.Options) (*lifecycle.Engine, error), id string, s settings) error {
	opts := lifecycle.Options{Config: t.cfg, Host: t, ID: id, StopBudget: s.stopBudget, Log: t.log}
	if keeper, err := t.keeper(s); err != nil {
		// The hooks that need it fail, as their policies say.
		opts.States = noStates{err}
	} else if keeper != nil {
		t.states = keeper
		opts.States = keeper
	}
	var err error
	if t.engine, err = open(opts); err != nil {
		return err
	}
	t.api = manage.Handler(t.cfg, managed{t})
	t.serve()
	return nil
}

// What the application finds in its environment.
const (
	envSock   = "RETINUE_SOCK"  // where it may listen for hooks and questions
	envAPI    = "RETINUE_API"   // where the management API of the task answers
	envState  = "RETINUE_STATE" // the state that it is given back, where there is one
	envNotify = "NOTIFY_SOCKET" // sd_notify(3)
)

// The sockets of a task in alloc/tmp: shared with the other tasks of the group, and
// not moved with the allocation (a socket would end the migration).
const (
	sockApp    = ".sock"        // the application listens
	sockAPI    = ".api.sock"    // the driver answers
	sockNotify = ".notify.sock" // the driver receives
)

const stateName = "retinue.state"

func (t *task) sockName(kind string) string { return "retinue-" + t.name + kind }

func (t *task) socket(kind string) allocfs.Socket {
	return allocfs.Socket{Dir: t.dir, Name: "alloc/tmp/" + t.sockName(kind)}
}

// addEnv tells the application where its sockets and its state are, in its own view of
// the file system. What the job sets itself stays.
func (t *task) addEnv(c *proto.TaskConfig) {
	add := map[string]string{}
	if alloc := c.Env["NOMAD_ALLOC_DIR"]; alloc != "" {
		add[envSock] = filepath.Join(alloc, "tmp", t.sockName(sockApp))
		add[envAPI] = filepath.Join(alloc, "tmp", t.sockName(sockAPI))
		if t.cfg != nil {
			add[envNotify] = filepath.Join(alloc, "tmp", t.sockName(sockNotify))
			if t.cfg.Watchdog > 0 {
				add["WATCHDOG_USEC"] = strconv.FormatInt(t.cfg.Watchdog.Microseconds(), 10)
			}
		}
	}
	if local := c.Env["NOMAD_TASK_DIR"]; local != "" && t.cfg.Has(lifecycle.RestoreState) {
		add[envState] = filepath.Join(local, stateName)
	}
	env := maps.Clone(c.Env)
	if env == nil {
		env = map[string]string{}
	}
	for name, value := range add {
		if env[name] == "" {
			env[name] = value
		}
	}
	c.Env, t.env = env, env
}

// serve answers on the task's sockets until it is closed.
func (t *task) serve() {
	if t.cfg != nil {
		server, err := notify.Listen(t.socket(sockNotify), t.log)
		if err != nil {
			t.log.Warn("the application cannot notify", "error", err)
		} else {
			t.serving.Go(func() {
				if err := server.Serve(t.ctx, func(m notify.Message) { t.engine.Notify(m.Notice) }); err != nil {
					t.log.Warn("the application cannot notify any more", "error", err)
				}
			})
		}
	}
	t.serving.Go(func() {
		if err := manage.Serve(t.ctx, t.socket(sockAPI), t.api); err != nil {
			t.log.Warn("no management API on the task's socket; nomad alloc exec @retinue has it", "error", err)
		}
	})
}

func hasExec(cfg *lifecycle.Config) bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(cfg.Hooks)), func(h lifecycle.Hook) bool { return h.Kind == lifecycle.KindExec })
}

// watch tells the engine of the end of the process.
func (t *task) watch() {
	go func() {
		defer close(t.exited)
		resp, err := t.d.tasks.WaitTask(t.ctx, &proto.WaitTaskRequest{TaskId: t.id})
		if err == nil {
			resp, err = t.trueEnd(t.ctx, resp)
		}
		if t.ctx.Err() != nil || lost(err) {
			return // the process goes on; whoever comes next asks again
		}
		st := lifecycle.ExitStatus{Err: resp.GetErr()}
		if err != nil {
			st.Err = err.Error()
		}
		if r := resp.GetResult(); r != nil {
			st.Code, st.Signal, st.OOM = int(r.ExitCode), int(r.Signal), r.OomKilled
		}
		t.engine.Exited(st)
	}()
}

// close ends the work for the task, which goes on.
func (t *task) close() {
	t.cancel()
	t.engine.Close()
	t.serving.Wait()
}

// innerError is an error of the inner driver, which the agent gets as it is.
type innerError struct{ error }

func (e innerError) Unwrap() error { return e.error }

// lost says that the inner driver's process is gone, and not that it refused.
func lost(err error) bool { return status.Code(err) == codes.Unavailable }

// ofInner is an error of a call to the inner driver. When its process is gone this one
// ends as well, and the next one takes the lifecycle up where it was: until then no
// failure must be told to the engine, which would go on to the next step with it.
func ofInner(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if lost(err) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return innerError{err}
}

// Start implements lifecycle.Host.
func (t *task) Start(ctx context.Context) error {
	t.starting.Lock()
	defer t.starting.Unlock()
	if t.givenUp {
		return errors.New("the start was given up")
	}
	// Not to be cancelled: the inner driver would go on, and nobody would know what it has started.
	resp, err := t.d.tasks.StartTask(context.WithoutCancel(ctx), t.start)
	t.start = nil
	if err != nil {
		return ofInner(ctx, err)
	}
	t.started, t.known = resp, true
	t.container = containerID(resp.GetHandle().GetDriverState())
	if t.cfg != nil && hasExec(t.cfg) {
		go t.hasEnv()
	}
	t.watch()
	return nil
}

// giveUp keeps the task from being started, after a start that is under way, and says whether the inner driver has it.
func (t *task) giveUp() bool {
	t.starting.Lock()
	defer t.starting.Unlock()
	t.givenUp = true
	return t.known
}

// Stop implements lifecycle.Host.
func (t *task) Stop(ctx context.Context, signal string, timeout time.Duration) error {
	_, err := t.d.tasks.StopTask(ctx, &proto.StopTaskRequest{TaskId: t.id, Signal: signal, Timeout: durationpb.New(timeout)})
	return ofInner(ctx, err)
}

// Kill implements lifecycle.Host.
func (t *task) Kill(ctx context.Context) error { return t.Signal(ctx, "SIGKILL") }

// Signal implements lifecycle.Host.
func (t *task) Signal(ctx context.Context, signal string) error {
	_, err := t.d.tasks.SignalTask(ctx, &proto.SignalTaskRequest{TaskId: t.id, Signal: signal})
	return ofInner(ctx, err)
}

// Event implements lifecycle.Host.
func (t *task) Event(ev lifecycle.Event) {
	t.d.emit(&proto.DriverTaskEvent{
		TaskId: t.id, AllocId: t.alloc, TaskName: t.name, Timestamp: timestamppb.Now(),
		Message: ev.Message, Annotations: ev.Details,
	})
}

// The state of the lifecycle lies where neither the task nor a migration reaches it,
// and where it goes with the allocation.
func (t *task) stateFile() string {
	private := filepath.Join(t.dir, t.name, "private")
	if info, err := os.Stat(private); err != nil || !info.IsDir() {
		private = filepath.Join(t.dir, t.name) // before Nomad 1.4
	}
	return filepath.Join(private, "retinue-lifecycle.json")
}

// Persist implements lifecycle.Host.
func (t *task) Persist(saved []byte) error {
	name := t.stateFile()
	tmp := name + ".new"
	if err := os.WriteFile(tmp, saved, 0o600); err != nil {
		return fmt.Errorf("keep the state of the lifecycle: %w", err)
	}
	if err := os.Rename(tmp, name); err != nil {
		return fmt.Errorf("keep the state of the lifecycle: %w", err)
	}
	return nil
}

// load returns what Persist was given last; nil when there is nothing.
func (t *task) load() []byte {
	saved, err := os.ReadFile(t.stateFile())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.log.Error("cannot read the state of the lifecycle; the task counts as running", "error", err)
		}
		return nil
	}
	return saved
}

// forget removes what the driver has written for a task that is gone.
func (t *task) forget() {
	t.cancel()
	t.serving.Wait()
	if err := t.socket(sockApp).Remove(); err != nil {
		t.log.Debug("cannot remove the application's socket", "error", err)
	}
	if err := os.Remove(t.stateFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.log.Warn("cannot remove the state of the lifecycle", "error", err)
	}
}

// containerID is the container in the state of Nomad's docker driver; "" for others.
func containerID(state []byte) string {
	_, raw, err := cutKey(state, "ContainerID")
	if err != nil || raw == nil {
		return ""
	}
	var id string
	if msgpack.Unmarshal(raw, &id) != nil {
		return ""
	}
	return id
}
