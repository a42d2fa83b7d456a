// Package ui_test looks at leadership with the eyes of a person: a browser on
// the web UIs of Consul and Nomad, on a dev cluster as `retinue dev up` makes it.
package ui_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	app      = "orders"
	election = "leader"
	service  = app + "-elector"
)

// page is a browser on the UIs of a cluster.
type page struct {
	*harness.Browser
	t       *testing.T
	cluster *harness.Cluster
}

// shows waits until the page's text has all the words.
func (p *page) shows(words ...string) {
	p.t.Helper()
	harness.Eventually(p.t, 60*time.Second, "the page shows "+strings.Join(words, ", "), func(context.Context) error {
		text := p.Text()
		for _, word := range words {
			if !strings.Contains(strings.ToLower(text), strings.ToLower(word)) {
				return fmt.Errorf("%q is not there; the page says:\n%s", word, text)
			}
		}
		return nil
	})
}

// click follows the link of that text, as a person would find it.
func (p *page) click(text string) {
	p.t.Helper()
	harness.Eventually(p.t, 60*time.Second, "click "+text, func(context.Context) error {
		found, err := p.Eval(fmt.Sprintf(`(() => {
			const link = [...document.querySelectorAll("a")].find(a => a.innerText.trim() === %q);
			if (!link) return "";
			link.click();
			return "clicked";
		})()`, text))
		if err == nil && found == "" {
			err = fmt.Errorf("no such link; the page says:\n%s", p.Text())
		}
		return err
	})
}

// leaders lists the instances on the instances page that carry the tag, by their IDs.
func (p *page) leaders() []string {
	p.t.Helper()
	rows, err := p.Eval(fmt.Sprintf(`[...document.querySelectorAll(".consul-service-instance-list li")]
		.filter(row => [...row.querySelectorAll(".tag-list dd, .tag-list span")].some(tag => tag.innerText.trim() === "leads-%s"))
		.map(row => row.querySelector(".header").innerText.trim()).join("\n")`, election))
	if err != nil {
		p.t.Logf("read the list of instances: %v", err)
	}
	return strings.Fields(rows)
}

// leader waits until the instances page shows one leader, other than the one named.
func (p *page) leader(not string) string {
	p.t.Helper()
	var leader string
	harness.Eventually(p.t, 60*time.Second, "the instances page shows one leader", func(context.Context) error {
		leaders := p.leaders()
		if len(leaders) != 1 || leaders[0] == not {
			return fmt.Errorf("it shows %v; the page says:\n%s", leaders, p.Text())
		}
		leader = leaders[0]
		return nil
	})
	return leader
}

// lock waits until the key page shows a Lock Session of the leader and its record.
func (p *page) lock(leader string) {
	p.t.Helper()
	alloc, _, _ := strings.Cut(leader, "@")
	p.shows("Lock Session", "Invalidate Session", "This KV has a lock session", alloc)
	harness.Eventually(p.t, 30*time.Second, "the key's value names the leader", func(context.Context) error {
		value, err := p.Eval(`(document.querySelector(".CodeMirror")?.CodeMirror?.getValue()) ?? document.querySelector(".cm-content")?.innerText ?? document.querySelector("textarea")?.value ?? ""`)
		if err == nil && !(strings.Contains(value, alloc) && strings.Contains(value, `"token"`)) {
			err = fmt.Errorf("it is %q", value)
		}
		return err
	})
}

// A person finds out who leads: from the list of services to the instance with
// the tag, and on the key's page the session that locks it. Both change by
// themselves when leadership does.
func TestWhoLeads(t *testing.T) {
	harness.Need(t, harness.Chromium)
	c := harness.RunCluster(t, devcluster.Config{Servers: 1, Clients: 2})
	job := c.RunJob(t, "leader-election", app, 3, map[string]string{"consul_ui": c.ConsulAddr() + "/ui"})
	p := &page{Browser: harness.RunBrowser(t), t: t, cluster: c}
	images := filepath.Join(harness.RepoRoot(t), "docs", "images")
	key := c.ConsulAddr() + "/ui/dc1/kv/retinue/elections/" + app + "/" + election + "/edit"

	p.Open(c.ConsulAddr() + "/ui/")
	p.shows("Services")
	p.click(service)
	p.shows("Instances")
	leader := p.leader("")
	p.Screenshot(filepath.Join(images, "consul-ui-instances.png"))

	p.Zoom(0.72) // the record and its lock in one picture
	p.Open(key)
	p.lock(leader)
	p.Screenshot(filepath.Join(images, "consul-ui-key.png"))
	p.Zoom(1)

	// The job's page in the Nomad UI has the links to both.
	p.Open(c.NomadAddr() + "/ui/jobs/" + app)
	p.shows("Who leads (Consul)", "Lock of "+election)
	p.Screenshot(filepath.Join(images, "nomad-ui-job.png"))
	p.click("Who leads (Consul)")

	// The page a person has open follows the leadership.
	p.Open(c.ConsulAddr() + "/ui/dc1/services/" + service + "/instances")
	if again := p.leader(""); again != leader {
		t.Logf("leadership moved from %s to %s by itself", leader, again)
		leader = again
	}
	for _, a := range job.Allocs() {
		if strings.HasPrefix(leader, a.ID[:8]) {
			resp, err := http.Post("http://"+a.App+"/step-down", "application/json", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
	}
	next := p.leader(leader)
	p.Open(key)
	p.lock(next)
}
