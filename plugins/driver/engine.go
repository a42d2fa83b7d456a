package driver

import (
	"cmp"
	"context"
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

// unpause undoes `docker pause`. A container that was not paused is left as it is.
func (e dockerEngine) unpause(ctx context.Context, container string) error {
	if e.http == nil {
		return errors.New("the engine is not reached by a Unix socket")
	}
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/containers/"+container+"/unpause", nil)
	if err != nil {
		return err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return fmt.Errorf("unpause the container: %w", err)
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	// An engine says "is not paused", as a conflict or, before version 23, as its own failure.
	if resp.StatusCode >= 300 && !strings.Contains(string(said), "is not paused") {
		return fmt.Errorf("unpause the container: the engine answers %d: %s", resp.StatusCode, strings.TrimSpace(string(said)))
	}
	return err
}
