package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"retinue/internal/hint"
	"retinue/internal/listen"
)

// Client speaks to a coordinator over its HTTP interface.
type Client struct {
	http *http.Client
	base string
	addr string
}

// NewClient returns a client of the coordinator at addr (unix:///path or http://127.0.0.1:PORT).
func NewClient(addr string) (*Client, error) {
	a, err := listen.Parse(addr)
	if err != nil {
		return nil, err
	}
	c := &Client{addr: addr}
	c.http, c.base = listen.Client(a)
	return c, nil
}

// StatusError is a refusal.
type StatusError struct {
	Status int
	Refusal
}

func (e *StatusError) Error() string { return e.Message }

// do sends a request and decodes the answer into out. A 409 with an item is an answer.
func (c *Client) do(ctx context.Context, method, path string, header http.Header, body []byte, out any) (int, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, hint.Wrap(fmt.Errorf("reach the coordinator: %w", err), "is one running at %s? give its --listen address with --addr", c.addr)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, fmt.Errorf("read the coordinator's answer: %w", err)
	}
	if resp.StatusCode >= 400 {
		refusal := &StatusError{Status: resp.StatusCode}
		if json.Unmarshal(data, &refusal.Refusal) != nil {
			refusal.Message = fmt.Sprintf("the coordinator answered %s", resp.Status)
		}
		if refusal.Refusal.Error != "" || resp.StatusCode != http.StatusConflict {
			return resp.StatusCode, refusal
		}
	}
	if err := json.Unmarshal(data, out); err != nil {
		return resp.StatusCode, fmt.Errorf("read the coordinator's answer: %w", err)
	}
	return resp.StatusCode, nil
}

func queuePath(queue, rest string) string { return "/v1/queues/" + url.PathEscape(queue) + rest }

// Queue names the coordinator's queue.
func (c *Client) Queue(ctx context.Context) (string, error) {
	var out Queues
	if _, err := c.do(ctx, http.MethodGet, "/v1/queues", nil, nil, &out); err != nil {
		return "", err
	}
	if len(out.Queues) == 0 {
		return "", fmt.Errorf("the coordinator at %s names no queue", c.addr)
	}
	return out.Queues[0], nil
}

// Put publishes lines.
func (c *Client) Put(ctx context.Context, queue string, lines []Line) (put Put, err error) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return put, err
		}
	}
	_, err = c.do(ctx, http.MethodPost, queuePath(queue, "/items"), http.Header{"Content-Type": {"application/x-ndjson"}}, body.Bytes(), &put)
	return put, err
}

// Item returns an item, when it has ended or the wait is over.
func (c *Client) Item(ctx context.Context, id string, wait time.Duration) (it Item, err error) {
	path := "/v1/items/" + escapeID(id)
	if wait > 0 {
		path += "?wait=" + wait.String()
	}
	_, err = c.do(ctx, http.MethodGet, path, nil, nil, &it)
	return it, err
}

// Cancel ends an item. Its state tells whether it had ended before in another way.
func (c *Client) Cancel(ctx context.Context, id string) (it Item, err error) {
	_, err = c.do(ctx, http.MethodDelete, "/v1/items/"+escapeID(id), nil, nil, &it)
	return it, err
}

// Items lists what is in hand at the coordinator.
func (c *Client) Items(ctx context.Context, queue string, limit int) ([]ItemView, error) {
	var out struct {
		Items []ItemView `json:"items"`
	}
	_, err := c.do(ctx, http.MethodGet, queuePath(queue, "/items?limit="+strconv.Itoa(limit)), nil, nil, &out)
	return out.Items, err
}

// Stats returns the stage as the coordinator sees it.
func (c *Client) Stats(ctx context.Context, queue string) (st Stats, err error) {
	_, err = c.do(ctx, http.MethodGet, queuePath(queue, "/stats"), nil, nil, &st)
	return st, err
}

// Schedules lists what is published at which times.
func (c *Client) Schedules(ctx context.Context, queue string) ([]ScheduleView, error) {
	var out Schedules
	_, err := c.do(ctx, http.MethodGet, queuePath(queue, "/schedules"), nil, nil, &out)
	return out.Schedules, err
}

// Groups lists the groups of items.
func (c *Client) Groups(ctx context.Context, queue string) ([]GroupView, error) {
	var out Groups
	_, err := c.do(ctx, http.MethodGet, queuePath(queue, "/groups"), nil, nil, &out)
	return out.Groups, err
}

// CloseGroup says how many parts a group has.
func (c *Client) CloseGroup(ctx context.Context, queue string, g GroupClose) (v GroupView, err error) {
	body, err := json.Marshal(g)
	if err != nil {
		return v, err
	}
	_, err = c.do(ctx, http.MethodPost, queuePath(queue, "/groups/close"), nil, body, &v)
	return v, err
}

// Steer sends pause, resume or drain, with a reason or a key.
func (c *Client) Steer(ctx context.Context, queue, verb string, query url.Values) (st Stats, err error) {
	_, err = c.do(ctx, http.MethodPost, queuePath(queue, ":"+verb)+"?"+query.Encode(), nil, nil, &st)
	return st, err
}

// DeadLetters lists dead letters; id "" means all, at most limit.
func (c *Client) DeadLetters(ctx context.Context, queue, id string, limit int) ([]DeadLetter, error) {
	var out struct {
		Dead []DeadLetter `json:"dead"`
	}
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if id != "" {
		query.Set("id", id)
	}
	_, err := c.do(ctx, http.MethodGet, queuePath(queue, "/dead?"+query.Encode()), nil, nil, &out)
	return out.Dead, err
}

// ChangeDead sends retry or purge.
func (c *Client) ChangeDead(ctx context.Context, queue, verb string, s Selection) (ch Changed, err error) {
	body, err := json.Marshal(s)
	if err != nil {
		return ch, err
	}
	_, err = c.do(ctx, http.MethodPost, queuePath(queue, "/dead/"+verb), nil, body, &ch)
	return ch, err
}

// escapeID keeps the slashes of an id.
func escapeID(id string) string {
	parts := strings.Split(id, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
