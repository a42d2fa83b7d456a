package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
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
		all := []*queuer{q.loop(kind, "exec"), q.syncLoop(kind), files(q.exec(kind, false)), files(q.exec(kind, true)), files(q.watch(kind))}
		return q.rounds(ctx, "A command for each item: "+kind, "Items of 1 KiB: a folder with the input, `/bin/cat`, and its output under its last name. "+how, kind+", file", all, q.amounts.file, kibi, report)
	})
}

// exec is the coordinator with a command for each item.
func (q *queueRig) exec(kind string, sync bool) *queuer {
	settings := "cat, no fsync"
	if sync {
		settings = "cat, fsync of all outputs"
	}
	return q.coordinator(kind, queueName+" exec", settings, fmt.Sprintf(configExec, sync))
}

// watch is the coordinator beside `retinue worker`, which has the command.
func (q *queueRig) watch(kind string) *queuer {
	c := q.coordinator(kind, queueName+" watch", "retinue worker -- cat, no fsync", configWatch)
	c.helper = func() (*process, error) {
		if err := os.MkdirAll(c.folder+"/wq/ready", 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(c.socket, nil, 0o644); err != nil { // it does not listen
			return nil, err
		}
		return q.rig.spawn.start(c.queue+"-worker", nil, q.retinue, "worker", "--work", c.folder+"/wq", "--slots", fmt.Sprint(queueSlots), "--", "/bin/cat")
	}
	return c
}

func (q *queueRig) large(ctx context.Context, report *Report) error {
	how, closeDisk, err := q.openDisk(ctx)
	if err != nil {
		how = fmt.Sprintf("The files are where temporary files are (%v).", err)
	} else {
		defer closeDisk()
	}
	return q.each(func(kind string) error {
		all := []*queuer{q.loop(kind, "http"), q.httpWorker(q.coordinator(kind, queueName, "http", configHTTP))}
		if err := q.rounds(ctx, "Items of 1 MiB: "+kind, "A POST over a Unix socket for each.", kind+", 1 MiB", all, q.amounts.large, mebi, report); err != nil {
			return err
		}
		all = []*queuer{q.loop(kind, "exec"), files(q.exec(kind, false)), files(q.watch(kind))}
		return q.rounds(ctx, "Items of 1 MiB, a command for each: "+kind, "A folder with the input, `/bin/cat`, and its output under its last name. "+how, kind+", file, 1 MiB", all, q.amounts.large, mebi, report)
	})
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
