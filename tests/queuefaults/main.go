// Command queuefaults breaks the world under a work queue, at random but from a
// seed, hundreds of times for each broker, and judges the history: real
// brokers, coordinators and workers that are killed with -9 and stopped while
// tens of thousands of items go through them.
//
//	cd tests && go run ./queuefaults -broker redis -seed 7 -items 100000 -kills 200 -minutes 12
//	cd tests && go run ./queuefaults -out ../docs/reports/work-queue-faults.md     all brokers, one after the other
//
// It ends with status 1 when a promise was broken, 2 when the world could not
// be built, 3 when time was up before all items and kills. Nothing stays behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"retinue/tests/brokers"
)

func main() {
	brokers.Main()
	workerMain()
	os.Exit(command())
}

// settings are one campaign on one broker.
type settings struct {
	Broker string
	Seed   uint64
	Items  int
	Kills  int
	Limit  time.Duration // for items and kills; the end takes what it needs, bounded
	Lease  time.Duration
	Dir    string // of everything; removed by the caller

	// Partitions gives most items keys, and the queue so many partitions; 0: no order.
	Partitions int

	Coordinator string        // program: retinue-coordinator
	Queue       string        // program: retinue-broker
	Only        *kindOf       // the faults of coordinators, in place of all others
	Faults      int           // of any class, at least
	LongShare   int           // of a thousand items last longer than a lease
	Backlog     int           // items that are published ahead of the work; default 2000
	Pace        float64       // of the faults: 2 waits twice as long between them; default 1
	Patience    time.Duration // with a world that has been repaired, while nothing moves; default 30 s and 20 leases
	Log         func(format string, args ...any)
}

func command() int {
	seed := flag.Uint64("seed", 1, "of the plan of faults and of the items")
	items := flag.Int("items", 100000, "stop publishing after so many items")
	kills := flag.Int("kills", 200, "and go on until so many processes were killed")
	minutes := flag.Float64("minutes", 15, "or after so many minutes, for each broker")
	pace := flag.Float64("pace", 2, "times as long between faults as in the short run")
	which := flag.String("broker", strings.Join(brokers.Kinds(), ","), "brokers to try, separated by commas")
	out := flag.String("out", "", "document whose sections are replaced, one for each broker; default standard output")
	bin := flag.String("coordinator", "", "coordinator to try instead of this repository's, for one that is broken on purpose")
	partitions := flag.Int("partitions", 0, "give the items keys, whose order is kept over all coordinators with so many partitions, and break Consul too")
	keep := flag.String("keep", "", "keep logs, records and histories in this folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := 0
	for _, kind := range strings.Split(*which, ",") {
		dir, err := os.MkdirTemp("", "retinue-queuefaults-")
		if err == nil && *keep != "" {
			dir = filepath.Join(*keep, kind)
			err = errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "Error:", err)
			return 2
		}
		began := time.Now()
		s := settings{Broker: kind, Seed: *seed, Items: *items, Kills: *kills, Limit: time.Duration(*minutes * float64(time.Minute)), Lease: 3 * time.Second, Dir: dir,
			LongShare: 2, Pace: *pace, Partitions: *partitions, Log: func(format string, args ...any) {
				fmt.Fprintf(os.Stderr, "%5.0fs %s: %s\n", time.Since(began).Seconds(), kind, fmt.Sprintf(format, args...))
			}}
		r, err := prepared(ctx, s, *bin)
		if *keep == "" {
			os.RemoveAll(dir)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "Error: %s: %v\n", kind, err)
			return 2
		}
		if err := r.publish(*out); err != nil {
			fmt.Fprintln(os.Stderr, "Error:", err)
			return 2
		}
		for _, v := range r.Findings[:min(10, len(r.Findings))] {
			fmt.Fprintln(os.Stderr, v)
		}
		fmt.Fprintf(os.Stderr, "%s: %d items, %d kills, %d stops, %d findings\n", kind, r.Items, r.Kills(), r.Stops(), len(r.Findings))
		switch {
		case len(r.Findings) > 0:
			code = 1
		case code == 0 && (r.Items < *items || r.Kills() < *kills):
			code = 3
		}
	}
	return code
}

// prepared finds or builds the programs, then runs.
func prepared(ctx context.Context, s settings, coordinator string) (*report, error) {
	root, err := repoRoot()
	if err != nil {
		return nil, err
	}
	s.Coordinator = coordinator
	if coordinator == "" {
		s.Coordinator = filepath.Join(s.Dir, "retinue-coordinator")
		if err := build(ctx, root, s.Coordinator, "./cmd/retinue-coordinator"); err != nil {
			return nil, err
		}
	}
	s.Queue = filepath.Join(s.Dir, "retinue-broker")
	if err := build(ctx, root, s.Queue, "./cmd/retinue-broker"); err != nil {
		return nil, err
	}
	return run(ctx, s)
}

func build(ctx context.Context, root, out, program string, more ...string) error {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"build"}, more, []string{"-o", out, program})...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", program, err, text)
	}
	return nil
}

func repoRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "retinue.go")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("this is no folder of the repository")
}
