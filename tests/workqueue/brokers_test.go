package workqueue_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"retinue/coordinator"
	"retinue/coordinator/blob"
	"retinue/coordinator/blob/blobtest"
	"retinue/coordinator/item"
	"retinue/coordinator/source/sourcetest/sqsfake"
	"retinue/tests/brokers"
	"retinue/tests/harness"
)

// A queue on Kafka is a queue: nothing but its address is said, and workers come from none for its items.
func TestKafka(t *testing.T) {
	c := cluster.Get(t)
	spawn := brokers.NewSpawner()
	t.Cleanup(spawn.Close)
	kafka, err := brokers.Start(t.Context(), spawn, "kafka", t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	const name, count = "kafka-raw-exec", 60
	allow(t, c, "scaler", name)
	q := run(t, "work-queue", name, 1, mergeVars(drivers["raw_exec"].vars(c), map[string]string{"queue_url": kafka.URL, "count": "0", "max_count": "2", "target_drain": "2s", "scale_cooldown": "4s", "drain_seconds": "5"}))
	q.put("scaler", 0, count)
	q.check(q.until(q.ID, count), count)
	harness.Eventually(t, time.Minute, "nobody works again", func(context.Context) error {
		if n := len(q.in("worker")); n != 0 {
			return fmt.Errorf("%d work", n)
		}
		return nil
	})
}

// A queue on SQS whose inputs and outputs lie in S3, with a schedule. Coordinator and scaler have their key from the Nomad variable of the
// job, and it is nowhere else: not in the job, not in a log, not at the worker.
func TestKeyOfQueueAndStore(t *testing.T) {
	c := cluster.Get(t)
	dir := t.TempDir()
	fake, err := sqsfake.New(dir, blobtest.Key, 12*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	sqs := httptest.NewServer(fake)
	t.Cleanup(sqs.Close)
	store := blobtest.Start(t)
	objects := blob.NewClient(store.Environment(), nil)
	if err := objects.Put(t.Context(), object(t, "s3://b/in/hamlet"), []byte("to be or not to be")); err != nil {
		t.Fatal(err)
	}
	const name = "keys-raw-exec"
	allow(t, c, "scaler", name)
	secret := rand.Text()
	q := runWith(t, "work-queue", name, 1, mergeVars(drivers["raw_exec"].vars(c), map[string]string{
		"queue_url": "sqs://eu-central-1?endpoint=" + sqs.URL, "aws_credentials": "true", "count": "0", "max_count": "1", "drain_seconds": "5",
		"allow": `["s3://b/in"]`, "artifacts": "s3://b/out", "keep": "7d", "coordinator_env": fmt.Sprintf(`{ AWS_ENDPOINT_URL_S3 = %q }`, store.URL),
		"coordinator_config": "schedule \"nightly\" {\n  cron = \"30 3 * * *\"\n  body = \"everything\"\n}",
		"worker_command":     "/bin/sh", "worker_args": `["-c", "tr a-z A-Z > $RETINUE_OUTPUT/upper; env > $RETINUE_OUTPUT/env"]`,
	}), map[string]string{"aws_access_key_id": blobtest.Key, "aws_secret_access_key": secret, "aws_session_token": secret + "-token"})

	q.retinue("scaler", "", "queue", "put", "--id", "hamlet", "--input", "s3://b/in/hamlet")
	rec := q.until(q.ID, 1)["hamlet"]
	if rec.State != item.Done || len(rec.Attempts) != 0 || !strings.HasPrefix(rec.Output, "s3://b/out/") {
		t.Fatalf("%+v", rec)
	}
	read := func(file string) string {
		part, err := objects.Get(t.Context(), object(t, rec.Output+"/"+file), 0, "")
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		defer part.Close()
		data, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if got := read("upper"); got != "TO BE OR NOT TO BE" {
		t.Errorf("the output is %q", got)
	}
	var plan []coordinator.ScheduleView
	if out := q.retinue("worker", "", "queue", "schedule", "ls", "--json"); json.Unmarshal([]byte(out), &plan) != nil || len(plan) != 1 || plan[0].Name != "nightly" {
		t.Errorf("schedules: %s", out)
	}
	seen := map[string]string{"the job": c.Command(t, harness.NomadBinary(t), "job", "inspect", q.ID), "the worker's environment": read("env")}
	for _, a := range q.Allocs() {
		for _, task := range []string{"coordinator", "worker", "scaler"} {
			seen["the log of "+task] += a.Log(t, task)
		}
	}
	for where, text := range seen {
		if text == "" && where != "the log of worker" || strings.Contains(text, secret) || strings.Contains(text, "AWS_SHARED") && strings.HasPrefix(where, "the worker") {
			t.Errorf("the key in %s, or nothing: %d bytes", where, len(text))
		}
	}
}

func object(t *testing.T, address string) *url.URL {
	t.Helper()
	u, err := blob.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
