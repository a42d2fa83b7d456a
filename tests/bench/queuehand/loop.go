package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/hibiken/asynq"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
)

// prepare makes the call of the worker.
func (o *options) prepare() (err error) {
	if o.counter, err = os.OpenFile(o.count, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * o.slots, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", o.worker)
	}}}
	post := func(ctx context.Context, kind string, body []byte) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://worker/", bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", kind)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("the worker answers %s", resp.Status)
		}
		return nil
	}
	o.size = 1
	switch o.call {
	case "http":
		o.do = func(ctx context.Context, items []item) error {
			return post(ctx, "application/octet-stream", items[0].body)
		}
	case "batch":
		o.size = 100
		o.do = func(ctx context.Context, items []item) error {
			var buf bytes.Buffer
			enc := json.NewEncoder(&buf)
			for _, it := range items {
				if err := enc.Encode(map[string]string{"id": it.id, "body": string(it.body)}); err != nil {
					return err
				}
			}
			return post(ctx, "application/x-ndjson", buf.Bytes())
		}
	case "exec":
		o.do = o.command
	case "dispatch":
		client, err := nomad.NewClient(&nomad.Config{Address: o.nomad})
		if err != nil {
			return err
		}
		o.do = func(ctx context.Context, items []item) error { return o.dispatch(ctx, client, items[0]) }
	}
	return nil
}

// command is the file contract by hand: a folder with the input, a command, and its output renamed to where outputs are kept.
func (o *options) command(ctx context.Context, items []item) error {
	dir, err := os.MkdirTemp(o.work, "item-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	input, output := filepath.Join(dir, "input"), filepath.Join(dir, "output")
	if err := os.WriteFile(input, items[0].body, 0o644); err != nil {
		return err
	}
	in, err := os.Open(input)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(output)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, "/bin/cat")
	cmd.Dir, cmd.Stdin, cmd.Stdout = dir, in, out
	if err := cmd.Run(); err != nil {
		return err
	}
	if !o.sync {
		return os.Rename(output, filepath.Join(o.work, "done-"+items[0].id))
	}
	if err := out.Sync(); err != nil {
		return err
	}
	if err := os.Rename(output, filepath.Join(o.work, "done-"+items[0].id)); err != nil {
		return err
	}
	folder, err := os.Open(o.work)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

// dispatch makes a Nomad job of an item, and waits for its end.
func (o *options) dispatch(ctx context.Context, client *nomad.Client, it item) error {
	resp, _, err := client.Jobs().Dispatch(o.queue, map[string]string{"retinue_item": it.id}, it.body, "", nil)
	if err != nil {
		return err
	}
	for index := uint64(0); ; {
		allocs, meta, err := client.Jobs().Allocations(resp.DispatchedJobID, false, (&nomad.QueryOptions{WaitIndex: index, WaitTime: 10 * time.Second}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, a := range allocs {
			switch a.ClientStatus {
			case nomad.AllocClientStatusComplete:
				return nil
			case nomad.AllocClientStatusFailed, nomad.AllocClientStatusLost:
				return fmt.Errorf("job %s: its allocation is %s", resp.DispatchedJobID, a.ClientStatus)
			}
		}
		index = meta.LastIndex
	}
}

// work takes items from the channel until it is closed.
func (o *options) run(ctx context.Context, items <-chan item, fail func(error)) *sync.WaitGroup {
	var all sync.WaitGroup
	for range o.slots {
		all.Go(func() {
			for it := range items {
				batch := []item{it}
			more:
				for len(batch) < o.size {
					select {
					case next, ok := <-items:
						if !ok {
							break more
						}
						batch = append(batch, next)
					default:
						break more
					}
				}
				if err := o.do(ctx, batch); err != nil {
					fail(err)
					return
				}
				for _, it := range batch {
					if err := it.ack(); err != nil {
						fail(err)
						return
					}
				}
				o.done(len(batch))
			}
		})
	}
	return &all
}

// redis reads a stream by a consumer group, as many at once as it has slots for.
func (o *options) redis(ctx context.Context) error {
	opts, err := redis.ParseURL(o.broker)
	if err != nil {
		return err
	}
	client := redis.NewClient(opts)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := client.XGroupCreateMkStream(ctx, o.queue, "g", "0").Err(); err != nil && err.Error() != "BUSYGROUP Consumer Group name already exists" {
		return err
	}
	items := make(chan item, o.slots*o.size)
	all := o.run(ctx, items, func(err error) { cancel(err) })
	for ctx.Err() == nil {
		got, err := client.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{o.queue, ">"}, Count: int64(o.slots * o.size), Block: time.Second}).Result()
		if err == redis.Nil {
			continue
		}
		if err != nil {
			cancel(err)
			break
		}
		for _, m := range got[0].Messages {
			body, _ := m.Values["body"].(string)
			items <- item{id: m.ID, body: []byte(body), ack: func() error {
				_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
					p.XAck(ctx, o.queue, "g", m.ID)
					p.XDel(ctx, o.queue, m.ID)
					return nil
				})
				return err
			}}
		}
	}
	close(items)
	all.Wait()
	return context.Cause(ctx)
}

// rabbitmq consumes a quorum queue with a prefetch.
func (o *options) rabbitmq(ctx context.Context) error {
	conn, err := amqp.Dial(o.broker)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(2*o.slots*o.size, 0, false); err != nil {
		return err
	}
	if _, err := ch.QueueDeclare(o.queue, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		return err
	}
	messages, err := ch.ConsumeWithContext(ctx, o.queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	items := make(chan item, o.slots*o.size)
	all := o.run(ctx, items, func(err error) { cancel(err) })
	for m := range messages {
		items <- item{id: fmt.Sprint(m.DeliveryTag), body: m.Body, ack: func() error { return m.Ack(false) }}
	}
	close(items)
	all.Wait()
	return context.Cause(ctx)
}

// asynq is a server of that library whose handler does nothing.
func (o *options) asynq(ctx context.Context) (err error) {
	if o.counter, err = os.OpenFile(o.count, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	opts, err := asynq.ParseRedisURI(o.broker)
	if err != nil {
		return err
	}
	server := asynq.NewServer(opts, asynq.Config{Concurrency: o.slots, LogLevel: asynq.ErrorLevel})
	if err := server.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { o.done(1); return nil })); err != nil {
		return err
	}
	<-ctx.Done()
	server.Shutdown()
	return nil
}
