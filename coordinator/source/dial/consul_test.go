package dial

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/coordinator/broker"
	"retinue/coordinator/source"
	"retinue/internal/consulkit/consultest"
)

// A broker that is named by its service is found again where it has moved to, and a password that has changed is read again.
func TestServiceMoves(t *testing.T) {
	agent := consultest.Start(t)
	t.Setenv("CONSUL_HTTP_ADDR", agent.Addr)
	client, err := api.NewClient(&api.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(t.TempDir(), "password")
	dir := t.TempDir()
	start := func(secret string) *broker.Broker {
		t.Helper()
		if err := os.WriteFile(password, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := broker.Start(t.Context(), broker.Config{Dir: dir, Listen: "127.0.0.1:0", User: "retinue", Password: secret})
		if err != nil {
			t.Fatal(err)
		}
		host, text, _ := net.SplitHostPort(b.Addr())
		port, _ := strconv.Atoi(text)
		if err := client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "thumbs-broker", Address: host, Port: port}); err != nil {
			t.Fatal(err)
		}
		return b
	}
	address := "nats://retinue@thumbs-broker.service.consul?password_file=" + password
	if _, err := Open(t.Context(), address, source.Options{Queue: "q"}); err == nil {
		t.Fatal("it is open before there is a broker")
	}
	b := start("one")
	s, err := Open(t.Context(), address, source.Options{Queue: "q"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if err := s.Publish(t.Context(), source.Out{ID: "a", Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	b.Close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) { // it says why, not that a buffer is full
		_, err := s.Receive(t.Context(), 1)
		if err != nil && strings.Contains(err.Error(), "connection refused") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("without a broker: %v", err)
		}
	}
	b = start("two")
	defer b.Close()
	var ms []*source.Message
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ms, err = s.Receive(t.Context(), 1); err == nil {
			break
		}
	}
	if err != nil || len(ms) != 1 || ms[0].ID != "a" {
		t.Errorf("after the move: %v, %v", ms, err)
	}
}

// Passing instances go first, those that do not pass before none, and the one that was lost last of all.
func TestChoose(t *testing.T) {
	entry := func(host, status string) *api.ServiceEntry {
		return &api.ServiceEntry{Node: &api.Node{Address: "10.0.0.9"}, Service: &api.AgentService{Address: host, Port: 7}, Checks: api.HealthChecks{{Status: status}}}
	}
	bad, good := entry("10.0.0.1", "critical"), entry("10.0.0.2", "passing")
	for _, c := range []struct {
		entries    []*api.ServiceEntry
		last, want string
	}{
		{[]*api.ServiceEntry{bad, good}, "", "10.0.0.2:7 10.0.0.1:7"},
		{[]*api.ServiceEntry{bad, good}, "10.0.0.2:7", "10.0.0.1:7 10.0.0.2:7"},
		{[]*api.ServiceEntry{bad, good}, "10.0.0.3:7", "10.0.0.2:7 10.0.0.1:7"},
		{[]*api.ServiceEntry{bad}, "10.0.0.1:7", "10.0.0.1:7"},
		{[]*api.ServiceEntry{entry("", "passing")}, "", "10.0.0.9:7"},
		{nil, "10.0.0.1:7", ""},
	} {
		if got, err := choose(c.entries, c.last); strings.Join(got, " ") != c.want || (err == nil) != (c.want != "") {
			t.Errorf("after %q: %q, %v, want %q", c.last, got, err, c.want)
		}
	}
}
