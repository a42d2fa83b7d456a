// Command leaf is the leaf of the scatter/gather example: a full-text search
// engine over one shard of a folder of documents. It knows nothing of Nomad,
// of Consul, of the other shards or of the root that asks it; what it keeps of
// the leaf contract is in serve.go.
//
//	leaf --corpus DIR --stats stats.json                                  index everything, note the statistics
//	leaf --corpus DIR --stats stats.json --shard 3 --shards 16            index one shard, score as the whole would
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("leaf", flag.ContinueOnError)
	shard := flags.Int("shard", number("RETINUE_SHARD", 0), "which shard this is, from 0")
	shards := flags.Int("shards", number("RETINUE_SHARDS", 1), "how many shards there are")
	corpus := flags.String("corpus", "", "folder of documents; .gz is unpacked")
	stats := flags.String("stats", "", "statistics of the whole corpus: written by one shard of one, read by the others")
	folder := flags.String("index", "", "where to build the index; default: a temporary folder")
	listen := flags.String("listen", "127.0.0.1:0", "address to listen on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *corpus == "" || *shards < 1 || *shard < 0 || *shard >= *shards {
		return fmt.Errorf("--corpus is needed, and --shard between 0 and --shards - 1")
	}
	if *folder == "" {
		dir, err := os.MkdirTemp("", "leaf-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		*folder = dir
	}
	// Listen first: the health check says "not yet" until the index is there.
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	leaf := &leaf{}
	server := &http.Server{Handler: leaf, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(grace)
	}()
	failed := make(chan error, 1)
	go func() {
		began := time.Now()
		index, err := build(*corpus, *folder, *shard, *shards)
		if err == nil {
			err = index.global(*stats, *shards)
		}
		if err != nil {
			failed <- err
			server.Close()
			return
		}
		log.Printf("shard %d of %d: %d documents in %s, listening on http://%s", *shard, *shards, index.documents, time.Since(began).Round(time.Millisecond), ln.Addr())
		leaf.index.Store(index)
	}()
	if err := server.Serve(ln); err != http.ErrServerClosed {
		return err
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func number(variable string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil {
		return n
	}
	return otherwise
}
