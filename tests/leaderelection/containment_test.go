package leaderelection_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue/tests/harness"
)

// process is what runs a task: the pid as the machine sees it, and when it
// began, for a pid may be given again.
type process struct {
	pid, began string
}

// processOf finds the process of a task by the environment that Nomad gives to it, on any driver.
func processOf(alloc, task string) (process, error) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	var found []process
	for _, path := range environs {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // gone, or another user's
		}
		env := strings.Split(string(data), "\x00")
		if !slices.Contains(env, "NOMAD_ALLOC_ID="+alloc) || !slices.Contains(env, "NOMAD_TASK_NAME="+task) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		if err != nil {
			continue
		}
		// Field 22 is the start; the name, field 2, ends with the last parenthesis.
		_, after, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(after); len(fields) > 19 {
			found = append(found, process{filepath.Base(filepath.Dir(path)), fields[19]})
		}
	}
	if len(found) != 1 {
		return process{}, fmt.Errorf("task %s of %s has %d processes", task, alloc[:8], len(found))
	}
	return found[0], nil
}

// An elector that dies again and again does not disturb the application beside
// it: Nomad restarts the elector alone.
func TestElectorDiesAlone(t *testing.T) {
	const deaths = 10
	o := runOrders(t, "containment", 2)
	o.runs(2)
	leader, token := o.next(0, 60*time.Second)
	w := o.watch(t)
	apps := map[string]process{}
	for _, a := range o.Allocs() {
		p, err := processOf(a.ID, "app")
		if err != nil {
			t.Fatal(err)
		}
		apps[a.ID] = p
	}
	begin := time.Now()
	for i := range deaths {
		before, err := processOf(leader.ID, "elector")
		if err != nil {
			t.Fatal(err)
		}
		o.signal(leader, "elector", "SIGKILL")
		harness.Eventually(t, 60*time.Second, fmt.Sprintf("the elector is back after death %d", i+1), func(ctx context.Context) error {
			now, err := processOf(leader.ID, "elector")
			if err != nil {
				return err
			}
			if now == before {
				return fmt.Errorf("pid %s has not died", now.pid)
			}
			_, err = leader.Elector.State(ctx, election)
			return err
		})
	}
	o.runs(2)
	_, last := o.next(token-1, 60*time.Second)
	p := w.since(begin)
	t.Logf("%d deaths in %.0f s: leadership moved %d times, token %d to %d; no application led for %v at most",
		deaths, time.Since(begin).Seconds(), len(p.tenures)-1, token, last, p.unled)
	for id, was := range apps {
		if now, err := processOf(id, "app"); err != nil || now != was {
			t.Errorf("the application of %s is %+v (%v), was %+v", id[:8], now, err, was)
		}
	}
	for _, a := range o.Allocs() {
		if n := a.TaskStates["app"].Restarts; n != 0 {
			t.Errorf("the application of %s was restarted %d times", a.ID[:8], n)
		}
		if n := a.TaskStates["elector"].Restarts; a.ID == leader.ID && n != deaths {
			t.Errorf("the elector of the leader was restarted %d times, want %d", n, deaths)
		}
	}
}
