package gather

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"retinue/internal/hint"
	"retinue/internal/listen"
)

// Client speaks to a root's admin API, for the operator's verbs.
type Client struct {
	http *http.Client
	base string
	addr listen.Addr
}

// NewClient returns a client of the admin API at addr (unix:///path or http://127.0.0.1:port).
func NewClient(addr string) (*Client, error) {
	a, err := listen.Parse(addr)
	if err != nil {
		return nil, err
	}
	c, base := listen.Client(a)
	return &Client{http: c, base: base, addr: a}, nil
}

// State asks for the root with its leaves.
func (c *Client) State(ctx context.Context) (StateView, error) {
	var v StateView
	return v, c.get(ctx, "/v1/state", &v)
}

// Requests asks for recent and slow requests, without their calls.
func (c *Client) Requests(ctx context.Context) ([]Timeline, error) {
	var list []Timeline
	return list, c.get(ctx, "/v1/requests", &list)
}

// Request asks for one request's timeline.
func (c *Client) Request(ctx context.Context, id string) (Timeline, error) {
	var t Timeline
	return t, c.get(ctx, "/v1/requests/"+url.PathEscape(id), &t)
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return hint.Wrap(fmt.Errorf("reach the root's admin API at %s: %w", c.addr, err), "is `retinue gather` running there? --admin names its address")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var p Problem
		if json.NewDecoder(resp.Body).Decode(&p) == nil && p.Detail != "" {
			return fmt.Errorf("%s: %s", resp.Status, p.Detail)
		}
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
