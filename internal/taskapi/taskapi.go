// Package taskapi speaks to Nomad as a task does: over the socket that Nomad
// puts into the task's secrets folder, with the task's own workload identity.
// No address of an agent and no static token is needed.
//
// It promises that the token is read anew for each request (Nomad renews it),
// that it never stands in an error, and that refusals come with what to do.
package taskapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"retinue/internal/hint"
	"retinue/internal/listen"
)

// Config says how to reach Nomad. The zero value means: as a task does.
type Config struct {
	// Addr is unix:///path or http://127.0.0.1:PORT. Default: $NOMAD_SECRETS_DIR/api.sock.
	Addr string
	// TokenFile has the token. Default: $NOMAD_SECRETS_DIR/nomad_token where it exists, else $NOMAD_TOKEN counts.
	TokenFile string
	// Namespace of the jobs. Default: $NOMAD_NAMESPACE.
	Namespace string
}

// Client sends requests to Nomad.
type Client struct {
	http      *http.Client
	base      string
	addr      string
	namespace string
	tokenFile string
	token     string
}

// New returns a client. It does not contact Nomad. getenv is os.Getenv.
func New(cfg Config, getenv func(string) string) (*Client, error) {
	secrets := getenv("NOMAD_SECRETS_DIR")
	if cfg.Addr == "" {
		if secrets == "" {
			return nil, hint.Wrap(errors.New("no way to Nomad"), "inside a task it is the socket in $NOMAD_SECRETS_DIR; elsewhere give --nomad http://127.0.0.1:4646")
		}
		cfg.Addr = "unix://" + filepath.Join(secrets, "api.sock")
	}
	if cfg.TokenFile == "" && secrets != "" {
		file := filepath.Join(secrets, "nomad_token")
		if _, err := os.Stat(file); err == nil {
			cfg.TokenFile = file
		}
	}
	if cfg.Namespace == "" {
		cfg.Namespace = getenv("NOMAD_NAMESPACE")
	}
	a, err := listen.Parse(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("the way to Nomad: %w", err)
	}
	c := &Client{addr: cfg.Addr, namespace: cfg.Namespace, tokenFile: cfg.TokenFile, token: getenv("NOMAD_TOKEN")}
	c.http, c.base = listen.Client(a)
	return c, nil
}

// StatusError is a refusal by Nomad.
type StatusError struct {
	Code int
	Body string // what Nomad said
}

func (e *StatusError) Error() string { return fmt.Sprintf("Nomad answered %d: %s", e.Code, e.Body) }

// Status returns Nomad's status code of an error, and what it said; 0 when Nomad did not answer.
func Status(err error) (int, string) {
	var s *StatusError
	if errors.As(err, &s) {
		return s.Code, s.Body
	}
	return 0, ""
}

// maxAnswer bounds an answer that is kept in memory.
const maxAnswer = 64 << 20

// Do sends a request, with in as JSON where it is not nil, and decodes the answer into out where that is not nil. It returns the
// answer's X-Nomad-Index header. An error of type *StatusError is Nomad's; any other means that nothing is known of the outcome.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, in, out any) (index string, err error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return "", err
		}
		body = bytes.NewReader(data)
	}
	if query == nil {
		query = url.Values{}
	}
	if c.namespace != "" {
		query.Set("namespace", c.namespace)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path+"?"+query.Encode(), body)
	if err != nil {
		return "", err
	}
	token, err := c.currentToken()
	if err != nil {
		return "", err
	}
	if token != "" {
		req.Header.Set("X-Nomad-Token", token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", hint.Wrap(fmt.Errorf("reach Nomad: %w", err), "is a Nomad agent behind %s? a task's socket is there while its agent runs", c.addr)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return "", fmt.Errorf("read Nomad's answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		return "", advice(&StatusError{resp.StatusCode, strings.TrimSpace(string(data[:min(len(data), 500)]))})
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			return "", fmt.Errorf("read Nomad's answer: %w", err)
		}
	}
	return resp.Header.Get("X-Nomad-Index"), nil
}

// currentToken reads the token of the next request.
func (c *Client) currentToken() (string, error) {
	if c.tokenFile == "" {
		return c.token, nil
	}
	data, err := os.ReadFile(c.tokenFile)
	if errors.Is(err, fs.ErrNotExist) && c.token != "" {
		return c.token, nil
	}
	if err != nil {
		return "", hint.Wrap(fmt.Errorf("read the Nomad token: %w", err), "the task needs an identity block with file = true")
	}
	return strings.TrimSpace(string(data)), nil
}

func advice(err *StatusError) error {
	switch err.Code {
	case http.StatusUnauthorized:
		return hint.Wrap(err, "the task needs an identity block with file = true (or env = true): Nomad's socket takes no request without a token")
	case http.StatusForbidden:
		return hint.Wrap(err, "the task's workload identity lacks a policy; `retinue acl print PATTERN --nomad` prints it, `retinue acl apply PATTERN --nomad` gives it")
	}
	return err
}
