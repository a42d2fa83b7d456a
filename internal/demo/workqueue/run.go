package workqueue

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/demo"
	"retinue/internal/demo/artifact"
	"retinue/internal/nomadkit"
	"retinue/jobspecs"
)

// Job is the job of the demonstration.
const Job = "work-queue-pipeline"

// The stages: two command-line tools as they are, and the queue behind them.
const (
	extract = "extract" // gzip -dc
	digest  = "digest"  // sha256sum
	results = Job + "-results"
	workers = 2 // of each stage
	slots   = 3
	allocs  = 2*workers + 1
)

// Demo is one run of the demonstration on a cluster.
type Demo struct {
	Nomad    *nomad.Client
	Consul   *consul.Client
	Vars     map[string]string // variables of the jobspec that this cluster needs, as HCL expressions
	Host     string            // address of this machine at which the nodes reach the artifacts
	Corpus   string            // folder of files; "" finds one
	Files    int
	ConsulUI string // base address, for the links
	NomadUI  string
	Timeline *demo.Timeline
	// Open opens a queue of a broker.
	Open func(ctx context.Context, address, queue string) (Queue, error)
}

// Item is a message of a queue.
type Item struct {
	ID   string
	Body []byte
}

// Queue is what the demonstration does with a queue from outside.
type Queue interface {
	Publish(ctx context.Context, items []Item) error
	// Take takes messages for good; it returns none when nothing has come for a while.
	Take(ctx context.Context) ([]Item, error)
	// Waiting counts the messages that nobody has taken.
	Waiting(ctx context.Context) (int, error)
	Close()
}

// play is a Demo under way.
type play struct {
	Demo
	shelf     artifact.Shelf
	files     []file
	published int // of them
	in, out   Queue
	began     time.Time // of the work
	killed    map[string]int
}

// Run plays the demonstration and records its checks. An error means that it could not be played to its end.
func (d Demo) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := play{Demo: d, killed: map[string]int{}}
	var err error
	if p.files, err = findFiles(ctx, p.Corpus, p.Files); err != nil {
		return err
	}
	p.Timeline.Event("%d files, gzip, and the SHA-256 of each one's text as this program computes it", len(p.files))
	stop, err := p.start(ctx)
	if err != nil {
		return err
	}
	defer stop()
	defer p.in.Close()
	defer p.out.Close()
	p.began = time.Now()
	if err := p.publish(ctx, len(p.files)/2); err != nil {
		return err
	}
	p.Timeline.Event("%d files are in the queue; after each fault come some of the others", p.published)
	if err := p.disturb(ctx); err != nil {
		return err
	}
	return p.judge(ctx)
}

// start replaces the job of an earlier run, with its records, and waits until everything runs.
func (p *play) start(ctx context.Context) (stop func(), err error) {
	a := artifact.New()
	if err := a.AddPrograms("gzip", "sha256sum"); err != nil {
		return nil, err
	}
	packed, err := a.Bytes()
	if err != nil {
		return nil, err
	}
	p.shelf.Put("tools.tar.gz", packed)
	base, stop, err := p.shelf.Serve(p.Host)
	if err != nil {
		return nil, err
	}
	if err := p.run(ctx, base); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

func (p *play) run(ctx context.Context, artifacts string) error {
	source, err := jobspecs.Pattern(Job)
	if err != nil {
		return err
	}
	tool := func(name, program string, args ...string) string {
		quoted := ""
		for _, arg := range append([]string{"--library-path", "${NOMAD_TASK_DIR}/lib", "${NOMAD_TASK_DIR}/bin/" + program}, args...) {
			quoted += nomadkit.Literal(arg) + ", "
		}
		return fmt.Sprintf(`{ name = %q, count = %d, slots = %d, image = "", command = %s, args = [%s] }`, name, workers, slots, nomadkit.Literal("${NOMAD_TASK_DIR}/ld.so"), strings.TrimSuffix(quoted, ", "))
	}
	vars := map[string]string{
		"stages":           "[" + tool(extract, "gzip", "-dc") + ", " + tool(digest, "sha256sum") + "]",
		"to":               nomadkit.Literal(results),
		"worker_artifacts": "[" + nomadkit.Literal(artifacts+"/tools.tar.gz") + "]",
		"drain_seconds":    "5",
	}
	for name, value := range p.Vars {
		vars[name] = value
	}
	spec, err := nomadkit.Parse(ctx, p.Nomad, source, vars)
	if err != nil {
		return err
	}
	if err := nomadkit.Purge(ctx, p.Nomad, Job); err != nil {
		return err
	}
	if _, err := p.Consul.KV().DeleteTree(p.records(), (&consul.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("forget the records of an earlier run: %w", err)
	}
	password := rand.Text()
	secret := &nomad.Variable{Path: "nomad/jobs/" + Job, Items: map[string]string{"password": password}}
	if _, _, err := p.Nomad.Variables().Update(secret, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("write the password of the broker: %w", err)
	}
	began := time.Now()
	if err := nomadkit.Register(ctx, p.Nomad, spec); err != nil {
		return err
	}
	p.Timeline.Event("nomad job run jobspecs/work-queue-pipeline: gzip -dc, then sha256sum, %d workers each, and a broker", workers)
	waiting, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if _, err := nomadkit.WaitRunning(waiting, p.Nomad, Job, allocs); err != nil {
		return err
	}
	address, err := p.broker(waiting, password)
	if err != nil {
		return err
	}
	if p.in, err = p.Open(ctx, address, Job+"-"+extract); err != nil {
		return err
	}
	if p.out, err = p.Open(ctx, address, results); err != nil {
		return err
	}
	p.Timeline.Event("everything runs after %.1f s", time.Since(began).Seconds())
	p.Timeline.Note("the records in Consul    %s/ui/dc1/kv/%s", p.ConsulUI, p.records())
	p.Timeline.Note("the job in the Nomad UI  %s/ui/jobs/%s", p.NomadUI, Job)
	return nil
}

func (p *play) records() string { return "retinue/queues/" + Job + "/" }

// broker finds the job's broker as a producer on this machine does.
func (p *play) broker(ctx context.Context, password string) (string, error) {
	var index uint64
	for {
		q := (&consul.QueryOptions{WaitIndex: index, WaitTime: 5 * time.Second}).WithContext(ctx)
		entries, meta, err := p.Consul.Health().Service(Job+"-broker", "", true, q)
		if err != nil {
			return "", fmt.Errorf("find the broker: %w", err)
		}
		if len(entries) > 0 {
			s := entries[0].Service
			u := url.URL{Scheme: "nats", User: url.UserPassword("retinue", password), Host: net.JoinHostPort(s.Address, strconv.Itoa(s.Port))}
			return u.String(), nil
		}
		index = meta.LastIndex
	}
}

// publish puts the files up to a number into the queue. While the broker is down it tries again: the broker knows what it has.
func (p *play) publish(ctx context.Context, to int) error {
	const portion = 100
	for p.published < to {
		var items []Item
		for i := p.published; i < min(p.published+portion, to); i++ {
			items = append(items, Item{ID: name(i), Body: p.files[i].packed})
		}
		if err := p.in.Publish(ctx, items); err != nil {
			if stopped := pause(ctx, 200*time.Millisecond); stopped != nil {
				return fmt.Errorf("publish: %w", err)
			}
			continue
		}
		p.published += len(items)
	}
	return nil
}

// name is the id of a file; the last stage's messages begin with it.
func name(i int) string { return fmt.Sprintf("f%05d", i) }
