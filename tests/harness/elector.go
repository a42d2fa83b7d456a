package harness

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Elector is an elector process on a host, with the race detector on.
type Elector struct {
	*Process
	*ElectorClient
	Address string // what RETINUE_ELECTOR_ADDR is to its application

	t T
}

// ElectorConfig says how an elector runs.
type ElectorConfig struct {
	Name  string // as logs and Consul's session name call it
	App   string
	Lease time.Duration
	// Revocation is "safe" or "fast"; empty is the elector's own default.
	Revocation string
	Consul     string // address of the Consul agent; empty is ConsulAddr
}

// RunElector starts an elector and waits until it answers.
func RunElector(t T, h *Host, config ElectorConfig) *Elector {
	t.Helper()
	dir := Dir(t, "elector")
	socket := filepath.Join(dir, "alloc", "tmp", "elector.sock")
	secrets := filepath.Join(dir, "secrets")
	for _, folder := range []string{filepath.Dir(socket), secrets} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatalf("%v", err)
		}
	}
	args := []string{"elector", "--app", config.App, "--lease", config.Lease.String(), "--listen", "unix://" + socket}
	if config.Revocation != "" {
		args = append(args, "--revocation", config.Revocation)
	}
	if config.Consul == "" {
		config.Consul = ConsulAddr
	}
	p := Start(t, Spec{
		Name: "elector-" + config.Name,
		Path: RetinueRaceBinary(t),
		Args: args,
		Env: []string{
			"CONSUL_HTTP_ADDR=" + config.Consul,
			"NOMAD_ALLOC_DIR=" + filepath.Join(dir, "alloc"),
			"NOMAD_SECRETS_DIR=" + secrets,
			"NOMAD_ALLOC_ID=" + fakeAllocID(config.Name),
			"NOMAD_JOB_NAME=" + config.App,
		},
		Dir:  dir,
		Host: h,
	})
	e := &Elector{Process: p, ElectorClient: NewElectorClient("unix://" + socket), Address: "unix://" + socket, t: t}
	t.Cleanup(func() {
		if strings.Contains(p.Log(), "WARNING: DATA RACE") {
			t.Errorf("%s has a data race", p.spec.Name)
		}
	})
	e.WaitReady(20 * time.Second)
	return e
}

// WaitReady waits until the elector answers.
func (e *Elector) WaitReady(timeout time.Duration) {
	e.t.Helper()
	Eventually(e.t, timeout, e.spec.Name+" answers", func(ctx context.Context) error {
		select {
		case <-e.Done():
			return fmt.Errorf("it has ended")
		default:
		}
		_, err := e.State(ctx, "leader")
		return err
	})
}

// fakeAllocID is an allocation id of the usual form that starts with the name.
func fakeAllocID(name string) string {
	hex := fmt.Sprintf("%x", name)
	for len(hex) < 12 {
		hex += "0"
	}
	return fmt.Sprintf("%s-0000-4000-8000-%s", hex[:8], hex[:12])
}

// ElectorClient speaks the elector's HTTP API as its contract describes it,
// with nothing of the elector's own code.
type ElectorClient struct {
	http *http.Client
	base string
}

// NewElectorClient makes a client for an address in the form that
// RETINUE_ELECTOR_ADDR has: unix:///path or http://host:port.
func NewElectorClient(address string) *ElectorClient {
	if socket, ok := strings.CutPrefix(address, "unix://"); ok {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
		return &ElectorClient{http: &http.Client{Transport: &http.Transport{DialContext: dial}}, base: "http://elector"}
	}
	return &ElectorClient{http: &http.Client{Transport: &http.Transport{}}, base: address}
}

// Leader is who leads, as the elector reports it.
type Leader struct {
	ID      string `json:"id"`
	Alloc   string `json:"alloc"`
	Address string `json:"address"`
}

// Grant is the elector's answer about an election.
type Grant struct {
	Election           string   `json:"election"`
	Role               string   `json:"role"`
	Token              uint64   `json:"token"`
	LeaseMS            int64    `json:"lease_ms"`
	RemainingMS        int64    `json:"remaining_ms"`
	DeadlineBoottimeNS int64    `json:"deadline_boottime_ns"`
	Leader             *Leader  `json:"leader"`
	Candidates         []string `json:"candidates"` // of State: the electors in the race
	Error              string   `json:"error"`
	Reason             string   `json:"reason"`
}

// StatusError is an answer of the elector other than 200.
type StatusError struct {
	Status int
	Body   string
}

func (e *StatusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.Status, e.Body) }

// Become campaigns under a candidate's id until elected or until wait is over.
func (c *ElectorClient) Become(ctx context.Context, election, id string, wait time.Duration) (Grant, error) {
	return c.call(ctx, "POST", "/v1/elections/"+election+"/become", map[string]any{"id": id, "wait_ms": wait.Milliseconds()})
}

// Renew is the application's heartbeat.
func (c *ElectorClient) Renew(ctx context.Context, election string, token uint64) (Grant, error) {
	return c.call(ctx, "POST", "/v1/elections/"+election+"/renew", map[string]any{"token": token})
}

// Resign gives leadership up.
func (c *ElectorClient) Resign(ctx context.Context, election string, token uint64) (Grant, error) {
	return c.call(ctx, "POST", "/v1/elections/"+election+"/resign", map[string]any{"token": token})
}

// Verify asks whether the token is still the leader's, with a consistent read of Consul.
func (c *ElectorClient) Verify(ctx context.Context, election string, token uint64) error {
	_, err := c.call(ctx, "POST", "/v1/elections/"+election+"/verify", map[string]any{"token": token})
	return err
}

// State is what the elector knows of an election.
func (c *ElectorClient) State(ctx context.Context, election string) (Grant, error) {
	return c.call(ctx, "GET", "/v1/elections/"+election, nil)
}

func (c *ElectorClient) call(ctx context.Context, method, path string, body any) (Grant, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return Grant{}, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return Grant{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return Grant{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return Grant{}, err
	}
	var g Grant
	if resp.StatusCode != http.StatusOK {
		_ = json.Unmarshal(data, &g)
		return g, &StatusError{Status: resp.StatusCode, Body: strings.TrimSpace(string(data))}
	}
	return g, json.Unmarshal(data, &g)
}

// Events follows the election's event stream and hands each event's name and
// data to f until ctx ends or the stream breaks.
func (c *ElectorClient) Events(ctx context.Context, election string, f func(name, data string)) error {
	req, err := http.NewRequestWithContext(ctx, "GET", c.base+"/v1/elections/"+election+"/events", nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &StatusError{Status: resp.StatusCode}
	}
	lines := bufio.NewScanner(resp.Body)
	var name, data string
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch value = strings.TrimPrefix(value, " "); {
		case lines.Text() == "" && (name != "" || data != ""):
			f(name, data)
			name, data = "", ""
		case key == "event":
			name = value
		case key == "data":
			data += value
		}
	}
	return lines.Err()
}
