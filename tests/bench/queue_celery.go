package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	celeryName   = "Celery"
	celeryPython = "/usr/bin/python3" // Debian's, which has Debian's packages
)

// celeryApp is the contender: a task that counts and does nothing else. As a program it publishes.
const celeryApp = `import os, sys
from celery import Celery
app = Celery("q", broker=os.environ["BENCH_BROKER"])
app.conf.update(task_acks_late=True, task_ignore_result=True, task_reject_on_worker_lost=True, broker_connection_retry_on_startup=True, task_default_queue=os.environ["BENCH_QUEUE"])
if os.environ.get("BENCH_COUNT"):
    counter = os.open(os.environ["BENCH_COUNT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
@app.task(name="noop")
def noop(body):
    os.write(counter, b".")
if __name__ == "__main__":
    body = "x" * int(sys.argv[2])
    with app.producer_pool.acquire() as producer:
        for _ in range(int(sys.argv[1])):
            noop.apply_async((body,), producer=producer)
`

// celeryContender is Celery's worker.
func (q *queueRig) celeryContender(kind string) *queuer {
	url := q.brokers[kind].URL
	c := &queuer{name: celeryName, config: fmt.Sprintf("prefork -c %d, acks_late", queueSlots), most: q.amounts.celery}
	env := func(c *queuer) []string {
		return []string{"BENCH_BROKER=" + url, "BENCH_QUEUE=" + c.queue, "PYTHONPATH=" + q.dir}
	}
	c.publish = func(ctx context.Context, n, size int) error {
		if err := os.WriteFile(filepath.Join(q.dir, "celery_app.py"), []byte(celeryApp), 0o644); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, celeryPython, filepath.Join(q.dir, "celery_app.py"), fmt.Sprint(n), fmt.Sprint(size))
		cmd.Env = append(os.Environ(), env(c)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("publish with Celery: %w\n%s", err, lastLine(strings.TrimSpace(string(out))))
		}
		return nil
	}
	c.start = func() (*process, error) {
		return q.rig.spawn.start(c.queue, append(env(c), "BENCH_COUNT="+c.counter), celeryPython, "-m", "celery", "-A", "celery_app", "worker", "-c", fmt.Sprint(queueSlots), "-l", "ERROR",
			"--without-gossip", "--without-mingle", "-Q", c.queue, "-n", c.queue+"@bench")
	}
	return c
}
