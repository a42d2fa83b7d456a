// Package consulkit reaches Consul the way every HashiCorp tool does: the
// CONSUL_* environment for address, TLS and namespace, and a token that may
// live in a file which somebody renews. It adds what long-lived helpers need:
// a bounded number of connections, and a token file that is read again when
// it changes.
package consulkit

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/hint"
)

// Client is a Consul client whose token follows its file.
type Client struct {
	*api.Client
	Address string // for messages; never carries a token
	token   *tokenFile
}

// Config says how to reach Consul. The zero value means: as the CONSUL_* environment says.
type Config struct {
	Address  string // overrides CONSUL_HTTP_ADDR
	Token    string // overrides CONSUL_HTTP_TOKEN; for tests
	MaxConns int    // connections to the agent at once; 0 means no limit
}

// New returns a client. It does not contact Consul.
func New(cfg Config) (*Client, error) {
	conf := api.DefaultConfig()
	if cfg.Address != "" {
		conf.Address = cfg.Address
	}
	if cfg.Token != "" {
		conf.Token = cfg.Token
	}
	file := conf.TokenFile
	if cfg.Token != "" {
		file = ""
	}
	conf.TokenFile = "" // read here, on every change
	if cfg.MaxConns > 0 {
		conf.Transport.MaxConnsPerHost = cfg.MaxConns
		conf.Transport.MaxIdleConnsPerHost = cfg.MaxConns
	}
	conf.Transport.IdleConnTimeout = time.Minute
	conf.Transport.DisableCompression = true // the agent is near: packing an answer takes longer than sending it
	client, err := api.NewClient(conf)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("configure the Consul client: %w", err), "check the CONSUL_* environment variables")
	}
	return &Client{Client: client, Address: conf.Address, token: &tokenFile{path: file}}, nil
}

// Token returns the token for the next request: the content of CONSUL_HTTP_TOKEN_FILE, or "" for the client's own.
func (c *Client) Token() (string, error) { return c.token.read() }

// tokenFile reads a file again when its modification time or size changes. While the file is being replaced, the last good
// token stays in use.
type tokenFile struct {
	path string

	mu    sync.Mutex
	mod   time.Time
	size  int64
	token string
}

func (t *tokenFile) read() (string, error) {
	if t.path == "" {
		return "", nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.path)
	if err != nil {
		return t.lastGood(err)
	}
	if t.token != "" && info.ModTime().Equal(t.mod) && info.Size() == t.size {
		return t.token, nil
	}
	data, err := os.ReadFile(t.path)
	if err != nil {
		return t.lastGood(err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return t.lastGood(fmt.Errorf("%s is empty", t.path))
	}
	t.token, t.mod, t.size = token, info.ModTime(), info.Size()
	return token, nil
}

func (t *tokenFile) lastGood(err error) (string, error) {
	if t.token != "" {
		return t.token, nil
	}
	return "", hint.Wrap(fmt.Errorf("read the Consul token: %w", err), "CONSUL_HTTP_TOKEN_FILE must name a readable file with a token in it")
}

// Denied says whether err is Consul's refusal for want of permission.
func Denied(err error) bool {
	var status api.StatusError
	if errors.As(err, &status) {
		return status.Code == http.StatusForbidden || strings.Contains(status.Body, "Permission denied")
	}
	return err != nil && strings.Contains(err.Error(), "Permission denied")
}

// Advice returns err with a hint for the people who run a helper, where one is known.
func (c *Client) Advice(err error) error {
	var status api.StatusError
	switch {
	case err == nil:
		return nil
	case Denied(err):
		return hint.Wrap(err, "the Consul token lacks a permission; the room's README lists the policy it needs")
	case errors.As(err, &status), errors.Is(err, fs.ErrNotExist):
		return err
	}
	return hint.Wrap(err, "is a Consul agent listening on %s? set CONSUL_HTTP_ADDR", c.Address)
}
