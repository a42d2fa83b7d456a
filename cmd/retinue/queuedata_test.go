package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/coordinator"
	"retinue/coordinator/blob"
	"retinue/coordinator/blob/blobtest"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
	"retinue/coordinator/source/dial"
)

// TestKilledDataPlane: inputs in an object store, parts and groups, records in Redis, outputs uploaded, and the coordinators of all three stages killed
// with SIGKILL again and again. Every group comes once, whole, and with the right outputs.
func TestKilledDataPlane(t *testing.T) {
	server, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("skip: no redis-server")
	}
	const groups, parts, kills = 6, 5, 9
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	showLog(t, log)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	start(t, exec.Command(server, "--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--dir", dir, "--logfile", filepath.Join(dir, "redis.log")))
	store := blobtest.Start(t)
	for name, value := range store.Variables() {
		t.Setenv(name, value)
	}
	client := blob.NewClient(store.Environment(), nil)
	broker := fmt.Sprintf("redis://127.0.0.1:%d/0", port)
	open := func(o source.Options) (source.Source, error) { return dial.Open(t.Context(), broker, o) }
	var in source.Source
	until(t, "Redis answers", func() bool { in, err = open(source.Options{Queue: "in"}); return err == nil })
	// Each item is a file of lines in the store; the first stage makes a message of each line, the second writes a file for each.
	for g := range groups {
		var text strings.Builder
		for p := range parts {
			fmt.Fprintf(&text, "%d-%d\n", g, p)
		}
		if err := client.Put(t.Context(), &url.URL{Scheme: "s3", Host: "b", Path: fmt.Sprint("/in/", g)}, []byte(text.String())); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(text.String()))
		env := item.Envelope{ID: fmt.Sprint("g", g), Input: &item.Reference{URL: fmt.Sprint("s3://b/in/", g), Size: int64(text.Len()), SHA256: fmt.Sprintf("%x", sum)}}
		if err := in.Publish(t.Context(), source.Out{ID: env.ID, Headers: env.Seal(env.ID)}); err != nil {
			t.Fatal(err)
		}
	}
	stage := func(name, output, command string) func() *exec.Cmd {
		config := filepath.Join(dir, name+".hcl")
		write(t, config, fmt.Sprintf(`work_queue %q {
  source {
    broker = %q
    lease  = "1s"
  }
  worker {
    command = ["/bin/sh", "-c", %q]
    work    = %q
  }
  input { allow = ["s3://b/"] }
  retry {
    attempts       = 50
    crash_attempts = 50
    backoff        = "1ms..50ms"
  }
  output {
    commit  = "journal"
    journal = "broker:t"
    %s
  }
}
`, name, broker, command, filepath.Join(dir, name), output), 0o600)
		return func() *exec.Cmd { return process(t, log, "coordinator", "--config", config) }
	}
	stages := []func() *exec.Cmd{
		stage("in", `to = "parts"`+"\n    split = true", `mkdir out/_next; n=0; while read l; do echo "{\"body\":\"$l\"}" >out/_next/$n.json; n=$((n+1)); done <input`),
		stage("parts", `gather = "albums"`+"\n    artifacts = \"s3://b/out\"", `sleep 0.05; tr 0-9 a-j <input >out/letters; echo more >out/more`),
	}
	running := make([]*exec.Cmd, len(stages))
	for i, run := range stages {
		running[i] = run()
	}
	albums, err := open(source.Options{Queue: "albums", Lease: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]coordinator.Gathered{}
	receive := func(wait time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		ms, err := albums.Receive(ctx, 10)
		if err != nil {
			return
		}
		for _, m := range ms {
			var g coordinator.Gathered
			if err := json.Unmarshal(m.Body, &g); err != nil {
				t.Error(err)
			}
			if _, twice := got[m.ID]; twice {
				t.Errorf("%s came twice", m.ID)
			}
			got[m.ID] = g
		}
		if err := albums.Ack(t.Context(), ms...); err != nil {
			t.Error(err)
		}
	}
	random := rand.New(rand.NewPCG(5, 5))
	for range kills {
		receive(time.Duration(300+random.IntN(700)) * time.Millisecond)
		i := random.IntN(len(stages))
		if err := running[i].Process.Kill(); err != nil {
			t.Fatal(err)
		}
		running[i].Wait()
		running[i] = stages[i]()
	}
	until(t, "all groups", func() bool { receive(time.Second); return len(got) == groups })
	receive(3 * time.Second) // one too many would come by now
	for g := range groups {
		all := got[fmt.Sprintf("g%d/in/parts/all", g)]
		if len(all.Parts) != parts {
			t.Fatalf("group %d: %+v, of %d groups", g, all, len(got))
		}
		for p, part := range all.Parts {
			u, err := url.Parse(part.Output + "/letters")
			if err != nil {
				t.Fatal(err)
			}
			data, _, err := client.ReadAll(t.Context(), u, 100)
			want := fmt.Sprintf("%c-%c", 'a'+g, 'a'+p)
			if err != nil || strings.TrimSpace(string(data)) != want || len(part.Files) != 2 {
				t.Errorf("group %d part %d: %q, want %q, %v, %+v", g, p, data, want, err, part)
			}
		}
	}
}
