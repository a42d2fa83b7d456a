// Command driverfaults kills what stands between Nomad and a task of the lifecycle driver,
// in every state of the task's lifecycle, at random but from a seed, and judges what became
// of the tasks; and it drains nodes a hundred times under load, and counts.
//
//	cd tests && go run ./driverfaults -seed 7 -salvos 24 -drains 100
//	cd tests && go run ./driverfaults -out ../docs/reports/lifecycle-faults.md
//
// It ends with status 1 when a promise was broken, 2 when the world could not be built, 3
// when time was up before all salvos and drains. Nothing stays behind.
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
	"syscall"
	"time"

	"retinue/internal/toolchain"
	"retinue/tests/drivercluster"
)

func main() {
	drivercluster.Main()
	os.Exit(command())
}

func command() int {
	seed := flag.Uint64("seed", 1, "of the plan of faults")
	salvos := flag.Int("salvos", 24, "faults, each for tasks of all drivers in all states at once")
	drains := flag.Int("drains", 100, "node drains under load")
	minutes := flag.Float64("minutes", 60, "no salvo and no drain begins after so many minutes")
	out := flag.String("out", "", "document to write; default standard output")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	s := settings{Seed: *seed, Salvos: *salvos, Drains: *drains, Limit: time.Duration(*minutes * float64(time.Minute)), Retinue: os.Getenv("RETINUE_BIN"),
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%5.0fs %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
		}}
	r, err := prepared(ctx, s)
	if err == nil {
		err = r.publish(*out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 2
	}
	for _, f := range r.Findings[:min(10, len(r.Findings))] {
		fmt.Fprintln(os.Stderr, f)
	}
	fmt.Fprintf(os.Stderr, "%d tasks in %d salvos, %d kills, %d drains, %d findings\n", r.Tasks, r.Salvos, r.Kills, r.Drains, len(r.Findings))
	switch {
	case len(r.Findings) > 0:
		return 1
	case r.Salvos < *salvos || r.Drains < *drains:
		return 3
	}
	return 0
}

// prepared finds or builds the programs, then runs.
func prepared(ctx context.Context, s settings) (*report, error) {
	var err error
	if s.Retinue == "" {
		return nil, fmt.Errorf("RETINUE_BIN is not set: `make plugin`, and set it to bin/retinue")
	}
	if s.Retinue, err = filepath.Abs(s.Retinue); err != nil {
		return nil, err
	}
	for tool, to := range map[toolchain.Tool]*string{toolchain.Nomad: &s.Nomad, toolchain.Consul: &s.Consul} {
		found, err := toolchain.Ensure(ctx, tool, func(p toolchain.Progress) { s.Log("%v", p) })
		if err != nil {
			return nil, err
		}
		*to = found.Path
	}
	if s.Dir, err = os.MkdirTemp("", "rf-"); err != nil { // short: it holds Unix sockets
		return nil, err
	}
	defer os.RemoveAll(s.Dir)
	if err := os.Chmod(s.Dir, 0o755); err != nil { // tasks of exec are another user
		return nil, err
	}
	s.Subject = filepath.Join(s.Dir, "subject")
	if err := buildSubject(ctx, s.Subject); err != nil {
		return nil, err
	}
	return run(ctx, s)
}

// buildSubject builds the task, for images and chroots that have no library.
func buildSubject(ctx context.Context, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, "retinue/tests/driverfaults/subject")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the subject: %w\n%s", err, out)
	}
	return nil
}

// run plays the campaign.
func run(ctx context.Context, s settings) (r *report, err error) {
	began := time.Now()
	w, err := up(ctx, s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.cluster.Close()) }()
	r = newReport(w)
	var told []string // what stays is a finding once
	for n := range s.Salvos {
		if time.Since(began) > s.Limit {
			break
		}
		plan := salvoOf(s.Seed, n, w.Faults, w.drivers)
		shots, kills, err := w.fire(ctx, plan)
		if err != nil {
			return nil, fmt.Errorf("salvo %d (%s): %w", n, plan.fault, err)
		}
		r.add(shots, kills)
		left, err := w.stray()
		if err != nil {
			return nil, err
		}
		left = slices.DeleteFunc(left, func(one string) bool { return slices.Contains(told, one) })
		told = append(told, left...)
		if len(left) > 0 {
			r.find(finding{nothing, fmt.Sprintf("salvo %d", n), fmt.Sprint(left)})
		}
		s.Log("salvo %d, %s: %d tasks, %d findings so far", n, plan.fault, len(shots), len(r.Findings))
	}
	if s.Drains > 0 {
		if err := w.drainNodes(ctx, r, began.Add(s.Limit)); err != nil {
			return nil, fmt.Errorf("drains: %w", err)
		}
	}
	r.Seconds = time.Since(began).Seconds()
	return r, nil
}
