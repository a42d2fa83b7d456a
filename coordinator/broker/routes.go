package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// routesEvery is how often a file of routes is looked at.
const routesEvery = 250 * time.Millisecond

// routes reads the file of routes, without this broker's own address.
func (c Config) routes() ([]string, error) {
	data, err := os.ReadFile(c.RoutesFile)
	if err != nil {
		return nil, err
	}
	all := strings.Fields(string(data))
	all = slices.DeleteFunc(all, func(r string) bool { return r == c.Cluster || r == c.Advertise })
	slices.Sort(all)
	for _, r := range all {
		if _, _, err := split(r); err != nil {
			return nil, fmt.Errorf("%s: %w", c.RoutesFile, err)
		}
	}
	return slices.Compact(all), nil
}

// await waits for the addresses of the others. A broker whose folder is new needs them all: two that are new and know of one
// another alone would be a cluster of their own. Later it need not learn where others have moved to: who starts knows who is there,
// and who is there tells of it.
func (c *Config) await(ctx context.Context) error {
	need := 2
	if _, err := os.Stat(filepath.Join(c.Dir, "jetstream", "$SYS", "_js_", "_meta_")); err == nil {
		need = 1
	}
	for {
		routes, err := c.routes()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if c.Routes = routes; len(routes) >= need {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the addresses of the other brokers in %s, which has %d: %w", c.RoutesFile, len(routes), ctx.Err())
		case <-time.After(routesEvery):
		}
	}
}
