package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial"
)

const (
	kibi = 1 << 10
	mebi = 1 << 20
)

// The configurations of the coordinator.
const (
	configHTTP = `worker {
    mode  = "http"
    url   = "unix://SOCKET"
    slots = SLOTS
  }
  output { commit = "none" }`
	configRecord = `worker {
    mode  = "http"
    url   = "unix://SOCKET"
    slots = SLOTS
  }
  output {
    commit = "rename"
    done   = "FOLDER/done"
    sync   = false
  }`
	configBatch = `worker {
    mode  = "http"
    url   = "unix://SOCKET"
    slots = SLOTS
    batch = 100
  }
  output { commit = "none" }`
	configLines = `worker {
    mode    = "lines"
    command = ["HAND", "lines"]
    work    = "FOLDER/wq"
    slots   = SLOTS
    batch   = 100
  }
  output { commit = "none" }`
	configExec = `worker {
    mode    = "exec"
    command = ["/bin/cat"]
    work    = "FOLDER/wq"
    slots   = SLOTS
  }
  output {
    commit = "rename"
    done   = "FOLDER/done"
    sync   = %v
  }`
	configWatch = `worker {
    mode  = "watch"
    work  = "FOLDER/wq"
    slots = SLOTS
  }
  output {
    commit = "rename"
    done   = "FOLDER/done"
    sync   = false
  }`
)

// each runs a part on every broker that is there.
func (q *queueRig) each(run func(kind string) error) error {
	for _, kind := range []string{"redis", "rabbitmq"} {
		if q.brokers[kind] != nil {
			if err := run(kind); err != nil {
				return err
			}
		}
	}
	return nil
}

func (q *queueRig) http(ctx context.Context, report *Report) error {
	return q.each(func(kind string) error {
		all := []*queuer{q.loop(kind, "http"), q.httpWorker(q.coordinator(kind, queueName, "http", configHTTP)), q.httpWorker(q.coordinator(kind, queueName+" with records", "http, commit rename", configRecord))}
		if kind == "redis" {
			all = append(all, q.asynqContender())
		}
		if q.celery {
			all = append(all, counted(q.celeryContender(kind)))
		}
		return q.rounds(ctx, "One item a call: "+kind, "Items of 1 KiB, a POST over a Unix socket for each.", kind+", http", all, q.amounts.http, kibi, report)
	})
}

func (q *queueRig) batch(ctx context.Context, report *Report) error {
	return q.each(func(kind string) error {
		all := []*queuer{q.loop(kind, "batch"), q.httpWorker(q.coordinator(kind, queueName, "http, batch 100", configBatch)), counted(q.coordinator(kind, queueName+" lines", "a command for each 100", configLines))}
		return q.rounds(ctx, "Batches of 100: "+kind, "Items of 1 KiB as NDJSON.", kind+", batch", all, q.amounts.batch, kibi, report)
	})
}

func (q *queueRig) file(ctx context.Context, report *Report) error {
	how, closeDisk, err := q.openDisk(ctx)
	if err != nil {
		how = fmt.Sprintf("The files are where temporary files are: there is no disk of their own (%v).", err)
	} else {
		defer closeDisk()
	}
	return q.each(func(kind string) error {
		watch := files(q.coordinator(kind, queueName+" watch", "retinue worker -- cat, no fsync", configWatch))
		watch.helper = func() (*process, error) {
			if err := os.MkdirAll(watch.folder+"/wq/ready", 0o755); err != nil {
				return nil, err
			}
			if err := os.WriteFile(watch.socket, nil, 0o644); err != nil { // it does not listen
				return nil, err
			}
			return q.rig.spawn.start(watch.queue+"-worker", nil, q.retinue, "worker", "--work", watch.folder+"/wq", "--slots", fmt.Sprint(queueSlots), "--", "/bin/cat")
		}
		all := []*queuer{q.loop(kind, "exec"), files(q.coordinator(kind, queueName+" exec", "cat, no fsync", fmt.Sprintf(configExec, false))),
			files(q.coordinator(kind, queueName+" exec", "cat, fsync of all outputs", fmt.Sprintf(configExec, true))), watch}
		return q.rounds(ctx, "A command for each item: "+kind, "Items of 1 KiB: a folder with the input, `/bin/cat`, and its output under its last name. "+how, kind+", file", all, q.amounts.file, kibi, report)
	})
}

func (q *queueRig) large(ctx context.Context, report *Report) error {
	return q.each(func(kind string) error {
		all := []*queuer{q.loop(kind, "http"), q.httpWorker(q.coordinator(kind, queueName, "http", configHTTP))}
		return q.rounds(ctx, "Items of 1 MiB: "+kind, "A POST over a Unix socket for each.", kind+", 1 MiB", all, q.amounts.large, mebi, report)
	})
}

// latency publishes at half of the rate that the slower of two has, one item after the other, and asks the worker when each came.
func (q *queueRig) latency(ctx context.Context, report *Report) error {
	return q.each(func(kind string) error {
		rates := q.rates[kind+", http"]
		rate := min(rates[loopName], rates[queueName]) / 2
		if rate == 0 {
			rate = 500
		}
		sums := map[string]Summary{}
		t := Table{Title: "Latency at half load: " + kind, Explain: fmt.Sprintf("From before the publication to the worker, 1 KiB, at %s items/s for %v, one POST for each.", count(rate), q.amounts.latency), Head: []string{"contender", "n", "p50", "p99", "max", "added p50", "added p99"}}
		for _, c := range []*queuer{q.loop(kind, "http"), q.httpWorker(q.coordinator(kind, queueName, "http", configHTTP))} {
			took, err := q.paced(ctx, kind, c, rate)
			if err != nil {
				return err
			}
			s, base := summarize(took), sums[loopName]
			sums[c.name] = s
			row := []string{c.name, fmt.Sprint(s.N), human(s.P50), human(s.P99), human(s.Max), "–", "–"}
			if base.N > 0 {
				row[5], row[6] = signed(s.P50-base.P50), signed(s.P99-base.P99)
				q.targets = append(q.targets, Target{What: "added latency at half load, " + kind + ", http", Want: "p50 ≤ 300 µs, p99 ≤ 3 ms", Measured: fmt.Sprintf("p50 %s, p99 %s (n=%d)", signed(s.P50-base.P50), signed(s.P99-base.P99), s.N),
					Met: s.P50-base.P50 <= 300*time.Microsecond && s.P99-base.P99 <= 3*time.Millisecond})
			}
			t.Rows = append(t.Rows, row)
			report.Figures = append(report.Figures, Figure{Part: kind + ", latency", Contender: c.name, Took: s})
		}
		report.Tables = append(report.Tables, t)
		return nil
	})
}

func (q *queueRig) paced(ctx context.Context, kind string, c *queuer, rate float64) ([]time.Duration, error) {
	if err := q.fresh(c); err != nil {
		return nil, err
	}
	worker, err := c.helper()
	if err != nil {
		return nil, err
	}
	defer worker.kill()
	publish, closing, err := q.publisher(ctx, kind, c)
	if err != nil {
		return nil, err
	}
	defer closing()
	p, err := c.start()
	if err != nil {
		return nil, err
	}
	defer p.kill()
	sent := 0
	seen := func(n int) error {
		return eventually(ctx, 60*time.Second, fmt.Sprintf("%s has taken %d items", c.name, n), func(ctx context.Context) error {
			got, err := c.count(ctx)
			if err == nil && got < n {
				err = fmt.Errorf("it has %d\n%s", got, p.tail())
			}
			return err
		})
	}
	if err := publish(ctx, sent); err != nil { // it is up
		return nil, err
	}
	sent++
	if err := seen(sent); err != nil {
		return nil, err
	}
	if _, err := latencies(ctx, c.socket); err != nil {
		return nil, err
	}
	// Items that are due are published side by side: one answer of the broker must not hold up the next item.
	began, limit := time.Now(), make(chan struct{}, 64)
	failed := make(chan error, 1)
	for n := 0; time.Since(began) < q.amounts.latency; n++ {
		if err := pause(ctx, time.Until(began.Add(time.Duration(float64(n)/rate*float64(time.Second))))); err != nil {
			return nil, err
		}
		limit <- struct{}{}
		number := sent
		sent++
		go func() {
			defer func() { <-limit }()
			if err := publish(ctx, number); err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		}()
	}
	for range cap(limit) {
		limit <- struct{}{}
	}
	select {
	case err := <-failed:
		return nil, err
	default:
	}
	if err := seen(sent); err != nil {
		return nil, err
	}
	return latencies(ctx, c.socket)
}

// publisher publishes one item that begins with the time.
func (q *queueRig) publisher(ctx context.Context, kind string, c *queuer) (func(context.Context, int) error, func(), error) {
	if c.name == queueName {
		src, err := dial.Open(ctx, q.brokers[kind].URL, source.Options{Queue: c.queue})
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, n int) error {
			return src.Publish(ctx, source.Out{ID: fmt.Sprint(n), Body: payload(kibi, true)})
		}, func() { src.Close(context.WithoutCancel(ctx)) }, nil
	}
	return q.handPublisher(ctx, kind, c.queue)
}

// inflight measures the coordinator's memory with many items in work at once.
func (q *queueRig) inflight(ctx context.Context, report *Report) error {
	return q.each(func(kind string) error {
		config := strings.NewReplacer("slots = SLOTS", fmt.Sprintf("slots = %d", q.amounts.inflight), "unix://SOCKET", "unix://SOCKET").Replace(configHTTP)
		c := q.httpWorker(q.coordinator(kind, queueName, "http", config))
		c.helper = func() (*process, error) {
			return q.rig.spawn.start(c.queue+"-worker", nil, q.hand, "worker", "-listen", c.socket, "-hold", "6s")
		}
		if err := q.fresh(c); err != nil {
			return err
		}
		n := q.amounts.inflight
		if err := c.publish(ctx, n, kibi); err != nil {
			return err
		}
		worker, err := c.helper()
		if err != nil {
			return err
		}
		defer worker.kill()
		p, err := c.start()
		if err != nil {
			return err
		}
		defer p.kill()
		err = eventually(ctx, 60*time.Second, "all items are in flight", func(ctx context.Context) error {
			var held int
			if err := getSocket(ctx, c.socket, "/held", &held); err != nil {
				return err
			}
			if held < n {
				return fmt.Errorf("%d of %d\n%s", held, n, p.tail())
			}
			return nil
		})
		if err != nil {
			return err
		}
		bytes, err := rss(p.pid())
		if err != nil {
			return err
		}
		mib := float64(bytes) / mebi
		report.Facts = append(report.Facts, Fact{What: fmt.Sprintf("resident memory with %d items of 1 KiB in flight, %s", n, kind), Value: fmt.Sprintf("%.1f MiB", mib)})
		q.targets = append(q.targets, Target{What: fmt.Sprintf("resident memory with %d in flight, %s", n, kind), Want: "≤ 40 MiB", Measured: fmt.Sprintf("%.1f MiB", mib), Met: mib <= 40})
		return nil
	})
}
