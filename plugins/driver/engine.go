package driver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// dockerEngine is the engine behind an inner driver that is docker's, for the few things that a driver plugin cannot be asked for.
type dockerEngine struct {
	http *http.Client // nil: one that is not reached by a Unix socket, and so not here
}

// engineLimit is how long the engine may take to answer.
const engineLimit = 5 * time.Second

// engineAt is the engine of an endpoint as the docker driver takes it; "" is its default.
func engineAt(endpoint string) dockerEngine {
	endpoint = cmp.Or(endpoint, os.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock")
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok {
		return dockerEngine{}
	}
	return dockerEngine{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // the engine may be another one at the next call
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}}
}

// engineEndpoint is the endpoint in the configuration of Nomad's docker driver; "" where there is none.
func engineEndpoint(config []byte) string {
	_, raw, err := cutKey(config, "endpoint")
	if err != nil || raw == nil {
		return ""
	}
	var endpoint string
	if msgpack.Unmarshal(raw, &endpoint) != nil {
		return ""
	}
	return endpoint
}

// container is what the engine says of a container.
type container struct {
	Running   bool
	ExitCode  int
	OOMKilled bool
}

// errAway is of an engine that does not answer: it is not there, or begins.
var errAway = errors.New("the engine does not answer")

// inspect asks for the state of a container; nil when there is none.
func (e dockerEngine) inspect(ctx context.Context, id string) (*container, error) {
	code, said, err := e.call(ctx, http.MethodGet, "/containers/"+id+"/json")
	switch {
	case err != nil:
		return nil, err
	case code == http.StatusNotFound:
		return nil, nil
	case code != http.StatusOK:
		return nil, fmt.Errorf("inspect the container: the engine answers %d: %s", code, said)
	}
	var answer struct{ State container }
	if err := json.Unmarshal(said, &answer); err != nil {
		return nil, fmt.Errorf("inspect the container: %w", err)
	}
	return &answer.State, nil
}

// away says that the engine does not answer.
func (e dockerEngine) away(ctx context.Context) bool {
	_, _, err := e.call(ctx, http.MethodGet, "/_ping")
	return errors.Is(err, errAway)
}

// unpause undoes `docker pause`. A container that was not paused is left as it is.
func (e dockerEngine) unpause(ctx context.Context, id string) error {
	code, said, err := e.call(ctx, http.MethodPost, "/containers/"+id+"/unpause")
	if err != nil {
		return fmt.Errorf("unpause the container: %w", err)
	}
	// An engine says "is not paused", as a conflict or, before version 23, as its own failure.
	if code >= 300 && !strings.Contains(string(said), "is not paused") {
		return fmt.Errorf("unpause the container: the engine answers %d: %s", code, strings.TrimSpace(string(said)))
	}
	return nil
}

func (e dockerEngine) call(ctx context.Context, method, path string) (code int, said []byte, err error) {
	if e.http == nil {
		return 0, nil, errors.New("the engine is not reached by a Unix socket")
	}
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errAway, err)
	}
	defer resp.Body.Close()
	if said, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errAway, err)
	}
	return resp.StatusCode, said, nil
}
