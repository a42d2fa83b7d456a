// Package scattergather demonstrates the scatter/gather pattern: a search
// engine in shards and replicas, a merge in another language, load, and faults.
// See gather/README.md for the promises that it checks.
package scattergather

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/demo"
	"retinue/internal/demo/artifact"
	"retinue/internal/hint"
	"retinue/internal/nomadkit"
	"retinue/internal/toolchain"
	"retinue/jobspecs"
)

// The jobs of the demonstration: root and leaves, and a second root over the same leaves that does not hedge.
const (
	Job         = "scatter-gather"
	UnhedgedJob = "scatter-gather-unhedged"
)

const (
	shards   = 16
	replicas = 2
	pace     = 50 * time.Millisecond // between two requests to each root
	budget   = 0.03                  // the jobspec's hedge_budget
	deadline = 2 * time.Second       // a small machine runs all of it at once
)

// Demo is one run of the demonstration on a cluster.
type Demo struct {
	Nomad    *nomad.Client
	Consul   *consul.Client
	Vars     map[string]string // variables of the jobspec that this cluster needs, as HCL expressions
	Host     string            // address of this machine at which the nodes reach the artifacts
	Corpus   string            // folder of text files; "" finds one
	ConsulUI string            // base address, for the links
	NomadUI  string
	Timeline *demo.Timeline

	// LoseNode cuts a client node's power and ReturnNode restores it. Nil where the cluster has no node to spare.
	LoseNode, ReturnNode func(ctx context.Context, node string) error
}

// Run plays the demonstration and records its checks. An error means that it could not be played to its end.
func (d Demo) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := play{Demo: d}
	questions, stop, err := p.prepare(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := p.start(ctx); err != nil {
		return err
	}
	if err := p.open(ctx, questions); err != nil {
		return err
	}
	asking, stopAsking := context.WithCancel(ctx)
	defer stopAsking()
	asked := make(chan struct{}, 2)
	for _, c := range []*client{p.hedged, p.unhedged} {
		go func() {
			c.run(asking, pace)
			asked <- struct{}{}
		}()
	}
	for _, act := range p.acts() {
		if err := act(ctx); err != nil {
			return err
		}
	}
	stopAsking()
	<-asked
	<-asked
	p.judge()
	return p.restore(ctx)
}

// prepare makes what the tasks run, as a build pipeline would: the leaf, the
// merge, the archive of each shard; and the one index that knows the right answers.
func (p *play) prepare(ctx context.Context) ([]question, func(), error) {
	root, err := toolchain.Checkout()
	if err != nil {
		return nil, nil, hint.Wrap(err, "the demonstration builds its leaf from gather/example: run it in a checkout of the project")
	}
	example := filepath.Join(root, "gather", "example")
	leaf, err := toolchain.BuildModule(ctx, example, "./leaf")
	if err != nil {
		return nil, nil, err
	}
	began := time.Now()
	texts, err := findCorpus(ctx, p.Corpus)
	if err != nil {
		return nil, nil, err
	}
	reference, err := startReference(ctx, leaf, texts)
	if err != nil {
		return nil, nil, err
	}
	questions, err := reference.questions(ctx, 300)
	reference.stop()
	if err != nil {
		return nil, nil, err
	}
	p.Timeline.Event("%d documents of %s in one index: the right answers to %d queries, %s", len(texts.documents), texts.folder, len(questions), took(began))
	merge, err := PackPython(ctx, filepath.Join(example, "merge", "merge.py"))
	if err != nil {
		return nil, nil, err
	}
	p.shelf.Put("merge.tar.gz", merge)
	program, err := os.ReadFile(leaf)
	if err != nil {
		return nil, nil, fmt.Errorf("pack the leaf: %w", err)
	}
	a := artifact.New()
	a.Add("leaf", 0o755, program)
	packed, err := a.Bytes()
	if err != nil {
		return nil, nil, err
	}
	p.shelf.Put("leaf.tar.gz", packed)
	for shard := range shards {
		part, err := texts.pack(shard, shards, reference.stats)
		if err != nil {
			return nil, nil, err
		}
		p.shelf.Put(fmt.Sprintf("shard-%d-of-%d.tar.gz", shard, shards), part)
	}
	var stop func()
	p.artifacts, stop, err = p.shelf.Serve(p.Host)
	return questions, stop, err
}

// start replaces the jobs of an earlier run and waits until all leaves are in the catalog.
func (p *play) start(ctx context.Context) error {
	common := map[string]string{
		"shards":          fmt.Sprint(shards),
		"deadline":        nomadkit.Literal(deadline.String()),
		"merge_command":   nomadkit.Literal("${NOMAD_TASK_DIR}/python/ld.so"),
		"merge_args":      list("--library-path", "${NOMAD_TASK_DIR}/python/lib", "${NOMAD_TASK_DIR}/python/bin/python3", "-S", "${NOMAD_TASK_DIR}/merge.py"),
		"merge_env":       `{ PYTHONHOME = ` + nomadkit.Literal("${NOMAD_TASK_DIR}/python") + ` }`,
		"merge_artifacts": list(p.artifacts + "/merge.tar.gz"),
	}
	for name, value := range p.Vars {
		common[name] = value
	}
	whole := with(common, map[string]string{
		"replicas":       fmt.Sprint(replicas),
		"distinct_hosts": fmt.Sprint(p.LoseNode != nil),
		"leaf_command":   nomadkit.Literal("${NOMAD_TASK_DIR}/leaf"),
		"leaf_args":      list("--corpus", "${NOMAD_TASK_DIR}/text", "--stats", "${NOMAD_TASK_DIR}/stats.json", "--index", "${NOMAD_TASK_DIR}", "--listen", "${RETINUE_LISTEN}"),
		"leaf_artifacts": list(p.artifacts+"/leaf.tar.gz", p.artifacts+"/shard-${RETINUE_SHARD}-of-${RETINUE_SHARDS}.tar.gz"),
	})
	alone := with(common, map[string]string{
		"job_name": nomadkit.Literal(UnhedgedJob), "leaf_service": nomadkit.Literal(Job + "-leaf"), "hedge_budget": nomadkit.Literal("0"),
	})
	source, err := jobspecs.Pattern("scatter-gather")
	if err != nil {
		return err
	}
	for _, job := range []struct {
		id   string
		vars map[string]string
	}{{Job, whole}, {UnhedgedJob, alone}} {
		spec, err := nomadkit.Parse(ctx, p.Nomad, source, job.vars)
		if err != nil {
			return err
		}
		if err := nomadkit.Purge(ctx, p.Nomad, job.id); err != nil {
			return err
		}
		if err := nomadkit.Register(ctx, p.Nomad, spec); err != nil {
			return err
		}
	}
	p.Timeline.Event("nomad job run jobspecs/scatter-gather: %d shards x %d replicas, a root with a merge in Python; and a second root that does not hedge", shards, replicas)
	began := time.Now()
	for _, job := range []struct {
		id    string
		count int
	}{{Job, 1 + shards*replicas}, {UnhedgedJob, 1}} {
		_, err := within(ctx, 4*time.Minute, func(ctx context.Context) (any, error) { return nomadkit.WaitRunning(ctx, p.Nomad, job.id, job.count) })
		if err != nil {
			return err
		}
	}
	if _, err := p.passing(ctx, Job+"-leaf", shards*replicas); err != nil {
		return err
	}
	p.Timeline.Event("%d leaves have indexed their shard and passed their check after %s", shards*replicas, took(began))
	return nil
}

// list is an HCL list of strings that Nomad fills in at run time.
func list(items ...string) string {
	var quoted []string
	for _, item := range items {
		quoted = append(quoted, nomadkit.Literal(item))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func with(base, more map[string]string) map[string]string {
	all := map[string]string{}
	for _, vars := range []map[string]string{base, more} {
		for name, value := range vars {
			all[name] = value
		}
	}
	return all
}

func within[T any](ctx context.Context, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}
