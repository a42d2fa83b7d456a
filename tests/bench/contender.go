package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"retinue/tests/bench/wire"
)

// contender is one way to elect a leader, with one configuration.
type contender struct {
	name   string
	config string // what was set, for the reader
	// start starts a replica that campaigns.
	start func(ctx context.Context, p *pair, node int) (*member, error)
	// waits returns when the standby is known to wait for leadership.
	waits func(ctx context.Context, p *pair, standby *member) error
	// again makes a replica campaign that has resigned. Wrappers end with their child: they are started again.
	again func(ctx context.Context, m *member) error
	key   string        // Consul key of the lock below the pair's name; "" when it is not in Consul
	phase time.Duration // an action comes at a random time within it
	// killed says what an abrupt end of the whole replica kills, for the reader.
	killed string
}

// member is one replica.
type member struct {
	node int
	port *port
	main *process // elector, wrapper, or the application itself when a library elects it
	app  *process // the application beside an elector; nil otherwise
	sock string   // the elector's socket
	pid  int      // of the process that leads, once it does
}

// stop ends a replica without ceremony.
func (m *member) stop() {
	if m == nil {
		return
	}
	m.port.close()
	m.app.kill()
	m.main.kill()
}

// elector is retinue's own.
func elector(lease time.Duration, revocation string) *contender {
	return &contender{
		name:   "retinue elector",
		config: fmt.Sprintf("lease %s, revocation %s", lease, revocation),
		killed: "the elector",
		key:    "leader",
		phase:  lease / 3,
		start: func(ctx context.Context, p *pair, node int) (*member, error) {
			m := &member{node: node}
			if err := p.startElector(ctx, m, lease, revocation, "leader"); err != nil {
				return nil, err
			}
			return m, p.startApp(ctx, m, "leader")
		},
		waits: func(ctx context.Context, p *pair, standby *member) error {
			return eventually(ctx, 20*time.Second, p.name+": the standby is known to the leader", func(ctx context.Context) error {
				var state struct {
					Candidates []string `json:"candidates"`
					Waiting    []string `json:"waiting"`
					Blocked    string   `json:"blocked"`
				}
				for _, m := range p.members {
					if err := m.get(ctx, "/v1/elections/leader", &state); err != nil {
						return err
					}
					if len(state.Candidates) < 2 {
						return fmt.Errorf("candidates: %v", state.Candidates)
					}
				}
				return nil
			})
		},
		again: campaignAgain,
	}
}

func campaignAgain(ctx context.Context, m *member) error {
	return m.port.tell(ctx, wire.Command{Name: wire.Campaign})
}

// startElector starts the sidecar of a member.
func (p *pair) startElector(ctx context.Context, m *member, lease time.Duration, revocation string, elections ...string) (err error) {
	r := p.rig
	name := fmt.Sprintf("%s-%c", p.name, 'a'+m.node)
	m.sock = filepath.Join(r.dir, name+".sock")
	os.Remove(m.sock) // a killed elector leaves its socket
	args := []string{"elector", "--app", p.name, "--id", name, "--lease", lease.String(), "--revocation", revocation, "--listen", "unix://" + m.sock}
	for _, e := range elections {
		args = append(args, "--election", e)
	}
	env := []string{"CONSUL_HTTP_ADDR=" + r.clients[m.node].http(), "NOMAD_ALLOC_DIR=" + r.dir}
	if m.main, err = r.spawn.start(name+"-elector", env, r.retinue, args...); err != nil {
		return err
	}
	err = eventually(ctx, 20*time.Second, name+" is ready", func(ctx context.Context) error {
		return m.get(ctx, "/readyz", nil)
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, m.main.tail())
	}
	return nil
}

// startApp starts the application of a member, which campaigns.
func (p *pair) startApp(ctx context.Context, m *member, elections ...string) (err error) {
	name := fmt.Sprintf("%s-%c", p.name, 'a'+m.node)
	m.port = p.rig.hub.open(name)
	args := append([]string{"elector", "unix://" + m.sock}, elections...)
	if m.app, err = p.rig.spawn.start(name+"-app", m.port.env(), p.rig.app, args...); err != nil {
		return err
	}
	m.pid = m.app.pid()
	return campaignAgain(ctx, m)
}

// get asks the elector of a member.
func (m *member) get(ctx context.Context, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://elector"+path, nil)
	if err != nil {
		return err
	}
	client := unixClient(m.sock)
	defer client.CloseIdleConnections()
	return doWith(client, req, out)
}

func unixClient(sock string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}, MaxIdleConnsPerHost: 4}}
}

// consulLock is the real `consul lock`, which has no settings for its times.
func consulLock() *contender {
	return &contender{
		name:   "consul lock",
		config: "as it comes: TTL 15s, lock-delay 15s",
		killed: "consul lock",
		key:    ".lock",
		phase:  time.Second,
		start: func(ctx context.Context, p *pair, node int) (*member, error) {
			r := p.rig
			m := &member{node: node, port: r.hub.open(fmt.Sprintf("%s-%c", p.name, 'a'+node))}
			var err error
			m.main, err = r.spawn.start(m.port.name, m.port.env(), r.consul, "lock", "-http-addr", "http://"+r.clients[node].http(),
				"-name", m.port.name, "-shell=false", "bench/"+p.name, r.app, "child")
			return m, err
		},
		waits: func(ctx context.Context, p *pair, standby *member) error {
			err := eventually(ctx, 20*time.Second, p.name+": the standby has a session", func(ctx context.Context) error {
				var sessions []struct{ Name string }
				if err := getJSON(ctx, "http://"+p.rig.servers[0].http()+"/v1/session/list", &sessions); err != nil {
					return err
				}
				for _, s := range sessions {
					if s.Name == standby.port.name {
						return nil
					}
				}
				return fmt.Errorf("none among %d", len(sessions))
			})
			if err != nil {
				return err
			}
			return pause(ctx, 100*time.Millisecond) // its next request is the blocking query
		},
	}
}

// lockOptions are the times of a consul/api Lock; zero values are its defaults.
type lockOptions struct {
	ttl   string
	delay time.Duration
}

// apiLock is consul/api's Lock, in a process of its own.
func apiLock(config string, o lockOptions) *contender {
	c := &contender{name: "consul/api Lock", config: config, killed: "the application, which is the client", key: ".lock", phase: 500 * time.Millisecond}
	c.start = func(ctx context.Context, p *pair, node int) (*member, error) {
		r := p.rig
		m := &member{node: node, port: r.hub.open(fmt.Sprintf("%s-%c", p.name, 'a'+node))}
		var err error
		m.main, err = r.spawn.start(m.port.name, m.port.env(), r.self, lockRole, r.clients[node].http(), "bench/"+p.name+"/.lock", o.ttl, o.delay.String())
		if err != nil {
			return nil, err
		}
		m.pid = m.main.pid()
		return m, campaignAgain(ctx, m)
	}
	c.waits, c.again = libraryWaits, campaignAgain
	return c
}

// libraryWaits: a library cannot be asked. It has said that it asks for the lock, and gets time to.
func libraryWaits(ctx context.Context, _ *pair, standby *member) error {
	if _, err := standby.port.await(ctx, wire.Campaigning); err != nil {
		return err
	}
	return pause(ctx, 100*time.Millisecond)
}

// etcdElection is etcd's concurrency.Election, in a process of its own.
func etcdElection(config string, ttl int) *contender {
	c := &contender{name: "etcd Election", config: config, killed: "the application, which is the client", phase: time.Duration(ttl) * time.Second / 3}
	c.start = func(ctx context.Context, p *pair, node int) (*member, error) {
		return p.startEtcd(ctx, node, ttl, "leader")
	}
	c.waits, c.again = libraryWaits, campaignAgain
	return c
}

func (p *pair) startEtcd(ctx context.Context, node, ttl int, elections ...string) (*member, error) {
	r := p.rig
	m := &member{node: node, port: r.hub.open(fmt.Sprintf("%s-%c", p.name, 'a'+node))}
	names := make([]string, len(elections))
	for i, e := range elections {
		names[i] = p.name + "/" + e
	}
	var err error
	m.main, err = r.spawn.start(m.port.name, m.port.env(), r.etcd, "candidate", "-client", strings.Join(r.etcdURLs, ","), "-ttl", strconv.Itoa(ttl), "-elections", strings.Join(names, ","))
	if err != nil {
		return nil, err
	}
	m.pid = m.main.pid()
	return m, campaignAgain(ctx, m)
}

// varLock is the real `nomad var lock`.
func varLock(config string, phase time.Duration, options ...string) *contender {
	return &contender{
		name:   "Nomad var lock",
		config: config,
		killed: "nomad var lock",
		phase:  phase,
		start: func(ctx context.Context, p *pair, node int) (*member, error) {
			r := p.rig
			m := &member{node: node, port: r.hub.open(fmt.Sprintf("%s-%c", p.name, 'a'+node))}
			args := append([]string{"var", "lock", "-verbose", "-address", r.nomadAddr, "-shell=false"}, options...)
			var err error
			m.main, err = r.spawn.start(m.port.name, m.port.env(), r.nomad, append(args, "bench/"+p.name, r.app, "child")...)
			return m, err
		},
		waits: func(ctx context.Context, p *pair, standby *member) error {
			err := eventually(ctx, 20*time.Second, p.name+": the standby tries", func(context.Context) error {
				if log, err := os.ReadFile(standby.main.log); err != nil || !strings.Contains(string(log), "Attempting to acquire lock") {
					return fmt.Errorf("it has not said so (%v)", err)
				}
				return nil
			})
			if err != nil {
				return err
			}
			return pause(ctx, 300*time.Millisecond) // it sleeps up to 100 ms before its first attempt
		},
	}
}

// consulKey reads a lock's key with a blocking query, on a server.
func consulKey(server, key string, index uint64) string {
	return "http://" + server + "/v1/kv/" + (&url.URL{Path: key}).EscapedPath() + "?index=" + strconv.FormatUint(index, 10) + "&wait=10s"
}
