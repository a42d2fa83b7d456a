// Command app is the application of the benchmarks, as small as one gets: it
// leads through an elector, with plain HTTP and the hold tether, or it is the
// child of a wrapper such as `consul lock`, which leads from its first to its
// last instruction. It uses nothing of the project but the elector's contract.
package main

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
	"strings"
	"sync"

	"retinue/tests/bench/wire"
)

func main() {
	started := wire.Now()
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: app child | app elector unix:///path ELECTION...")
		os.Exit(2)
	}
	link, err := wire.Dial()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	switch {
	case os.Args[1] == "child":
		runChild(link, started)
	case len(os.Args) > 3:
		runElector(link, os.Args[2], os.Args[3:])
	}
}

// runChild leads as long as it lives.
func runChild(link *wire.Link, started int64) {
	link.Send(wire.Event{Name: wire.Elected, At: started})
	for c := range link.Commands() {
		if c.Name == wire.Resign {
			link.Send(wire.Event{Name: wire.Resigning, At: wire.Now()})
			return
		}
	}
}

// candidate is the application's side of one election.
type candidate struct {
	link     *wire.Link
	http     *http.Client
	election string
	commands chan wire.Command
}

func runElector(link *wire.Link, addr string, elections []string) {
	socket := strings.TrimPrefix(addr, "unix://")
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: len(elections) + 4,
	}}
	var all []*candidate
	var running sync.WaitGroup
	for _, e := range elections {
		c := &candidate{link: link, http: client, election: e, commands: make(chan wire.Command, 1)}
		all = append(all, c)
		running.Go(c.run)
	}
	link.Send(wire.Event{Name: wire.Hello, At: wire.Now()})
	for cmd := range link.Commands() {
		for _, c := range all {
			c.commands <- cmd
		}
	}
	os.Exit(0) // the runner is gone; so are all tethers, with this process
}

func (c *candidate) run() {
	for cmd := range c.commands {
		if cmd.Name != wire.Campaign {
			continue
		}
		if err := c.lead(); err != nil {
			c.link.Fail(fmt.Errorf("%s: %w", c.election, err))
		}
	}
}

// lead campaigns, leads with a tether until told to resign, and resigns.
func (c *candidate) lead() error {
	c.link.Send(wire.Event{Name: wire.Campaigning, Election: c.election, At: wire.Now()})
	var grant struct {
		Token uint64 `json:"token"`
	}
	if err := c.post("become", map[string]any{"id": "app"}, &grant); err != nil {
		return err
	}
	c.link.Send(wire.Event{Name: wire.Elected, Election: c.election, At: wire.Now(), Token: grant.Token})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lost := make(chan error, 1)
	go func() { lost <- c.hold(ctx, grant.Token) }()
	for {
		select {
		case cmd := <-c.commands:
			if cmd.Name == wire.Resign {
				return c.resign(grant.Token, cmd.To)
			}
		case err := <-lost:
			return err
		}
	}
}

func (c *candidate) resign(token uint64, to string) error {
	var out struct {
		Index uint64 `json:"released_index"`
	}
	began := wire.Now()
	err := c.post("resign", map[string]any{"token": token, "to": to}, &out)
	c.link.Send(wire.Event{Name: wire.Resigning, Election: c.election, At: began})
	if err == nil {
		c.link.Send(wire.Event{Name: wire.Released, Election: c.election, At: wire.Now(), Index: out.Index})
	}
	return err
}

// hold keeps the tether until ctx ends or leadership does.
func (c *candidate) hold(ctx context.Context, token uint64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://elector/v1/elections/%s/hold?token=%d", c.election, token), nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
	}
	return fmt.Errorf("the tether ended (%s)", resp.Status)
}

func (c *candidate) post(verb string, body, out any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp, err := c.http.Post("http://elector/v1/elections/"+c.election+"/"+verb, "application/json", bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", verb, resp.Status, answer)
	}
	return json.Unmarshal(answer, out)
}
