package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"retinue"
	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
	"retinue/internal/toolchain"
)

// upLimit bounds the wait for a cluster that never gets ready.
const upLimit = 3 * time.Minute

// upper is one run of Up: what was asked, and who watches.
type upper struct {
	cfg    Config
	began  time.Time
	report func(Step)
}

func (u *upper) say(format string, args ...any)  { u.step(false, format, args...) }
func (u *upper) warn(format string, args ...any) { u.step(true, format, args...) }

func (u *upper) step(warning bool, format string, args ...any) {
	u.emit(Step{Text: fmt.Sprintf(format, args...), Warning: warning})
}

func (u *upper) emit(s Step) {
	if u.report != nil {
		s.After = time.Since(u.began)
		u.report(s)
	}
}

// Up makes the cluster of the configuration, or completes the one that is there
// already, and returns when it schedules work. When a new cluster fails to come
// up, or ctx ends, nothing of it is left behind. report may be nil.
func Up(ctx context.Context, cfg Config, report func(Step)) (*Cluster, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	u := &upper{cfg: cfg, began: time.Now(), report: report}
	ctx, cancel := context.WithTimeoutCause(ctx, upLimit+toolchain.BuildLimit, fmt.Errorf("not ready after %s", upLimit))
	defer cancel()
	if exists(cfg.Dir) {
		if err := checkFolder(cfg.Dir); err != nil {
			return nil, err
		}
	}
	lock, err := lockDir(ctx, cfg.Dir, func(holder string) {
		u.say("waiting for another retinue dev command on %s (%s)", cfg.Dir, holder)
	})
	if err != nil {
		return nil, err
	}
	defer lock.release()
	st, err := loadState(cfg.Dir)
	switch {
	case err == nil && st.Ready:
		return u.again(ctx, st)
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return u.fresh(ctx)
	}
	return nil, hint.Wrap(err, "`retinue dev down` cleans up after a damaged cluster; then try again")
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// again completes a cluster that was up before: what runs stays untouched.
func (u *upper) again(ctx context.Context, st *state) (*Cluster, error) {
	if err := u.sameAs(st.Plan); err != nil {
		return nil, err
	}
	c := newCluster(st)
	if !slices.ContainsFunc(c.Agents(), func(a Agent) bool { return a.PID != 0 }) {
		// After a reboot, say: somebody may have the addresses by now.
		if err := st.Plan.portsTaken(); err != nil {
			return nil, err
		}
	}
	st.Version = retinue.Version
	if err := u.install(ctx, c); err != nil {
		return nil, err
	}
	if err := u.startAll(ctx, c); err != nil {
		return nil, err
	}
	return c, nil
}

// sameAs refuses a wish that differs from the cluster in the folder.
func (u *upper) sameAs(p Plan) error {
	var why string
	switch n := len(p.servers()); {
	case u.cfg.Servers != 0 && u.cfg.Servers != n:
		why = fmt.Sprintf("has servers: %d", n)
	case u.cfg.Clients != 0 && u.cfg.Clients != len(p.clients()):
		why = fmt.Sprintf("has clients: %d", len(p.clients()))
	case u.cfg.PortOffset > 0 && u.cfg.PortOffset != p.PortOffset:
		why = fmt.Sprintf("has port offset %d", p.PortOffset)
	case u.cfg.ACL && !p.ACL:
		why = "has no ACLs"
	case u.cfg.Docker == "on" && p.DockerSocket == "":
		why = "does not use Docker"
	case u.cfg.Docker == "off" && p.DockerSocket != "":
		why = "uses Docker"
	case u.cfg.DriverPlugin == "on" && !p.DriverPlugin:
		why = "does not use the driver plugin"
	case u.cfg.DriverPlugin == "off" && p.DriverPlugin:
		why = "uses the driver plugin"
	case p.Root != (os.Geteuid() == 0):
		why = "belongs to another user"
	default:
		return nil
	}
	return hint.Wrap(fmt.Errorf("the cluster in %s %s", p.Dir, why), "`retinue dev down` it first, or give another folder with --dir")
}

// fresh makes a new cluster and takes everything away again if that fails.
func (u *upper) fresh(ctx context.Context) (_ *Cluster, err error) {
	started := false
	defer func() {
		if err == nil {
			return
		}
		// Interrupted or failed: the person must find the machine as it was.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if started {
			u.warn("taking down what was started")
		}
		if derr := sweep(undo, u.cfg.Dir); derr != nil {
			err = errors.Join(err, derr)
		}
	}()
	if err := sweepContent(ctx, u.cfg.Dir); err != nil { // of an `up` that was killed
		return nil, err
	}
	st, err := u.decide(ctx)
	if err != nil {
		return nil, err
	}
	st, held, err := u.place(st)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	c := newCluster(st)
	if err := u.install(ctx, c); err != nil {
		return nil, err
	}
	started = true
	if err := u.startAll(ctx, c); err != nil {
		return nil, err
	}
	return c, nil
}

// checkFolder keeps a slip such as --dir $HOME from becoming a disaster: the
// folder of a cluster is removed by Down, so it must hold nothing else.
func checkFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return diskError(err)
	}
	ours := map[string]bool{"lock": true, "state.json": true, "bin": true, "log": true, "agents": true, "states": true}
	for i := 1; i <= MaxClients; i++ {
		ours[fmt.Sprintf("c%d", i)] = true
	}
	for _, e := range entries {
		if !ours[e.Name()] && len(e.Name()) > 4 && e.Name()[:5] != ".tmp-" {
			return hint.Wrap(fmt.Errorf("%s holds something that is not a dev cluster: %s", dir, e.Name()), "choose an empty or a new folder with --dir")
		}
	}
	return nil
}

// decide finds the programs and what this machine can offer.
func (u *upper) decide(ctx context.Context) (*state, error) {
	st := &state{Format: stateFormat, Version: retinue.Version, Agents: map[string]procfs.Process{}}
	var err error
	if st.ConsulBin, err = u.tool(ctx, u.cfg.ConsulBin, toolchain.Consul); err != nil {
		return nil, err
	}
	if st.NomadBin, err = u.tool(ctx, u.cfg.NomadBin, toolchain.Nomad); err != nil {
		return nil, err
	}
	st.Plan = Plan{Dir: u.cfg.Dir, ACL: u.cfg.ACL, Root: os.Geteuid() == 0, SessionTTLMin: u.cfg.SessionTTLMin}
	if err := u.findDocker(ctx, &st.Plan); err != nil {
		return nil, err
	}
	retinueBin, err := u.retinueBin(ctx)
	if err != nil {
		return nil, err
	}
	if err := u.findDriverPlugin(&st.Plan, retinueBin); err != nil {
		return nil, err
	}
	if err := CgroupsWritable("/sys/fs/cgroup"); st.Plan.Root && err != nil {
		return nil, err
	}
	if st.Plan.CNIPath, err = BridgeSupport(); err == nil {
		if err = tryBridge(); err != nil {
			st.Plan.CNIPath = ""
		}
	}
	if err != nil {
		u.warn("tasks share the host's network: %v (%s)", err, hint.Of(err))
	}
	if st.Plan.Driver() == DriverRawExec {
		u.warn("jobs run without isolation (raw_exec): the exec driver needs root, and no Docker engine is used")
		if _, err := user.LookupId(strconv.Itoa(os.Geteuid())); err != nil {
			return nil, hint.Wrap(fmt.Errorf("raw_exec runs no task for a user without a name: %w", err), "use a user that stands in /etc/passwd")
		}
	}
	if u.cfg.ACL {
		if st.Tokens, err = newTokens(max(u.cfg.Servers, 1), max(u.cfg.Clients, 1)); err != nil {
			return nil, err
		}
	}
	return st, nil
}

func (u *upper) tool(ctx context.Context, given string, t toolchain.Tool) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	found, err := toolchain.Ensure(ctx, t, func(p toolchain.Progress) {
		u.emit(Step{Text: p.String(), Progress: true})
	})
	if err == nil && found.Note != "" {
		u.warn("%s; using %s %s", found.Note, t, found.Version)
	}
	return found.Path, err
}

func (u *upper) findDocker(ctx context.Context, p *Plan) error {
	if u.cfg.Docker == "off" {
		return nil
	}
	socket, err := DockerSocket()
	var version string
	if err == nil {
		version, err = NewEngine(socket).Version(ctx)
	}
	if err == nil {
		p.DockerSocket = socket
		u.say("Docker engine %s: jobs use the docker driver", version)
		return nil
	}
	if u.cfg.Docker == "on" || ctx.Err() != nil {
		return err
	}
	u.warn("no Docker engine: jobs use the %s driver (%v)", p.Driver(), err)
	return nil
}

// place chooses free addresses and makes the folder.
func (u *upper) place(st *state) (*state, claim, error) {
	plan, held, err := choose(st.Plan, max(u.cfg.Servers, 1), max(u.cfg.Clients, 1), u.cfg.PortOffset)
	if err != nil {
		return nil, claim{}, err
	}
	st.Plan = plan
	for _, dir := range []string{plan.binDir(), filepath.Dir(plan.logFile("x"))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			held.Close()
			return nil, claim{}, diskError(err)
		}
	}
	if len(plan.Dir) > maxDir {
		if err := makeShortLink(plan.Dir); err != nil {
			u.warn("sockets of tasks may not work: %v", err)
		} else {
			st.Plan.ShortDir = shortLink(plan.Dir)
		}
	}
	if err := st.save(); err != nil {
		held.Close()
		return nil, claim{}, err
	}
	return st, held, nil
}

// makeShortLink makes the link, unless it is there.
func makeShortLink(dir string) error {
	link := shortLink(dir)
	if linksTo(link, dir) {
		return nil
	}
	return os.Symlink(dir, link)
}

func linksTo(link, dir string) bool {
	target, err := os.Readlink(link)
	return err == nil && target == dir
}

// install brings binary, images, bridges and configuration files up to date.
func (u *upper) install(ctx context.Context, c *Cluster) error {
	p := c.state.Plan
	source, err := u.retinueBin(ctx)
	if err != nil {
		return err
	}
	if err := installBinary(source, p.retinueBin()); err != nil {
		return err
	}
	if err := p.installDriverPlugin(source); err != nil {
		return err
	}
	for _, c := range companions {
		dest := filepath.Join(p.binDir(), c.name)
		if path := c.beside(source); path != "" {
			if err := installBinary(path, dest); err != nil {
				return err
			}
			continue
		}
		u.warn("there is no %s beside %s: %s", c.name, source, c.without)
		if err := os.Remove(dest); err != nil && !errors.Is(err, fs.ErrNotExist) { // one of another version
			return diskError(err)
		}
	}
	if err := c.linkTools(); err != nil {
		return err
	}
	if p.ShortDir != "" {
		if err := makeShortLink(p.Dir); err != nil { // something may have tidied /tmp
			return err
		}
	}
	if p.DockerSocket != "" {
		image, built, err := buildImages(ctx, NewEngine(p.DockerSocket), p.retinueBin())
		if err != nil {
			return err
		}
		if built {
			u.say("built the images %s and %s", image, PauseImage())
		}
		c.state.Plan.Image = image
		if err := c.state.save(); err != nil {
			return err
		}
	}
	for _, n := range p.clients() {
		if n.Bridge == nil {
			continue
		}
		if err := makeBridge(*n.Bridge, p.Dir); err != nil {
			return err
		}
	}
	return p.writeConfigs(c.state.Tokens)
}

// retinueBin is the program that the cluster's tasks get.
func (u *upper) retinueBin(ctx context.Context) (string, error) {
	if u.cfg.RetinueBin == "" {
		found, err := ownBinary(ctx)
		if err != nil {
			return "", err
		}
		u.cfg.RetinueBin = found
	}
	return u.cfg.RetinueBin, nil
}

func (p Plan) writeConfigs(tokens Tokens) error {
	var chroot map[string]string
	if p.Root {
		chroot = chrootFiles(p.retinueBin())
	}
	for _, n := range p.Nodes {
		consul, nomad := kinds(n)
		raw, err := p.renderConsul(n, tokens)
		if err != nil {
			return err
		}
		if err := p.writeConfig(agentName(consul, n), raw); err != nil {
			return err
		}
		if raw, err = p.renderNomad(n, tokens, chroot); err != nil {
			return err
		}
		if err := p.writeConfig(agentName(nomad, n), raw); err != nil {
			return err
		}
	}
	return nil
}

func (p Plan) writeConfig(agent string, raw []byte) error {
	if err := os.MkdirAll(p.AgentDir(agent), 0o755); err != nil {
		return diskError(err)
	}
	return writeFile(p.configFile(agent), raw, 0o600) // there are tokens in it
}
