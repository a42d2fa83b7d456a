package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers/proto"
)

// An agent does not always give a network back that it has asked an external driver
// for: not after it was restarted itself (it has forgotten the network, and its client
// of a plugin then asks nothing), and not after the plugin was (it asks the one that is
// gone). A pause container of docker would stay for ever. So the driver remembers the
// networks of the allocations that it sees, and gives back what is left when the folder
// of an allocation is gone: then the agent itself has forgotten the allocation.

// sweepEvery is the time between two looks; one costs a stat for each allocation.
const sweepEvery = 10 * time.Second

// remember notes that an allocation has a network which the inner driver made: only
// those have labels.
func (d *Driver) remember(c *proto.TaskConfig) {
	if len(c.GetNetworkIsolationSpec().GetLabels()) == 0 || c.AllocDir == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.networks[c.AllocId] = c.AllocDir
}

func (d *Driver) destroyNetwork(ctx context.Context, req *proto.DestroyNetworkRequest) (*proto.DestroyNetworkResponse, error) {
	resp, err := d.tasks.DestroyNetwork(ctx, req)
	if err == nil {
		d.mu.Lock()
		delete(d.networks, req.AllocId)
		d.mu.Unlock()
	}
	return resp, err
}

// sweep gives networks back until ctx ends.
func (d *Driver) sweep(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, alloc := range d.abandoned() {
			// Without a specification the inner driver looks for the network by the allocation.
			if _, err := d.destroyNetwork(ctx, &proto.DestroyNetworkRequest{AllocId: alloc}); err != nil {
				d.log.Warn("cannot give back the network of an allocation that is gone; trying again", "alloc", alloc, "error", err)
				continue
			}
			d.log.Info("gave back the network of an allocation that is gone", "alloc", alloc)
		}
		d.removeGroups("/sys/fs/cgroup")
	}
}

// abandoned lists the allocations that have a network, no task and no folder any more.
func (d *Driver) abandoned() (out []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	runs := map[string]bool{}
	for _, t := range d.running {
		runs[t.alloc] = true
	}
	for alloc, dir := range d.networks {
		if _, err := os.Stat(dir); !runs[alloc] && errors.Is(err, fs.ErrNotExist) {
			out = append(out, alloc)
		}
	}
	return out
}
