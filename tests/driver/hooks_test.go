package driver_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/devcluster"
	"retinue/tests/harness"
)

// What happens around a task, not to it: connections of a port in its own network are waited for, a template that has changed
// comes as on_config, and on_exit goes out from the host.
func TestConnectionsConfigurationAndExit(t *testing.T) {
	w := need(t)
	if w.Plan().NetworkMode() != devcluster.NetworkBridge {
		t.Skip("SKIP bridge networking")
	}
	var mu sync.Mutex
	var told []string
	l, err := net.Listen("tcp", net.JoinHostPort(w.TaskGateway(), "0")) // not a loopback address, which on_exit refuses
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, r.Header.Get("Retinue-Hook")+" "+r.Header.Get("Retinue-Reason"))
	})}
	go server.Serve(l)
	defer server.Close()
	const key = "test/greeting"
	put := func(value string) {
		t.Helper()
		if _, err := w.Consul.KV().Put(&consul.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put("hello")
	job := w.job("around", devcluster.DriverDocker, map[string]any{
		"on_config": map[string]any{"http": "POST /retinue/v1/config"},
		"drain":     map[string]any{"tcp_port": 8080, "timeout": "5m"},
		"pre_stop":  map[string]any{"exec": []string{"/local/counter", "note", "pre_stop"}},
		"on_exit":   map[string]any{"http": fmt.Sprintf("POST http://%s/ended", l.Addr())},
	})
	group, task := job.TaskGroups[0], job.TaskGroups[0].Tasks[0]
	group.Networks = []*nomad.NetworkResource{{Mode: "bridge", DynamicPorts: []nomad.Port{{Label: "http", To: 8080}}}}
	task.Env = map[string]string{"LISTEN": ":8080"}
	task.Templates = []*nomad.Template{{EmbeddedTmpl: new(`{{ key "` + key + `" }}`), DestPath: new("local/greeting"), ChangeMode: new("signal"), ChangeSignal: new("SIGHUP")}}
	task.Consul = &nomad.Consul{}
	a := w.run(t, job)
	a.ask(t, "POST", "/inc")
	put("good bye")
	harness.Eventually(t, 60*time.Second, "it is told of the new configuration", func(context.Context) error {
		if h := a.history(t); !strings.Contains(h, "http config as on_config") {
			return fmt.Errorf("history:\n%s", h)
		}
		return nil
	})
	if out := a.exec(t, "/local/counter", "cat", "/local/greeting"); strings.TrimSpace(out) != "good bye" {
		t.Errorf("its configuration is %q", out)
	}

	port := a.info(t).AllocatedResources.Shared.Ports[0]
	conn, err := net.Dial("tcp", net.JoinHostPort(port.HostIP, strconv.Itoa(port.Value)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET /count HTTP/1.1\r\nHost: app\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 512)); err != nil || n == 0 { // the application has it
		t.Fatalf("%d, %v", n, err)
	}
	if _, _, err := w.Nomad.Jobs().Deregister("around", false, nil); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 60*time.Second, "it drains", func(context.Context) error {
		if out := a.exec(t, "@retinue", "GET", "/v1/task"); !strings.Contains(out, `"phase":"draining"`) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	time.Sleep(time.Second) // five times the interval of its questions
	if h := a.history(t); strings.Contains(h, "pre_stop") || strings.Contains(h, "signal") {
		t.Errorf("it does not wait for the connection:\n%s", h)
	}
	conn.Close()
	a.stopped(t)
	if h := a.history(t); !strings.Contains(h, "exec pre_stop") || !strings.HasSuffix(h, "signal terminated") {
		t.Errorf("history:\n%s", h)
	}
	harness.Eventually(t, 30*time.Second, "on_exit is told", func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if len(told) != 1 || told[0] != "on_exit stopped" {
			return fmt.Errorf("%q", told)
		}
		return nil
	})
}

// An application that owes WATCHDOG=1 is ended, and the restart policy starts it again.
func TestWatchdogOfATask(t *testing.T) {
	w := need(t)
	job := w.job("silent", devcluster.DriverRawExec, map[string]any{"watchdog": "1s"})
	job.TaskGroups[0].RestartPolicy = &nomad.RestartPolicy{Attempts: new(5), Interval: new(time.Hour), Delay: new(time.Second), Mode: new("fail")}
	a := w.run(t, job)
	harness.Eventually(t, 60*time.Second, "it is ended and started again", func(context.Context) error {
		if e := a.events(t); a.restarts(t) == 0 || !strings.Contains(e, "Watchdog: no WATCHDOG=1 for 1s") {
			return fmt.Errorf("%d restarts, events:\n%s", a.restarts(t), e)
		}
		return nil
	})
}
