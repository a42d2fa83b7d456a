package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"retinue/coordinator"
	"retinue/coordinator/source"
	"retinue/coordinator/source/dial"
	"retinue/internal/demo"
	"retinue/internal/demo/workqueue"
	"retinue/internal/devcluster"
)

func newDemoWorkQueueCmd() *cobra.Command {
	var dir, corpus string
	var files int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "work-queue",
		Short: "Thousands of files through gzip and sha256sum, while workers, coordinators and the broker are killed",
		Long: `Puts files of this machine into a pipeline of two stages, gzip -dc and then
sha256sum, both as they are, and kills workers, coordinators and the broker at
random until all are through. Then it counts: what was lost, what came out twice,
and which checksum differs from the one that it computed itself.`,
		Example: `  retinue demo work-queue
  retinue demo work-queue --files 500 --json | jq .measured`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if files < 1 {
				return usageError{fmt.Errorf("%d files", files)}
			}
			return demonstrate(cmd, "work-queue", dir, asJSON, func(ctx context.Context, cluster *devcluster.Cluster, timeline *demo.Timeline) error {
				return playWorkQueue(ctx, cluster, timeline, corpus, files)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", dirUsage)
	cmd.Flags().StringVar(&corpus, "corpus", "", "folder of files, .gz or not (default: manual pages and other documentation of this machine)")
	cmd.Flags().IntVar(&files, "files", 2000, "how many")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON, and the timeline to standard error")
	return cmd
}

func playWorkQueue(ctx context.Context, cluster *devcluster.Cluster, timeline *demo.Timeline, corpus string, files int) error {
	nomadClient, err := cluster.Nomad()
	if err != nil {
		return err
	}
	consulClient, err := cluster.Consul()
	if err != nil {
		return err
	}
	if cluster.Plan().ACL {
		if err := coordinator.Allow(consulClient, workqueue.Job); err != nil {
			return err
		}
	}
	vars := jobVars(cluster)
	delete(vars, "lease") // of leader election alone
	return workqueue.Demo{
		Nomad:    nomadClient,
		Consul:   consulClient,
		Vars:     vars,
		Host:     cluster.TaskGateway(),
		Corpus:   corpus,
		Files:    files,
		ConsulUI: cluster.ConsulAddr(),
		NomadUI:  cluster.NomadAddr(),
		Timeline: timeline,
		Open:     openDemoQueue,
	}.Run(ctx)
}

// demoQueue is a queue as the demonstration sees it.
type demoQueue struct{ source.Source }

func openDemoQueue(ctx context.Context, address, queue string) (workqueue.Queue, error) {
	src, err := dial.Open(ctx, address, source.Options{Queue: queue, Lease: 10 * time.Second, Prefetch: 500})
	if err != nil {
		return nil, err
	}
	return demoQueue{src}, nil
}

// Publish implements workqueue.Queue.
func (q demoQueue) Publish(ctx context.Context, items []workqueue.Item) error {
	outs := make([]source.Out, len(items))
	for i, it := range items {
		outs[i] = source.Out{ID: it.ID, Body: it.Body}
	}
	return q.Source.Publish(ctx, outs...)
}

// Take implements workqueue.Queue.
func (q demoQueue) Take(ctx context.Context) ([]workqueue.Item, error) {
	wait, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	ms, err := q.Receive(wait, 500)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return nil, nil
		}
		return nil, err
	}
	if err := q.Ack(ctx, ms...); err != nil {
		return nil, err
	}
	items := make([]workqueue.Item, len(ms))
	for i, m := range ms {
		items[i] = workqueue.Item{ID: m.ID, Body: m.Body}
	}
	return items, nil
}

// Waiting implements workqueue.Queue.
func (q demoQueue) Waiting(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	d, err := q.Depth(ctx)
	return int(d.Ready), err
}

// Close implements workqueue.Queue.
func (q demoQueue) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = q.Source.Close(ctx) // its process ends soon anyway
}
