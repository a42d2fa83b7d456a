package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync"

	"retinue/tests/bench/wire"
)

// hub is the runner's end of all wires.
type hub struct {
	socket   string
	listener net.Listener

	mu    sync.Mutex
	next  int
	ports map[string]*port
}

// port is the wire to one process, by name. It exists before the process does.
type port struct {
	hub    *hub
	name   string
	events chan wire.Event

	mu   sync.Mutex
	conn net.Conn
	up   chan struct{} // closed when the process has connected
}

func newHub(dir string) (*hub, error) {
	h := &hub{socket: filepath.Join(dir, "wire"), ports: map[string]*port{}}
	var err error
	if h.listener, err = net.Listen("unix", h.socket); err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := h.listener.Accept()
			if err != nil {
				return
			}
			go h.serve(conn)
		}
	}()
	return h, nil
}

func (h *hub) serve(conn net.Conn) {
	defer conn.Close()
	in := json.NewDecoder(bufio.NewReader(conn))
	for {
		var e wire.Event
		if in.Decode(&e) != nil {
			return
		}
		h.mu.Lock()
		p := h.ports[e.From]
		h.mu.Unlock()
		if p == nil {
			return // it was closed: the process has to end
		}
		p.attach(conn)
		p.events <- e
	}
}

// open makes a port for a process that is about to start.
func (h *hub) open(name string) *port {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	p := &port{hub: h, name: fmt.Sprintf("%s.%d", name, h.next), events: make(chan wire.Event, 8192), up: make(chan struct{})}
	h.ports[p.name] = p
	return p
}

// close ends the wires, and with them the processes at their ends.
func (h *hub) close() {
	h.listener.Close()
	h.mu.Lock()
	ports := h.ports
	h.mu.Unlock()
	for _, p := range ports {
		p.close()
	}
}

// env is the environment by which a process finds its port.
func (p *port) env() []string {
	return []string{wire.EnvSocket + "=" + p.hub.socket, wire.EnvName + "=" + p.name}
}

func (p *port) attach(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		p.conn = conn
		close(p.up)
	}
}

// close cuts the wire: the process at the other end exits.
func (p *port) close() {
	if p == nil {
		return
	}
	p.hub.mu.Lock()
	delete(p.hub.ports, p.name)
	p.hub.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
}

// tell sends a command to the process.
func (p *port) tell(ctx context.Context, c wire.Command) error {
	select {
	case <-p.up:
	case <-ctx.Done():
		return fmt.Errorf("%s does not connect: %w", p.name, ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := json.NewEncoder(p.conn).Encode(c); err != nil {
		return fmt.Errorf("tell %s to %s: %w", p.name, c.Name, err)
	}
	return nil
}

// await returns the next event of a name. Others before it are dropped, but a failure is returned as such.
func (p *port) await(ctx context.Context, name string) (wire.Event, error) {
	for {
		select {
		case e := <-p.events:
			switch e.Name {
			case name:
				return e, nil
			case wire.Failed:
				return e, fmt.Errorf("%s: %s", p.name, e.Text)
			}
		case <-ctx.Done():
			return wire.Event{}, fmt.Errorf("%s is not %s: %w", p.name, name, ctx.Err())
		}
	}
}

// drain forgets what was reported so far.
func (p *port) drain() {
	for {
		select {
		case <-p.events:
		default:
			return
		}
	}
}
