package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"retinue/internal/hint"
	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/allocfs"
	"retinue/internal/lifecycle/hookhttp"
	"retinue/internal/lifecycle/manage"
	"retinue/internal/lifecycle/notify"
	"retinue/internal/lifecycle/state"
)

// MinKillTimeout is the shortest kill timeout that hooks fit into.
const MinKillTimeout = 5 * time.Second

// reserve is kept back of the kill timeout, so that the shim ends by itself before Nomad ends it: two seconds are the
// signal's own under a shared budget.
const reserve = 2500 * time.Millisecond

// Options are what Run needs.
type Options struct {
	Command     []string
	Environ     []string      // NAME=value; the lifecycle is read from NOMAD_META_retinue_lifecycle_*
	KillTimeout time.Duration // the task's kill_timeout
	Version     string
	Log         hclog.Logger
}

// Run is the whole life of the container. It returns the code that the shim exits with: the application's, or 128 and the
// signal that ended it.
func Run(opts Options) (code int, err error) {
	if opts.KillTimeout < MinKillTimeout {
		return 0, hint.Wrap(fmt.Errorf("a kill timeout of %s leaves no time for hooks", opts.KillTimeout), "set kill_timeout and --kill-timeout to %s or more", MinKillTimeout)
	}
	env := map[string]string{}
	for _, pair := range opts.Environ {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	if env["RETINUE_API"] != "" {
		// The lifecycle driver runs this task and its hooks already: there is nothing left to do but be the command.
		path, err := exec.LookPath(opts.Command[0])
		if err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("become %s: %w", path, syscall.Exec(path, opts.Command, opts.Environ))
	}
	cfg, err := lifecycle.FromMeta(env)
	if err != nil {
		return 0, fmt.Errorf("the lifecycle in the task's meta: %w", err)
	}
	if cfg == nil {
		cfg = &lifecycle.Config{}
	}
	cfg.Budget = lifecycle.Shared
	s := &shim{opts: opts, cfg: cfg, env: env, log: opts.Log}
	return s.run()
}

type shim struct {
	opts   Options
	cfg    *lifecycle.Config
	env    map[string]string
	log    hclog.Logger
	engine *lifecycle.Engine
	host   *host
	app    allocfs.Socket
	keeper *state.Keeper
	work   sync.WaitGroup
}

func (s *shim) run() (int, error) {
	// Before anything is started: a signal that comes meanwhile must not be lost.
	signals := make(chan os.Signal, 32)
	signal.Notify(signals)
	defer signal.Stop(signals)

	r := newReaper()
	stopReaping := make(chan struct{})
	var reaping sync.WaitGroup
	reaping.Go(func() { r.run(stopReaping) })
	defer func() { close(stopReaping); reaping.Wait() }()

	ended := make(chan lifecycle.ExitStatus, 1)
	added := s.addEnv()
	s.host = &host{command: s.opts.Command, env: s.environ(added), state: added["RETINUE_STATE"], reaper: r, log: s.log,
		http: &hookhttp.Caller{Socket: s.app, AllowLocal: true}}
	lopts := lifecycle.Options{Config: s.cfg, Host: s.host, ID: s.env["NOMAD_ALLOC_ID"] + "-" + strconv.FormatInt(time.Now().UnixNano(), 36), Log: s.log}
	if keeper, err := s.states(); err != nil {
		return 0, err
	} else if keeper != nil {
		s.keeper, lopts.States = keeper, keeper
	}
	s.engine = lifecycle.New(lopts)
	s.host.exited = func(st lifecycle.ExitStatus) { s.engine.Exited(st); ended <- st }

	ctx, cancel := context.WithCancel(context.Background())
	defer func() { cancel(); s.work.Wait() }()
	if err := s.serve(ctx); err != nil {
		s.log.Warn("no sockets for the application and for management", "error", err)
	}
	started := make(chan error, 1)
	go func() { started <- s.engine.Start(ctx) }()
	for {
		select {
		case err := <-started:
			if err != nil {
				s.finish(ctx)
				return 0, fmt.Errorf("start the application: %w", err)
			}
		case st := <-ended:
			s.finish(ctx)
			return st.Code, nil
		case sig := <-signals:
			s.signalled(ctx, sig)
		}
	}
}

// finish lets on_exit come to its end.
func (s *shim) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Hooks[lifecycle.OnExit].Timeout+time.Second)
	defer cancel()
	if err := s.engine.Destroy(ctx); err != nil {
		s.log.Warn("cannot end the lifecycle", "error", err)
	}
	select {
	case <-s.engine.Done():
	case <-ctx.Done():
	}
}

// signalled does what a signal from outside asks for: the ones that end a task begin a stop, the rest is the application's.
func (s *shim) signalled(ctx context.Context, sig os.Signal) {
	number, ok := sig.(syscall.Signal)
	if !ok || slices.Contains([]syscall.Signal{syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE}, number) {
		return // the kernel's and the Go runtime's own
	}
	name := unix.SignalName(number)
	s.work.Go(func() {
		if number == syscall.SIGTERM || number == syscall.SIGINT || number == syscall.SIGQUIT {
			if err := s.engine.Stop(ctx, lifecycle.StopRequest{Signal: name, Timeout: s.opts.KillTimeout - reserve}); err != nil && ctx.Err() == nil {
				s.log.Warn("the stop was given up", "error", err)
			}
			return
		}
		handled, err := s.engine.Signal(ctx, name)
		if !handled {
			err = s.host.signal(number, false)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot forward a signal", "signal", name, "error", err)
		}
	})
}

// addEnv says what the application finds in its environment beside its own.
func (s *shim) addEnv() map[string]string {
	added := map[string]string{}
	task := s.env["NOMAD_TASK_NAME"]
	if dir := s.env["NOMAD_ALLOC_DIR"]; dir != "" && task != "" {
		s.app = allocfs.Socket{Dir: dir, Name: "tmp/retinue-" + task + ".sock"}
		added["RETINUE_SOCK"] = s.app.String()
		added["RETINUE_API"] = filepath.Join(dir, "tmp/retinue-"+task+".api.sock")
		added["NOTIFY_SOCKET"] = filepath.Join(dir, "tmp/retinue-"+task+".notify.sock")
	}
	if s.cfg.Watchdog > 0 {
		added["WATCHDOG_USEC"] = strconv.FormatInt(s.cfg.Watchdog.Microseconds(), 10)
	}
	if dir := s.env["NOMAD_TASK_DIR"]; dir != "" && s.cfg.Has(lifecycle.RestoreState) {
		added["RETINUE_STATE"] = filepath.Join(dir, "retinue.state")
	}
	return added
}

func (s *shim) environ(added map[string]string) []string {
	all := maps.Clone(s.env)
	for name, value := range added {
		if all[name] == "" {
			all[name] = value
		}
	}
	out := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, name+"="+all[name])
	}
	return out
}

// states is the store of the task; from inside a container that is the allocation's own folder.
func (s *shim) states() (*state.Keeper, error) {
	if !s.cfg.Has(lifecycle.SaveState) && !s.cfg.Has(lifecycle.RestoreState) {
		return nil, nil
	}
	dir := s.env["NOMAD_ALLOC_DIR"]
	if s.cfg.State.Store != "alloc" || dir == "" {
		return nil, hint.Wrap(fmt.Errorf("the store %s is not for use inside a container", s.cfg.State.Store), "use the store alloc, under Nomad (NOMAD_ALLOC_DIR), or the lifecycle driver")
	}
	return &state.Keeper{Store: state.Alloc(dir, s.env["NOMAD_TASK_NAME"]), MaxSize: s.cfg.State.MaxSize, Meta: state.Meta{
		AppVersion: s.cfg.State.AppVersion, Job: s.env["NOMAD_JOB_NAME"], Group: s.env["NOMAD_GROUP_NAME"], Task: s.env["NOMAD_TASK_NAME"], Alloc: s.env["NOMAD_ALLOC_ID"]}}, nil
}

// serve opens the sockets of the task.
func (s *shim) serve(ctx context.Context) error {
	if s.app.Dir == "" {
		return errors.New("NOMAD_ALLOC_DIR and NOMAD_TASK_NAME are not set")
	}
	task := s.env["NOMAD_TASK_NAME"]
	server, err := notify.Listen(allocfs.Socket{Dir: s.app.Dir, Name: "tmp/retinue-" + task + ".notify.sock"}, s.log)
	if err != nil {
		return err
	}
	s.work.Go(func() {
		if err := server.Serve(ctx, func(m notify.Message) { s.engine.Notify(m.Notice) }); err != nil {
			s.log.Warn("the application cannot notify any more", "error", err)
		}
	})
	s.work.Go(func() {
		if err := manage.Serve(ctx, allocfs.Socket{Dir: s.app.Dir, Name: "tmp/retinue-" + task + ".api.sock"}, manage.Handler(s.cfg, managed{s})); err != nil {
			s.log.Warn("no management API", "error", err)
		}
	})
	return nil
}

// managed is what the management API can be told from inside the container.
type managed struct{ s *shim }

func (m managed) Info() manage.Info {
	e := m.s.env
	return manage.Info{Namespace: e["NOMAD_NAMESPACE"], Job: e["NOMAD_JOB_ID"], Group: e["NOMAD_GROUP_NAME"], Task: e["NOMAD_TASK_NAME"], Alloc: e["NOMAD_ALLOC_ID"],
		Driver: "retinue init", Version: m.s.opts.Version}
}
func (m managed) Engine() *lifecycle.Engine { return m.s.engine }
func (m managed) Usage(context.Context) (manage.Usage, error) {
	return manage.Usage{}, manage.ErrUnsupported
}
func (m managed) Logs(context.Context, string, int64, bool) (io.ReadCloser, error) {
	return nil, hint.Wrap(manage.ErrUnsupported, "`nomad alloc logs` has them")
}
func (m managed) Config() map[string]any {
	return map[string]any{"command": m.s.opts.Command}
}
func (m managed) Pids(context.Context) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
func (m managed) Exec(ctx context.Context, call lifecycle.ExecCall) (lifecycle.ExecResult, error) {
	return m.s.host.Exec(ctx, call)
}
func (m managed) Dial(ctx context.Context) (net.Conn, error) { return m.s.app.Dial(ctx, "unix") }
func (m managed) State(ctx context.Context) (state.Meta, error) {
	if m.s.keeper == nil {
		return state.Meta{}, state.ErrNone
	}
	return m.s.keeper.Show(ctx)
}
func (m managed) Replicate(context.Context, func(int) (int, error)) (int, int, error) {
	return 0, 0, hint.Wrap(manage.ErrUnsupported, "it needs the lifecycle driver")
}
