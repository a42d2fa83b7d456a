// Command campaign breaks the world under leader election, at random but from a seed, thousands of times, and judges the history: a
// real Consul cluster of three servers, hosts in network namespaces, many groups of real electors, each with a small application
// beside it that speaks nothing but the elector's HTTP interface.
//
//	cd tests && go run ./campaign -seed 7 -faults 10000 -minutes 45 -out report.md
//
// It ends with status 1 when a promise was broken, 2 when the world could not be built. Ctrl-C ends it early; nothing stays behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"retinue/tests/harness"
)

// janitorEnv marks the process with which the harness cleans up after this one.
const janitorEnv = "RETINUE_TEST_JANITOR"

func main() {
	if config := os.Getenv(appEnv); config != "" {
		os.Exit(runApp(config))
	}
	if os.Getenv(janitorEnv) != "" {
		harness.Main(nil)
	}
	os.Exit(command())
}

func command() int {
	seed := flag.Uint64("seed", uint64(time.Now().Unix()), "of the plan of faults")
	faults := flag.Int("faults", 10000, "stop after so many faults")
	minutes := flag.Float64("minutes", 60, "or after so many minutes")
	out := flag.String("out", "", "write the report (Markdown) here, and as JSON beside it; default standard output")
	groups := flag.Int("groups", 12, "applications, with three electors each")
	binary := flag.String("elector", "", "elector binary to try instead of this repository's, for one that is broken on purpose")
	logs := flag.String("logs", "", "keep the logs of electors in this folder; they log at level debug then")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := settings{Seed: *seed, Faults: *faults, Limit: time.Duration(*minutes * float64(time.Minute)), Groups: standardGroups(*groups, *binary),
		Hosts: 6, Every: 100 * time.Second, Servers: true, Sweep: true, Logs: *logs}
	fmt.Fprintf(os.Stderr, "seed %d\n", s.Seed)
	c, err := run(ctx, s, os.Stderr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		return 2
	}
	r := c.report()
	if *out == "" {
		os.Stdout.Write(r.markdown())
	} else if err := r.write(*out); err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		return 2
	}
	for i, v := range r.Violations {
		if i < 10 {
			fmt.Fprintln(os.Stderr, v)
		}
	}
	fmt.Fprintf(os.Stderr, "%d faults, %d findings\n", r.Faults, len(r.Violations))
	if len(r.Violations) > 0 {
		return 1
	}
	return 0
}

// standardGroups are n applications of different kinds: two thirds safe, every way to show life, one with a longer lease, one with
// many elections, one with five electors; one in six is behind gates.
func standardGroups(n int, binary string) (out []groupSpec) {
	for i := range n {
		g := groupSpec{Name: fmt.Sprintf("g%d", i), Lease: time.Second, Revocation: "safe", Mode: []string{modeRenew, modeTether, modeBoth}[i%3],
			Elections: 2, Electors: 3, Binary: binary}
		if i/3%3 == 2 {
			g.Revocation = "fast"
		}
		g.Gated = i%6 == 1
		switch i {
		case 3:
			g.Lease = 2 * time.Second
		case 4:
			g.Elections = 20
		case 5:
			g.Electors = 5
		}
		out = append(out, g)
	}
	return out
}
