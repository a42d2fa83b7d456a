package electorclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Client speaks to one elector. It is safe for concurrent use; set its fields before the first call.
type Client struct {
	// Name begins the candidate id under which others see this process as leader; a random part follows.
	// The default is $NOMAD_TASK_NAME, or else the program's name.
	Name string
	// Logger is told of changes and of an elector that does not answer. Nil is silence.
	Logger *slog.Logger

	http *http.Client
	base string
	now  func() time.Duration // the boot clock
}

// The errors that a caller may want to tell apart, with errors.Is.
var (
	// ErrLost: leadership ended before the function did, because it was taken away or could not be confirmed in time.
	ErrLost = errors.New("leadership lost")
	// ErrStepDown: an operator, or an elector that shuts down, asked this process to give leadership up.
	ErrStepDown = errors.New("asked to step down")
	// ErrVacant: nobody leads at the moment.
	ErrVacant = errors.New("nobody leads")
	// ErrUnknownElection: the elector was not configured with this election.
	ErrUnknownElection = errors.New("unknown election")
)

// StatusError is an answer of the elector other than success.
type StatusError struct {
	Status  int    `json:"-"`
	Code    string `json:"error"`   // such as "lost", "held", "suspended", "unavailable"
	Reason  string `json:"reason"`  // such as "revoked", "superseded", "app_lease_expired"
	Message string `json:"message"` // for people
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("the elector answered %d %s", e.Status, e.Code)
	if e.Reason != "" {
		text += " (" + e.Reason + ")"
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// Is makes the sentinels of this package match the answers they stand for.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrLost:
		return e.Status == http.StatusConflict && (e.Code == "lost" || e.Code == "stale")
	case ErrVacant:
		return e.Status == http.StatusNotFound && e.Code == "vacant"
	case ErrUnknownElection:
		return e.Status == http.StatusNotFound && e.Code == "unknown_election"
	}
	return false
}

// FromEnv returns a client of the elector of this task group: at $RETINUE_ELECTOR_ADDR, or at the socket in $NOMAD_ALLOC_DIR.
func FromEnv() (*Client, error) {
	addr := os.Getenv("RETINUE_ELECTOR_ADDR")
	if dir := os.Getenv("NOMAD_ALLOC_DIR"); addr == "" && dir != "" {
		addr = "unix://" + dir + "/tmp/elector.sock"
	}
	if addr == "" {
		return nil, errors.New("find the elector: RETINUE_ELECTOR_ADDR is not set")
	}
	return New(addr)
}

// New returns a client of the elector at addr: unix:///path/to/socket or http://127.0.0.1:port.
func New(addr string) (*Client, error) {
	u, err := url.Parse(addr)
	if err != nil {
		return nil, fmt.Errorf("elector address: %w", err)
	}
	c := &Client{Name: os.Getenv("NOMAD_TASK_NAME"), now: bootTime}
	if c.Name == "" {
		c.Name = filepath.Base(os.Args[0])
	}
	transport := &http.Transport{}
	switch {
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, u.Path) }
		c.base = "http://localhost"
	case u.Scheme == "http" && u.Host != "":
		c.base = strings.TrimSuffix(addr, "/")
	default:
		return nil, fmt.Errorf("elector address %q: want unix:///path/to/socket or http://127.0.0.1:port", addr)
	}
	c.http = &http.Client{Transport: transport}
	return c, nil
}

// maxSocketPath is what fits into a socket address; paths below an alloc dir can be longer.
const maxSocketPath = 107

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	return new(net.Dialer).DialContext(ctx, "unix", path)
}

// request sends one request about an election. The caller closes the answer's body.
func (c *Client) request(ctx context.Context, method, election, verb string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/v1/elections/"+election+verb, reader)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		refused := &StatusError{Status: resp.StatusCode}
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if json.Unmarshal(text, refused) != nil || refused.Code == "" {
			refused.Message = http.StatusText(resp.StatusCode)
		}
		return nil, refused
	}
	return resp, nil
}

// call sends one request and decodes its answer into out, unless that is nil.
func (c *Client) call(ctx context.Context, method, election, verb string, body, out any) error {
	resp, err := c.request(ctx, method, election, verb, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the elector's answer: %w", err)
	}
	return nil
}

// hopeless says that asking again will not help: the request itself is wrong.
func hopeless(err error) bool {
	var refused *StatusError
	if !errors.As(err, &refused) {
		return false
	}
	return refused.Status >= 400 && refused.Status < 500 && refused.Status != http.StatusConflict && refused.Status != http.StatusTooManyRequests
}

// patience paces the attempts to reach an elector that does not answer, which at the start of a task group is usual.
type patience struct{ pause time.Duration }

// wait waits a little longer each time, at most a second. It returns false when ctx ends.
func (p *patience) wait(ctx context.Context) bool {
	p.pause = min(max(2*p.pause, 50*time.Millisecond), time.Second)
	return sleep(ctx, p.pause)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *Client) log() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}
