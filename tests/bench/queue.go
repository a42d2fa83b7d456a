package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"retinue/tests/brokers"
)

const queueSetup = "Each broker is one server on loopback, as it is commonly run (Redis: `appendfsync everysec`; RabbitMQ: quorum queues). Every contender is a process of its own with %[1]d calls at once, " +
	"and takes what has been published before: items/s are those from the first twentieth of the items to the last. *Loop* is what people write by hand on the same client library: receive, call the same worker, " +
	"acknowledge, and nothing else: it keeps no lease, counts no attempt and commits no output. `retinue coordinator` runs with `commit = \"none\"` beside the HTTP loop, and with `commit = \"rename\"` where it says so. Celery runs prefork with acks_late, " +
	"asynq in its own process; the tasks of both do nothing, and there is no call to a worker. The contenders take turns in random order within each round. " +
	"Processor time is the contender's own, without the commands that it starts and without broker and worker; what is over the loop's is the median of the rounds' differences. All share the CPUs."

// queueParts are the parts of the work queue, for -only.
func queueParts() []string {
	return []string{"http", "batch", "file", "large", "latency", "inflight", "partitions", "dispatch"}
}

const (
	queueSlots = 8
	queueName  = "retinue coordinator"
)

// queueAmounts are how much a run of the work queue does.
type queueAmounts struct {
	rounds                   int
	http, batch, file, large int // items of a round
	celery, dispatch         int
	partitions               int
	latency                  time.Duration // of a turn
	inflight                 int
}

func (o options) queueAmounts() queueAmounts {
	if o.quick {
		return queueAmounts{rounds: 1, http: 1500, batch: 4000, file: 250, large: 40, celery: 600, dispatch: 24, partitions: 1500, latency: 500 * time.Millisecond, inflight: 1000}
	}
	return queueAmounts{rounds: 5, http: 6000, batch: 20000, file: 1000, large: 150, celery: 2500, dispatch: 80, partitions: 6000, latency: 1500 * time.Millisecond, inflight: 1000}
}

// queueRig is the world of this section.
type queueRig struct {
	*rig
	brokers map[string]*brokers.Broker
	spawn   *brokers.Spawner
	hand    string // program
	celery  bool
	serial  int
	files   string // where the contenders' folders are
	amounts queueAmounts
	rates   map[string]map[string]float64   // by table and contender: items/s
	costs   map[string]map[string][]float64 // and µs of processor time an item, of every round
	targets []Target
}

// workQueue builds the programs, starts the brokers and measures.
func (r *rig) workQueue(ctx context.Context, o options, want func(string) bool, limit time.Duration, report *Report) error {
	q := &queueRig{rig: r, brokers: map[string]*brokers.Broker{}, spawn: brokers.NewSpawner(), amounts: o.queueAmounts(), files: r.dir, rates: map[string]map[string]float64{}, costs: map[string]map[string][]float64{}}
	defer q.spawn.Close()
	report.Setup = fmt.Sprintf(queueSetup, queueSlots)
	if err := r.ownProgram(ctx); err != nil {
		return err
	}
	tests := filepath.Join(r.root, "tests")
	q.hand = filepath.Join(r.dir, "queuehand")
	if err := r.build(ctx, tests, q.hand, "./bench/queuehand"); err != nil {
		return err
	}
	for _, module := range []string{"github.com/redis/go-redis/v9", "github.com/rabbitmq/amqp091-go", "github.com/hibiken/asynq"} {
		r.versions = append(r.versions, Version{strings.TrimPrefix(module, "github.com/"), moduleVersion(ctx, tests, module)})
	}
	if out, err := exec.CommandContext(ctx, celeryPython, "-c", "import celery, redis, amqp; print(celery.__version__)").Output(); err == nil {
		q.celery = true
		r.versions = append(r.versions, Version{"Celery", strings.TrimSpace(string(out))})
	} else {
		report.Missing = append(report.Missing, "Celery: not installed (`apt-get install python3-celery python3-redis`)")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, kind := range []string{"redis", "rabbitmq"} {
		if err := brokers.Installed(kind); err != nil {
			report.Missing = append(report.Missing, fmt.Sprintf("%s: %v (`apt-get install %s-server`)", kind, err, kind))
			continue
		}
		r.say("starting %s", kind)
		b, err := brokers.Start(ctx, q.spawn, kind, filepath.Join(r.dir, "broker-"+kind), "")
		if err != nil {
			return err
		}
		q.brokers[kind] = b
		r.versions = append(r.versions, Version{kind, b.Version})
	}
	if b := q.brokers["redis"]; b != nil {
		if err := q.relax(ctx, b); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		name string
		run  func(context.Context, *Report) error
	}{{"http", q.http}, {"batch", q.batch}, {"file", q.file}, {"large", q.large}, {"latency", q.latency}, {"inflight", q.inflight}, {"partitions", q.partitions}, {"dispatch", q.dispatch}} {
		if !want(part.name) {
			continue
		}
		r.say("%s", part.name)
		err := part.run(ctx, report)
		switch {
		case err == nil:
		case errors.Is(ctx.Err(), context.DeadlineExceeded): // what was measured is worth telling
			report.Missing = append(report.Missing, part.name+": time was up, the machine was too busy")
		default:
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	report.Targets = append(q.judged(), q.targets...)
	report.Missing = append(report.Missing, "losses, duplicate effects, redelivery: the fault campaign (docs/reports/work-queue-faults.md) is about those",
		"scaling from zero: coordinator/README.md has what the tests saw",
		"Faktory, Temporal, SQS with Batch: they cannot be run here")
	return nil
}

// judged holds the rates against the promises.
func (q *queueRig) judged() (targets []Target) {
	ratio := func(what, table, ours, peer string, least float64) {
		mine, theirs := q.rates[table][ours], q.rates[table][peer]
		if mine == 0 || theirs == 0 {
			return
		}
		t := Target{What: what + ", " + table, Want: fmt.Sprintf("≥ %.2f×", least), Measured: fmt.Sprintf("%.2f× (%s / %s items/s)", mine/theirs, count(mine), count(theirs)), Met: mine >= least*theirs}
		targets = append(targets, t)
	}
	added := func(what, table, ours string, most float64) {
		mine, theirs := q.costs[table][ours], q.costs[table][loopName]
		if len(mine) == 0 || len(mine) != len(theirs) {
			return
		}
		differences := make([]float64, len(mine)) // the machine's speed moves by a third between rounds: only within one are they compared
		for i := range mine {
			differences[i] = mine[i] - theirs[i]
		}
		more := middle(differences)
		targets = append(targets, Target{What: what + ", " + table, Want: fmt.Sprintf("≤ %.0f µs", most), Measured: fmt.Sprintf("%+.0f µs (%.0f / %.0f µs)", more, middle(mine), middle(theirs)), Met: more <= most})
	}
	for _, kind := range []string{"redis", "rabbitmq"} {
		ratio("items/s over the loop", kind+", http", queueName, loopName, 0.90)
		added("processor time over the loop's, an item", kind+", http", queueName, 40)
		ratio("items/s over the loop, batches of 100", kind+", batch", queueName, loopName, 0.80)
		added("processor time over the loop's, an item in a batch of 100", kind+", batch", queueName, 10)
		ratio("items/s over the loop, a command for each", kind+", file", queueName+" exec", loopName, 0.85)
		added("processor time over the loop's, a command for each", kind+", file", queueName+" exec", 250)
		ratio("items/s over Celery", kind+", http", queueName, celeryName, 2)
		ratio("items/s over asynq", kind+", http", queueName, asynqName, 0.7)
	}
	ratio("items/s over the loop, a Nomad job for each", "redis, dispatch", queueName, loopName, 0.90)
	return targets
}

// count writes a rate.
func count(rate float64) string {
	if rate >= 1000 {
		return fmt.Sprintf("%.1fk", rate/1000)
	}
	return fmt.Sprintf("%.0f", rate)
}
