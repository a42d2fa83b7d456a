package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster/procfs"
	"retinue/internal/hint"
)

// How long Down waits for jobs to end by themselves. Tasks that take longer (a
// kill_timeout above this) are killed.
const (
	askLimit  = 5 * time.Second
	stopLimit = 15 * time.Second
)

// Down stops the jobs, then the agents, and removes everything that the cluster
// made. It works on any remains: agents or tasks that were killed, a state file
// that is damaged or lost. report may be nil.
func Down(ctx context.Context, dir string, report func(Step)) error {
	cfg, err := Config{Dir: dir}.withDefaults()
	if err != nil {
		return err
	}
	u := &upper{cfg: cfg, began: time.Now(), report: report}
	if !exists(cfg.Dir) && !remains(ctx, cfg.Dir) {
		u.say("nothing to take down: there is no cluster in %s", cfg.Dir)
		return nil
	}
	if exists(cfg.Dir) {
		if err := checkFolder(cfg.Dir); err != nil {
			return err
		}
		lock, err := lockDir(ctx, cfg.Dir, func(holder string) {
			u.say("waiting for another retinue dev command on %s (%s)", cfg.Dir, holder)
		})
		if err != nil {
			return err
		}
		defer lock.release()
	}
	var allocs []string
	st, err := loadState(cfg.Dir)
	switch {
	case err == nil:
		if st.Plan.Root && os.Geteuid() != 0 {
			return hint.Wrap(fmt.Errorf("the cluster in %s belongs to root", cfg.Dir), "take it down as root")
		}
		u.emit(Step{Text: "stopping the jobs", Progress: true})
		var stopped int
		if stopped, allocs = newCluster(st).stopJobs(ctx); stopped > 0 {
			u.say("stopped jobs: %d", stopped)
		}
	case !errors.Is(err, fs.ErrNotExist):
		u.warn("the state file cannot be used (%v): looking for what belongs to the folder", err)
	}
	if err := sweep(ctx, cfg.Dir, allocs...); err != nil {
		return err
	}
	u.say("removed the cluster in %s", cfg.Dir)
	return nil
}

// Down takes this cluster down.
func (c *Cluster) Down(ctx context.Context, report func(Step)) error {
	return Down(ctx, c.Dir(), report)
}

// stopJobs asks Nomad to stop every job and waits a little for the tasks to end
// in their own order. It returns all allocations that the servers remember: of
// those whose client died something can be left that their folder, collected
// since, no longer tells of. All of it is best effort.
func (c *Cluster) stopJobs(ctx context.Context) (stopped int, allocs []string) {
	ctx, cancel := context.WithTimeout(ctx, askLimit+stopLimit)
	defer cancel()
	api := c.anyNomad(ctx)
	if api == nil {
		return 0, nil
	}
	jobs, _, err := api.Jobs().ListOptions(nil, (&nomad.QueryOptions{Namespace: "*"}).WithContext(ctx))
	if err != nil {
		return 0, nil
	}
	for _, j := range jobs {
		if j.Stop {
			continue
		}
		w := (&nomad.WriteOptions{Namespace: j.Namespace}).WithContext(ctx)
		if _, _, err := api.Jobs().DeregisterOpts(j.ID, &nomad.DeregisterOptions{Purge: false, NoShutdownDelay: true}, w); err == nil {
			stopped++
		}
	}
	for ctx.Err() == nil && c.tasksRun(ctx, api) {
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	last, stop := context.WithTimeout(context.WithoutCancel(ctx), askLimit) // the wait may have used up ctx
	defer stop()
	stubs, _, err := api.Allocations().List((&nomad.QueryOptions{Namespace: "*"}).WithContext(last))
	if err != nil {
		return stopped, nil
	}
	for _, a := range stubs {
		allocs = append(allocs, a.ID)
	}
	return stopped, allocs
}

// anyNomad returns a client of a server that answers with a leader behind it.
func (c *Cluster) anyNomad(ctx context.Context) *nomad.Client {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	for _, a := range c.Agents() {
		if a.Kind != NomadServer || !c.runs(a) {
			continue
		}
		api, err := c.NomadAt(a.HTTPAddr)
		if err != nil {
			return nil
		}
		var leader string
		if _, err := api.Raw().Query("/v1/status/leader", &leader, (&nomad.QueryOptions{}).WithContext(ctx)); err == nil && leader != "" {
			return api
		}
	}
	return nil
}

// runs says whether an agent is alive and not paused: a paused one accepts
// connections and never answers.
func (c *Cluster) runs(a Agent) bool {
	if a.PID == 0 {
		return false
	}
	st, err := c.proc.Stat(a.PID)
	return err == nil && st.State != 'T'
}

// tasksRun says whether a client that is alive still runs an allocation.
func (c *Cluster) tasksRun(ctx context.Context, api *nomad.Client) bool {
	alive := map[string]bool{}
	for _, a := range c.Agents() {
		if a.Kind == NomadClient && c.runs(a) {
			alive[a.Node] = true
		}
	}
	allocs, _, err := api.Allocations().List((&nomad.QueryOptions{Namespace: "*"}).WithContext(ctx))
	if err != nil {
		return false
	}
	for _, a := range allocs {
		if alive[a.NodeName] && (a.ClientStatus == nomad.AllocClientStatusPending || a.ClientStatus == nomad.AllocClientStatusRunning) {
			return true
		}
	}
	return false
}

// remains says whether anything outside the folder still belongs to it, for the
// case that somebody has removed the folder.
func remains(ctx context.Context, dir string) bool {
	if len(bridgesOf(dir)) > 0 || len(processesOf(procfs.New(""), dir, nil)) > 0 || linksTo(shortLink(dir), dir) {
		return true
	}
	socket, err := DockerSocket()
	if err != nil || !exists(socket) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	list, err := NewEngine(socket).containers(ctx)
	return err == nil && slices.ContainsFunc(list, func(c container) bool { return c.mounts(dir) })
}
