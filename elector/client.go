package elector

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"retinue/internal/hint"
	"retinue/internal/listen"
)

// Client speaks to a local elector, for the operator's verbs. Applications need no such thing: HTTP is enough.
type Client struct {
	http *http.Client
	base string
	addr listen.Addr
}

// NewClient returns a client of the elector at addr (unix:///path or http://127.0.0.1:port).
func NewClient(addr string) (*Client, error) {
	a, err := listen.Parse(addr)
	if err != nil {
		return nil, err
	}
	c, base := listen.Client(a)
	return &Client{http: c, base: base, addr: a}, nil
}

// Status is the elector with all its elections.
type Status struct {
	Info
	Elections []State `json:"elections"`
}

// Status asks for everything the elector knows.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, http.MethodGet, "/v1/elections", nil, &s)
}

// Stepdown asks the application that leads to resign, and waits until its leadership has ended. to names the elector that shall
// follow; "" leaves it open. It returns why the leadership ended.
func (c *Client) Stepdown(ctx context.Context, election, to string) (reason string, err error) {
	var out struct {
		Ended string `json:"ended"`
	}
	err = c.do(ctx, http.MethodPost, "/v1/elections/"+election+"/stepdown", map[string]string{"to": to}, &out)
	return out.Ended, err
}

func (c *Client) do(ctx context.Context, method, path string, body, out any) error {
	var reader io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return hint.Wrap(fmt.Errorf("reach the elector at %s: %w", c.addr, err), "is `retinue elector` running there? --addr or RETINUE_ELECTOR_ADDR says where to look")
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the elector's answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		var ref Refusal
		if json.Unmarshal(data, &ref) != nil || ref.Error == "" {
			return fmt.Errorf("the elector answered %s", resp.Status)
		}
		return ref.err()
	}
	return json.Unmarshal(data, out)
}

// RefusedError is the elector's "no".
type RefusedError struct{ Refusal }

func (e *RefusedError) Error() string {
	text := e.Refusal.Error
	if e.Reason != "" {
		text += " (" + e.Reason + ")"
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

func (r Refusal) err() error { return &RefusedError{r} }
