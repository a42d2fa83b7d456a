package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"retinue/internal/toolchain"
	"retinue/tests/brokers"
)

// consul is the Consul server at which the coordinators agree on who takes which partition. It keeps its data over kills.
type consul struct {
	spawn   *brokers.Spawner
	command brokers.Command
	address string
	proc    *brokers.Process
}

// freePorts finds ports that nobody uses.
func freePorts(n int) ([]any, error) {
	var ports []any
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all are different
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// startConsul starts the server.
func startConsul(ctx context.Context, spawn *brokers.Spawner, dir string) (*consul, error) {
	path := os.Getenv("RETINUE_TEST_CONSUL")
	if path == "" {
		found, err := toolchain.Ensure(ctx, toolchain.Consul, nil)
		if err != nil {
			return nil, err
		}
		path = found.Path
	}
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`{"server": true, "bootstrap_expect": 1, "data_dir": %q, "bind_addr": "127.0.0.1", "disable_update_check": true, "ui_config": {"enabled": false},
		"ports": {"http": %d, "server": %d, "serf_lan": %d, "serf_wan": -1, "grpc": -1, "grpc_tls": -1, "dns": %d}, "performance": {"raft_multiplier": 1}}`,
		append([]any{filepath.Join(dir, "data")}, ports...)...)
	file := filepath.Join(dir, "consul.json")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	c := &consul{spawn: spawn, address: fmt.Sprintf("127.0.0.1:%d", ports[0]),
		command: brokers.Command{Name: "consul", Path: path, Args: []string{"agent", "-config-file", file}, Dir: dir, Log: filepath.Join(dir, "consul.log")}}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return c, c.up(ctx)
}

// up starts the server and waits until it can write.
func (c *consul) up(ctx context.Context) (err error) {
	for time.Sleep(0); ; time.Sleep(50 * time.Millisecond) { // a port that was free may have been taken by something that is about to end
		if c.proc == nil || !c.proc.Running() {
			if c.proc, err = c.spawn.Start(c.command); err != nil {
				return err
			}
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+c.address+"/v1/kv/campaign", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), errors.New(c.proc.Tail()))
		}
	}
}

func (w *world) breakConsul(ctx context.Context, f fault) error {
	end := w.ledger.fault(f.class, "")
	defer end()
	if f.class == consulStop {
		w.consul.proc.Signal(syscall.SIGSTOP)
		time.Sleep(f.hold)
		w.consul.proc.Signal(syscall.SIGCONT)
		return nil
	}
	w.consul.proc.Kill()
	time.Sleep(f.hold)
	return w.consul.up(ctx)
}
