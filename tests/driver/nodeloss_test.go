package driver_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

// A node that is lost with all that ran on it, agent, plugin and task, has run no hook. What was saved from time to time in a
// store that outlives it is what the next allocation begins with, on another node.
func TestLossOfANode(t *testing.T) {
	w := need(t)
	job := w.job("lost", devcluster.DriverRawExec, map[string]any{"save_state": map[string]any{"http": "GET /retinue/v1/state", "store": "consul-kv", "every": "1s"}})
	a := w.run(t, job)
	saved := func() string {
		t.Helper()
		pair, _, err := w.Consul.KV().Get("retinue/state/default/lost/g/app/0", nil)
		if err != nil {
			t.Fatal(err)
		}
		if pair == nil {
			return ""
		}
		value := string(pair.Value)
		return value[strings.LastIndexByte(value, '\n')+1:]
	}
	for range 5 {
		a.ask(t, "POST", "/inc")
	}
	harness.Eventually(t, 60*time.Second, "it is saved", func(context.Context) error {
		if got := saved(); got != "5" {
			return fmt.Errorf("Consul has %q", got)
		}
		return nil
	})
	a.ask(t, "POST", "/inc") // perhaps it is saved before the end, perhaps not
	if err := w.LoseNode(context.Background(), a.node); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.ReturnNode(context.Background(), a.node); err != nil {
			t.Error(err)
		}
	}()
	last := saved()
	if last != "5" && last != "6" {
		t.Fatalf("Consul has %q when the node is lost", last)
	}
	b := w.next(t, "lost", a.id)
	if b.node == a.node {
		t.Errorf("it runs on %s, which is lost", b.node)
	}
	if got := b.ask(t, "GET", "/count"); got != last {
		t.Errorf("the count is %s on the next node, %s was saved", got, last)
	}
	if h := a.history(t); strings.Contains(h, "signal") || strings.Contains(h, "exec pre_stop") {
		t.Errorf("the task was not killed but stopped:\n%s", h)
	}
}
