package elector

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
	"retinue/internal/listen"
)

// sidecar is an elector on a real Consul, served on a Unix socket, spoken to with nothing but HTTP.
type sidecar struct {
	t    *testing.T
	el   *Elector
	http *http.Client
	base string
	stop func() // SIGTERM
	kill func() // SIGKILL
}

func newSidecar(t *testing.T, agent *consultest.Agent, cfg Config, token string) *sidecar {
	t.Helper()
	return newSidecarLog(t, agent, cfg, token, hclog.NewNullLogger())
}

func newSidecarLog(t *testing.T, agent *consultest.Agent, cfg Config, token string, log hclog.Logger) *sidecar {
	t.Helper()
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr, Token: token, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	el, err := New(cfg, NewConsulStore(client, cfg, clock.Boot()), clock.Boot(), log, nil)
	if err != nil {
		t.Fatal(err)
	}
	addr := listen.Addr{Network: "unix", Path: filepath.Join(t.TempDir(), "s")}
	l, err := listen.Listen(addr, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	soft, stop := context.WithCancel(context.Background())
	hard, kill := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { el.Run(soft, hard) })
	wg.Go(func() { listen.Serve(hard, l, el.Handler(), 0) })
	s := &sidecar{t: t, el: el, stop: stop, kill: func() { kill(); wg.Wait() }}
	s.http, s.base = listen.Client(addr)
	t.Cleanup(s.kill)
	return s
}

func realConfig(id string, elections ...string) Config {
	if len(elections) == 0 {
		elections = []string{"leader"}
	}
	return Config{App: "app", ID: id, Elections: elections, Lease: 20 * time.Second, Revocation: Safe} // nothing expires on a slow machine
}

func (s *sidecar) do(method, path, body string, out any) int {
	s.t.Helper()
	req, err := http.NewRequest(method, s.base+"/v1/elections/"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			s.t.Fatalf("%s %s: %s: %v", method, path, data, err)
		}
	}
	return resp.StatusCode
}

func (s *sidecar) become() Grant {
	s.t.Helper()
	var g Grant
	if status := s.do(http.MethodPost, "leader/become", `{}`, &g); status != http.StatusOK {
		s.t.Fatalf("become: %d", status)
	}
	return g
}

// hold opens the tether; close ends it as the kernel does when the application dies.
func (s *sidecar) hold(token uint64) (events <-chan string, closeHold func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/elections/leader/hold?token=%d", s.base, token), nil)
	resp, err := s.http.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("hold: %v %v", resp, err)
	}
	out := make(chan string, 1000)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		for scan := bufio.NewScanner(resp.Body); scan.Scan(); {
			if name, ok := strings.CutPrefix(scan.Text(), "event: "); ok && name != "beat" {
				out <- name
			}
		}
	}()
	return out, cancel
}

func TestRealHandover(t *testing.T) {
	agent := consultest.Start(t)
	a, b := newSidecar(t, agent, realConfig("a"), ""), newSidecar(t, agent, realConfig("b"), "")
	var resign, transfer, death []time.Duration
	last := uint64(0)
	round := func(times *[]time.Duration, end func(token uint64, closeHold func())) {
		t.Helper()
		g := a.become()
		events, closeHold := a.hold(g.Token)
		defer closeHold()
		if first := <-events; first != "grant" || g.Token <= last {
			t.Fatalf("first event %s, token %d after %d", first, g.Token, last)
		}
		next := make(chan Grant, 1)
		go func() { next <- b.become() }()
		await(t, "both are in the race", func() bool { return len(a.el.feed.view("leader").Candidates) == 2 })
		start := time.Now()
		end(g.Token, closeHold)
		ng := <-next
		*times = append(*times, time.Since(start))
		if ng.Token <= g.Token {
			t.Fatalf("token %d after %d", ng.Token, g.Token)
		}
		last = ng.Token
		b.do(http.MethodPost, "leader/resign", fmt.Sprintf(`{"token":%d}`, ng.Token), nil)
	}
	for range 15 {
		round(&resign, func(token uint64, _ func()) {
			a.do(http.MethodPost, "leader/resign", fmt.Sprintf(`{"token":%d}`, token), nil)
		})
		round(&transfer, func(token uint64, _ func()) {
			a.do(http.MethodPost, "leader/resign", fmt.Sprintf(`{"token":%d,"to":"b"}`, token), nil)
		})
		round(&death, func(_ uint64, closeHold func()) { closeHold() })
	}
	for name, times := range map[string][]time.Duration{"resign": resign, "transfer": transfer, "death": death} {
		slices.Sort(times)
		t.Logf("%s: p50 %s, max %s", name, times[len(times)/2], times[len(times)-1])
		if p50 := times[len(times)/2]; p50 > 10*time.Second {
			t.Errorf("%s took %s: the lock was not handed over", name, p50)
		}
	}
}

// The agent stops answering without closing anything, as behind a silent partition. The leader stops in time; when the agent
// answers again within the session's life, the same leadership resumes.
func TestRealAgentHangs(t *testing.T) {
	agent := consultest.Start(t, `session_ttl_min = "30s"`) // the session lives for a minute, however slow this machine is
	cfg := realConfig("a")
	cfg.Lease = 2 * time.Second
	a := newSidecar(t, agent, cfg, "")
	g := a.become()
	events, closeHold := a.hold(g.Token)
	defer closeHold()
	if err := agent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := clock.Boot().Now()
	await(t, "the leader is suspended", func() bool { return a.do(http.MethodGet, "leader/role", "", nil) != http.StatusOK })
	if deadline := a.el.feed.view("leader").Deadline; deadline > stopped.Add(cfg.Lease) {
		t.Errorf("led on for %s", deadline.Sub(stopped))
	}
	if err := agent.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var got []string
	timeout := time.After(50 * time.Second)
	for !slices.Contains(got, "resumed") && !slices.Contains(got, "lost") {
		select {
		case e := <-events:
			got = append(got, e)
		case <-timeout:
			t.Fatalf("events %v", got)
		}
	}
	if !slices.Equal(got, []string{"grant", "suspended", "resumed"}) {
		t.Errorf("events %v", got)
	}
	if v := a.el.feed.view("leader"); v.Token != g.Token {
		t.Errorf("token %d, was %d", v.Token, g.Token)
	}
}

// A wrapped command is dead before the lease ends, and started anew with another token.
func TestRealWrapper(t *testing.T) {
	agent := consultest.Start(t)
	cfg := realConfig("a")
	cfg.Lease = 2 * time.Second
	s := newSidecar(t, agent, cfg, "")
	dir := t.TempDir()
	script := `echo $RETINUE_TOKEN >> tokens; trap 'touch asked' TERM; while :; do touch alive-$RETINUE_TOKEN; sleep 0.01; done`
	w := &Wrapper{Elector: s.el, Election: "leader", ID: "run", Grace: 200 * time.Millisecond, Command: []string{"sh", "-c", "cd " + dir + "; " + script}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := w.Run(ctx); done <- err }()
	runs := func() (tokens []string) {
		if exists(dir + "/tokens") {
			tokens = lines(t, dir+"/tokens")
		}
		return tokens
	}
	await(t, "the command starts", func() bool { return len(runs()) > 0 && exists(dir+"/alive-"+runs()[0]) })
	late := lateness(t)
	if err := agent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	deadline := s.el.feed.view("leader").Deadline
	await(t, "the lease ends", func() bool {
		deadline = max(deadline, s.el.feed.view("leader").Deadline)
		return clock.Boot().Now() >= deadline
	})
	ended := time.Now().Add(deadline.Sub(clock.Boot().Now()))
	if err := agent.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await(t, "the command starts again", func() bool { return len(runs()) >= 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	tokens := runs()
	first, err1 := strconv.ParseUint(tokens[0], 10, 64)
	second, err2 := strconv.ParseUint(tokens[1], 10, 64)
	if err1 != nil || err2 != nil || first >= second {
		t.Errorf("tokens %v", tokens)
	}
	last, err := os.Stat(dir + "/alive-" + tokens[0])
	if err != nil {
		t.Fatal(err)
	}
	// Who was woken late kills late: a margin of 100 ms is for that, and a machine that is busier than that is not what is tested.
	if over := last.ModTime().Sub(ended); over > max(0, late()-killMargin) {
		t.Errorf("the command outlived the lease by %s, on a machine that wakes up to %s late", over, late())
	}
	if !exists(dir + "/asked") {
		t.Error("the command was not asked to end first")
	}
}

// A thousand elections ride on one session; when their elector dies another takes them all.
func TestRealThousandElections(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: a thousand elections are slow (-short)")
	}
	agent := consultest.Start(t)
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("shard-%d", i))
	}
	cfg := realConfig("a", names...)
	cfg.Revocation = Fast
	a := newSidecar(t, agent, cfg, "")
	cfg.ID = "b"
	b := newSidecar(t, agent, cfg, "")
	campaign := func(s *sidecar) {
		for _, name := range names {
			if r, err := s.el.ask(t.Context(), evCampaign{election: name, id: "app", lease: time.Minute}); err != nil || r.refusal != nil {
				t.Fatal(err, r.refusal)
			}
		}
	}
	leads := func(s *sidecar) (n int) {
		for _, name := range names {
			if s.el.feed.view(name).Role(s.el.clock.Now()) == Leader {
				n++
			}
		}
		return n
	}
	start := time.Now()
	campaign(a)
	await(t, "a leads all", func() bool { return leads(a) == len(names) })
	t.Logf("%d elections won in %s", len(names), time.Since(start))
	campaign(b)
	await(t, "b is in the race", func() bool { return len(b.el.feed.info.Load().Electors) == 2 })
	client, err := api.NewClient(&api.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	session := a.el.feed.info.Load().Session
	a.kill()
	if _, err := client.Session().Destroy(session, nil); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	await(t, "b leads all", func() bool { return leads(b) == len(names) })
	t.Logf("%d elections taken over %s after the session ended", len(names), time.Since(start))
}

// A token without key:write is told to people: in the answer, and once in the log.
func TestRealTokenLacksKeyWrite(t *testing.T) {
	agent := consultest.Start(t, `acl { enabled = true  default_policy = "deny"  tokens { initial_management = "root"  agent = "root" } }`)
	client, err := api.NewClient(&api.Config{Address: agent.Addr, Token: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := client.ACL().PolicyCreate(&api.ACLPolicy{Name: "read", Rules: `key_prefix "" { policy = "read" } session "test" { policy = "write" }`}, nil); err != nil {
		t.Fatal(err)
	}
	token, _, err := client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{Name: "read"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	s := newSidecarLog(t, agent, realConfig("a"), token.SecretID, hclog.New(&hclog.LoggerOptions{Output: &log}))
	var out Refusal
	await(t, "the answer says that Consul refuses it", func() bool {
		return s.do(http.MethodPost, "leader/become", `{"wait_ms":500}`, &out) == http.StatusServiceUnavailable && out.Reason == string(ReasonStoreError)
	})
	if text := log.String(); strings.Count(text, "lacks permission 'key:write'") != 1 || strings.Contains(text, token.SecretID) {
		t.Errorf("log:\n%s", text)
	}
}

// A token that Consul does not know is told as that, not as silence.
func TestRealTokenUnknown(t *testing.T) {
	agent := consultest.Start(t, `acl { enabled = true  default_policy = "deny"  tokens { initial_management = "root"  agent = "root" } }`)
	s := newSidecar(t, agent, realConfig("a"), "5b5c6c2e-0000-0000-0000-000000000000")
	var out Refusal
	await(t, "the answer says that the token is refused", func() bool {
		return s.do(http.MethodPost, "leader/become", `{"wait_ms":100}`, &out) == http.StatusServiceUnavailable && out.Reason == "token_refused"
	})
}

// With ACLs on and nothing but the keys allowed, leadership works without the catalog, and says so.
func TestRealDegradesToKV(t *testing.T) {
	agent := consultest.Start(t, `acl { enabled = true  default_policy = "deny"  tokens { initial_management = "root"  agent = "root" } }`)
	client, err := api.NewClient(&api.Config{Address: agent.Addr, Token: "root"})
	if err != nil {
		t.Fatal(err)
	}
	token := func(name, rules string) string {
		t.Helper()
		if _, _, err := client.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil); err != nil {
			t.Fatal(err)
		}
		tok, _, err := client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{Name: name}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return tok.SecretID
	}
	for _, c := range []struct {
		name, rules string
		catalog     bool
	}{
		{"whole", Policy("app"), true},
		{"keys", `key_prefix "retinue/elections/app/" { policy = "write" } session "test" { policy = "write" }`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSidecar(t, agent, realConfig(c.name), token(c.name, c.rules))
			g := s.become()
			info := s.el.feed.info.Load()
			if info.Catalog != c.catalog || (info.Warning == "") != c.catalog || (info.Profile == KVOnly) == c.catalog {
				t.Errorf("catalog %v, warning %q", info.Catalog, info.Warning)
			}
			if status := s.do(http.MethodPost, "leader/verify", fmt.Sprintf(`{"token":%d}`, g.Token), nil); status != http.StatusOK {
				t.Errorf("verify: %d", status)
			}
			if status := s.do(http.MethodPost, "leader/resign", fmt.Sprintf(`{"token":%d}`, g.Token), nil); status != http.StatusOK {
				t.Errorf("resign: %d", status)
			}
			s.stop()
			<-s.el.ended
		})
	}
}
