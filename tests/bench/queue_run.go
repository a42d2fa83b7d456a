package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial"
	"retinue/tests/brokers"
)

const (
	loopName  = "loop"
	asynqName = "asynq"
)

// queuer is a contender: who publishes to it, how it is started, and how far it is.
type queuer struct {
	name, config string
	most         int // items in a round; 0: as the others
	warmUp       int // items that it has done when the others are published; 0: it starts when all have been published
	size         int // bytes of an item whose latency is measured
	publish      func(ctx context.Context, n, size int) error
	start        func() (*process, error)
	helper       func() (*process, error) // the worker that it calls; nil for none
	count        func(ctx context.Context) (int, error)
	latencies    func(ctx context.Context) ([]time.Duration, error) // since they were asked for last
	arrivals     *arrivals                                          // that tell them; nil: the worker does

	env                            []string // of the coordinator
	nomad                          string   // where it makes jobs
	queue, counter, socket, folder string   // of this round

	rates, costs []float64 // items/s, and µs of processor time an item
}

// fresh gives a contender a queue and files that nobody had before.
func (q *queueRig) fresh(c *queuer) error {
	q.serial++
	id := fmt.Sprintf("q%d", q.serial)
	c.queue, c.counter, c.socket, c.folder = id, filepath.Join(q.dir, id+".count"), filepath.Join(q.dir, id+".sock"), filepath.Join(q.files, id)
	return os.MkdirAll(c.folder, 0o755)
}

// drained publishes items and lets a contender take them all.
func (q *queueRig) drained(ctx context.Context, c *queuer, n, size int) error {
	if c.most > 0 {
		n = min(n, c.most)
	}
	if err := q.fresh(c); err != nil {
		return err
	}
	defer os.RemoveAll(c.folder)
	if c.warmUp == 0 {
		if err := c.publish(ctx, n, size); err != nil {
			return fmt.Errorf("%s: publish: %w", c.name, err)
		}
	}
	if c.helper != nil {
		worker, err := c.helper()
		if err != nil {
			return err
		}
		defer worker.kill()
		if err := eventually(ctx, 20*time.Second, "the worker listens", func(context.Context) error { _, err := os.Stat(c.socket); return err }); err != nil {
			return err
		}
	}
	p, err := c.start()
	if err != nil {
		return err
	}
	defer p.kill()
	if c.warmUp > 0 {
		if err := q.warmed(ctx, c, p, n, size); err != nil {
			return err
		}
	}
	var from, to mark
	for to.items < n {
		if err := pause(ctx, 4*time.Millisecond); err != nil {
			return fmt.Errorf("%s took %d of %d items: %w\n%s", c.name, to.items, n, err, p.tail())
		}
		if !p.running() {
			return fmt.Errorf("%s has ended\n%s", c.name, p.tail())
		}
		if to.items, err = c.count(ctx); err != nil {
			return err
		}
		to.items -= c.warmUp
		to.at = time.Now()
		if from.items == 0 && to.items >= n/20 {
			if to.cpu, err = groupTime(p.pid()); err != nil {
				return err
			}
			from = to
		}
	}
	if to.cpu, err = groupTime(p.pid()); err != nil {
		return err
	}
	done := float64(to.items - from.items)
	c.rates = append(c.rates, done/to.at.Sub(from.at).Seconds())
	c.costs = append(c.costs, float64((to.cpu-from.cpu).Microseconds())/done)
	return nil
}

// mark is how far a contender was at a time.
type mark struct {
	items int
	at    time.Time
	cpu   time.Duration
}

// groupTime is the processor time of all processes of a group.
func groupTime(group int) (total time.Duration, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, ok := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 3 || fields[2] != strconv.Itoa(group) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return 0, err
		}
		if t, err := cpuTime(pid); err == nil { // it may have ended
			total += t
		}
	}
	return total, nil
}

// rounds lets contenders take turns, and returns their table.
func (q *queueRig) rounds(ctx context.Context, title, explain, table string, contenders []*queuer, n, size int, report *Report) error {
	for round := range q.amounts.rounds {
		for _, i := range rand.Perm(len(contenders)) {
			c := contenders[i]
			q.say("%s: %s, round %d", table, strings.TrimSpace(c.name+" "+c.config), round+1)
			if err := q.drained(ctx, c, n, size); err != nil {
				return err
			}
		}
	}
	t := Table{Title: title, Explain: explain, Head: []string{"contender", "settings", "items", "items/s", "of the loop", "CPU an item"}}
	own := contenders[0].name != loopName // beside itself
	if own {
		t.Head = []string{"contender", "settings", "items", "items/s", "of the first", "CPU an item", "of the first"}
	}
	q.rates[table], q.costs[table] = map[string]float64{}, map[string][]float64{}
	for i, c := range contenders {
		rate, cost := middle(c.rates), middle(c.costs)
		if i == 0 || q.rates[table][c.name] == 0 {
			q.rates[table][c.name], q.costs[table][c.name] = rate, c.costs
		}
		items := n
		if c.most > 0 {
			items = min(n, c.most)
		}
		row := []string{c.name, c.config, fmt.Sprintf("%d × %d", len(c.rates), items), count(rate), fmt.Sprintf("%.2f×", rate/q.rates[table][contenders[0].name]), fmt.Sprintf("%.0f µs", cost)}
		if own {
			row = append(row, fmt.Sprintf("%.2f×", cost/middle(q.costs[table][contenders[0].name])))
		}
		t.Rows = append(t.Rows, row)
		report.Figures = append(report.Figures, Figure{Part: table, Contender: c.name, Config: c.config, Values: map[string]float64{"items_per_second": rate, "cpu_us_per_item": cost}})
	}
	report.Tables = append(report.Tables, t)
	return nil
}

func middle(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// relax makes Redis write its log to the disk once a second, as people run it.
func (q *queueRig) relax(ctx context.Context, b *brokers.Broker) error {
	client, err := redisClient(b)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.ConfigSet(ctx, "appendfsync", "everysec").Err()
}

func redisClient(b *brokers.Broker) (*redis.Client, error) {
	opts, err := redis.ParseURL(b.URL)
	if err != nil {
		return nil, err
	}
	return redis.NewClient(opts), nil
}

// payload is an item of a size that begins with the time, when it is asked for one.
func payload(size int, stamped bool) []byte {
	body := []byte(strings.Repeat("x", size))
	if stamped {
		strconv.AppendInt(body[:0], time.Now().UnixNano(), 10)
	}
	return body
}

// handPublish publishes to a loop: with the same client as it.
func (q *queueRig) handPublish(ctx context.Context, kind, queue string, bodies [][]byte) error {
	if kind == "redis" {
		client, err := redisClient(q.brokers[kind])
		if err != nil {
			return err
		}
		defer client.Close()
		_, err = client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, body := range bodies {
				p.XAdd(ctx, &redis.XAddArgs{Stream: queue, Values: []any{"body", body}})
			}
			return nil
		})
		return err
	}
	conn, err := amqp.Dial(q.brokers[kind].URL)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if _, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return err
	}
	var last *amqp.DeferredConfirmation
	for _, body := range bodies {
		if last, err = ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body}); err != nil {
			return err
		}
	}
	if last != nil {
		_, err = last.WaitContext(ctx)
	}
	return err
}

// handPublisher publishes one item at a time to a loop.
func (q *queueRig) handPublisher(ctx context.Context, kind, queue string, size int) (func(context.Context, int) error, func(), error) {
	if kind == "redis" {
		client, err := redisClient(q.brokers[kind])
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, _ int) error {
			return client.XAdd(ctx, &redis.XAddArgs{Stream: queue, Values: []any{"body", payload(size, true)}}).Err()
		}, func() { client.Close() }, nil
	}
	if err := q.handPublish(ctx, kind, queue, nil); err != nil { // it declares the queue
		return nil, nil, err
	}
	conn, err := amqp.Dial(q.brokers[kind].URL)
	if err != nil {
		return nil, nil, err
	}
	ch, err := conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	return func(ctx context.Context, _ int) error {
		confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: payload(size, true)})
		if err != nil {
			return err
		}
		_, err = confirm.WaitContext(ctx)
		return err
	}, func() { conn.Close() }, err
}

// ownPublish publishes to the coordinator's queue.
func (q *queueRig) ownPublish(ctx context.Context, src source.Source, prefix string, bodies [][]byte) error {
	outs := make([]source.Out, len(bodies))
	for i, body := range bodies {
		outs[i] = source.Out{ID: fmt.Sprintf("%s-%d", prefix, i), Body: body}
	}
	return src.Publish(ctx, outs...)
}

// inPortions publishes n items, some at a time.
func inPortions(n, size int, publish func(portion int, bodies [][]byte) error) error {
	most := max(1, min(500, 8<<20/size))
	for portion := 0; n > 0; portion++ {
		bodies := make([][]byte, min(n, most))
		for i := range bodies {
			bodies[i] = payload(size, false)
		}
		if err := publish(portion, bodies); err != nil {
			return err
		}
		n -= len(bodies)
	}
	return nil
}

// httpWorker adds the worker that is called over HTTP, and counts its calls.
func (q *queueRig) httpWorker(c *queuer) *queuer {
	c.helper = func() (*process, error) {
		return q.rig.spawn.start(c.queue+"-worker", nil, q.hand, "worker", "-listen", c.socket)
	}
	c.count = func(ctx context.Context) (int, error) {
		var n int
		return n, getSocket(ctx, c.socket, "/count", &n)
	}
	c.latencies = func(ctx context.Context) ([]time.Duration, error) { return latencies(ctx, c.socket) }
	return c
}

func getSocket(ctx context.Context, socket, path string, v any) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://socket"+path, nil)
	if err != nil {
		return err
	}
	return doWith(client, req, v)
}

// counted counts by the size of a file.
func counted(c *queuer) *queuer {
	c.count = func(context.Context) (int, error) {
		info, err := os.Stat(c.counter)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		return int(info.Size()), nil
	}
	return c
}

// loop is the loop by hand.
func (q *queueRig) loop(kind, call string, flags ...string) *queuer {
	c := &queuer{name: loopName, config: call}
	c.publish = func(ctx context.Context, n, size int) error {
		return inPortions(n, size, func(_ int, bodies [][]byte) error { return q.handPublish(ctx, kind, c.queue, bodies) })
	}
	c.start = func() (*process, error) {
		args := []string{"loop", "-broker", q.brokers[kind].URL, "-queue", c.queue, "-slots", strconv.Itoa(queueSlots), "-call", call, "-worker", c.socket, "-count", c.counter, "-work", c.folder}
		return q.rig.spawn.start(c.queue, nil, q.hand, append(args, flags...)...)
	}
	if call == "exec" {
		c.config = "a folder, /bin/cat, rename"
		return counted(c)
	}
	return q.httpWorker(c)
}

// syncLoop is the loop with a command, whose outputs are on the disk before it acknowledges.
func (q *queueRig) syncLoop(kind string) *queuer {
	c := q.loop(kind, "exec", "-sync")
	c.name, c.config = loopName+", fsync", "a folder, /bin/cat, fsync, rename, fsync"
	return c
}

// coordinator is ours, with a configuration in which %s are the folder, the queue, and the socket of the worker.
func (q *queueRig) coordinator(kind, name, settings, config string) *queuer {
	c := &queuer{name: name, config: settings}
	c.publish = func(ctx context.Context, n, size int) error {
		src, err := dial.Open(ctx, q.brokers[kind].URL, source.Options{Queue: c.queue})
		if err != nil {
			return err
		}
		defer src.Close(ctx)
		return inPortions(n, size, func(portion int, bodies [][]byte) error {
			return q.ownPublish(ctx, src, fmt.Sprintf("%s-%d", c.queue, portion), bodies)
		})
	}
	c.start = func() (*process, error) {
		file := filepath.Join(c.folder, "queue.hcl")
		text := fmt.Sprintf("work_queue %q {\n  source {\n    broker = %q\n  }\n  %s\n}\n", c.queue, q.brokers[kind].URL,
			strings.NewReplacer("FOLDER", c.folder, "SOCKET", c.socket, "SLOTS", strconv.Itoa(queueSlots), "HAND", q.hand, "QUEUE", c.queue, "NOMAD", c.nomad).Replace(config))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, err
		}
		return q.rig.spawn.start(c.queue, append([]string{"BENCH_COUNT=" + c.counter}, c.env...), q.retinue, "coordinator", "--config", file, "--log-level", "error")
	}
	return c
}

// asynq is that library's server.
func (q *queueRig) asynqContender() *queuer {
	b := q.brokers["redis"]
	c := &queuer{name: asynqName, config: "in its own process"}
	c.publish = func(ctx context.Context, n, size int) error {
		opts, err := asynq.ParseRedisURI(b.URL)
		if err != nil {
			return err
		}
		client := asynq.NewClient(opts)
		defer client.Close()
		for range n {
			if _, err := client.EnqueueContext(ctx, asynq.NewTask("noop", payload(size, false))); err != nil {
				return err
			}
		}
		return nil
	}
	c.start = func() (*process, error) {
		return q.rig.spawn.start(c.queue, nil, q.hand, "asynq", "-broker", b.URL, "-slots", strconv.Itoa(queueSlots), "-count", c.counter)
	}
	return counted(c)
}

// files counts what has been committed in a folder: each is a folder in it, which is a link more to it. A list of them every few milliseconds would
// take a tenth of a processor, and hold up those who add to it.
func files(c *queuer) *queuer {
	c.count = func(context.Context) (int, error) {
		var info unix.Stat_t
		err := unix.Stat(filepath.Join(c.folder, "done", c.queue), &info)
		if errors.Is(err, os.ErrNotExist) {
			return 0, nil
		}
		return int(info.Nlink) - 2, err
	}
	return c
}

// latencies are what the worker saw since it was asked last.
func latencies(ctx context.Context, socket string) ([]time.Duration, error) {
	var ns []json.Number
	if err := getSocket(ctx, socket, "/latencies", &ns); err != nil {
		return nil, err
	}
	out := make([]time.Duration, len(ns))
	for i, n := range ns {
		v, err := n.Int64()
		if err != nil {
			return nil, err
		}
		out[i] = time.Duration(v)
	}
	return out, nil
}
