package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue/tests/harness"
)

// stepEnv makes this binary step the machine's wall clock by so much, for a second, and put it right again. It is a process of its
// own so that the clock is right again also when the test is killed meanwhile.
const stepEnv = "RETINUE_CAMPAIGN_STEP"

// stepFor is how long the wall clock is wrong.
const stepFor = time.Second

// ahead is how far the wall clock is ahead of the monotonic one.
func ahead() (time.Duration, error) {
	best, within := time.Duration(0), time.Hour
	for range 20 { // the reading that was interrupted least
		var before, wall, after unix.Timespec
		if err := errors.Join(unix.ClockGettime(unix.CLOCK_MONOTONIC, &before), unix.ClockGettime(unix.CLOCK_REALTIME, &wall),
			unix.ClockGettime(unix.CLOCK_MONOTONIC, &after)); err != nil {
			return 0, err
		}
		if took := time.Duration(after.Nano() - before.Nano()); took < within {
			best, within = time.Duration(wall.Nano()-before.Nano())-took/2, took
		}
	}
	return best, nil
}

// setAhead sets the wall clock so that it is that far ahead of the monotonic one, to a millisecond.
func setAhead(want time.Duration) error {
	for range 50 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return err
		}
		wall := unix.NsecToTimespec(now.Nano() + int64(want))
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &wall); err != nil {
			return fmt.Errorf("set the wall clock: %w", err)
		}
		if got, err := ahead(); err == nil && (got-want).Abs() < time.Millisecond {
			return nil
		}
	}
	return errors.New("the wall clock does not stay where it is set")
}

// stepClock is the process that steps.
func stepClock(by string) int {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	d, err := time.ParseDuration(by)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	right, err := ahead()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	err = setAhead(right + d)
	if err == nil {
		time.Sleep(stepFor)
	}
	if err := errors.Join(err, setAhead(right)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// missingClock: nobody wants the clock of the machine that they work on to be touched.
func missingClock() error {
	if os.Getenv("CI") != "true" && os.Getenv("RETINUE_TEST_CLOCK") == "" {
		return errors.New("it steps the machine's wall clock by an hour, for a second, and runs with RETINUE_TEST_CLOCK=1 or CI=true")
	}
	if err := unix.Settimeofday(nil); err != nil { // sets nothing, and asks for the right to
		return fmt.Errorf("the wall clock may not be set: %w", err)
	}
	return nil
}

// The wall clock of the machine is wrong by an hour, back and ahead. Every elector, application and agent sees it, and nothing comes
// of it: no leadership moves, and the judge finds nothing.
func TestClockStep(t *testing.T) {
	harness.Need(t, harness.Root, harness.Netns, harness.Iptables, harness.Program("nsenter", true), harness.NewFeature("stepping the clock", false, missingClock))
	s := settings{Seed: 1, Limit: time.Minute, Hosts: 3, Every: time.Hour, Logs: os.Getenv("RETINUE_CAMPAIGN_LOGS"), Groups: []groupSpec{
		{Name: "renew", Lease: 2 * time.Second, Revocation: "safe", Mode: modeRenew, Elections: 2, Electors: 3},
		{Name: "both", Lease: 2 * time.Second, Revocation: "safe", Mode: modeBoth, Elections: 2, Electors: 3},
		{Name: "fast", Lease: 2 * time.Second, Revocation: "fast", Mode: modeTether, Elections: 2, Electors: 3},
	}}
	s.Attack = func(ctx context.Context, c *campaign) error {
		before, writes := leaders(c)
		for _, by := range []time.Duration{-time.Hour, time.Hour} {
			from, right := bootNow(), wallError(t, 0)
			step := exec.Command("/proc/self/exe")
			step.Env = append(os.Environ(), stepEnv+"="+by.String())
			step.Stderr = os.Stderr
			step.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := step.Start(); err != nil {
				return err
			}
			seen := false
			for deadline := bootNow() + int64(10*time.Second); !seen && bootNow() < deadline; time.Sleep(10 * time.Millisecond) {
				seen = (wallError(t, right) - by).Abs() < time.Second
			}
			if err := step.Wait(); err != nil {
				return fmt.Errorf("step the clock by %s: %w", by, err)
			}
			if !seen {
				return fmt.Errorf("the clock was never seen to be wrong by %s", by)
			}
			t.Logf("wall clock wrong by %s for %s; afterwards by %s", by, time.Duration(bootNow()-from).Round(time.Millisecond), wallError(t, right))
			if off := wallError(t, right).Abs(); off > 50*time.Millisecond {
				return fmt.Errorf("the wall clock is off by %s afterwards", off)
			}
			pause(ctx, 2*time.Second)
		}
		after, written := leaders(c)
		for key, token := range before {
			if after[key] != token {
				t.Errorf("%s: token %d before the clock was stepped, %d after it", key, token, after[key])
			}
			if written[key] <= writes[key] {
				t.Errorf("%s: no write was accepted while the clock was stepped", key)
			}
		}
		return nil
	}
	c, err := run(t.Context(), s, testWriter{t})
	if err != nil {
		t.Fatal(err)
	}
	c.report()
	for _, v := range c.judge.found("") {
		t.Error(v)
	}
}

// wallError is how far the wall clock is from where it was when it was right.
func wallError(t *testing.T, right time.Duration) time.Duration {
	t.Helper()
	d, err := ahead()
	if err != nil {
		t.Fatal(err)
	}
	return d - right
}

// leaders are the tokens under which was led last, and how much was written, by election.
func leaders(c *campaign) (tokens map[string]uint64, writes map[string]int) {
	tokens, writes = map[string]uint64{}, map[string]int{}
	for _, g := range c.world.groups {
		for _, e := range g.elections {
			e.mu.Lock()
			if n := len(e.beliefs); n > 0 {
				tokens[g.name+"/"+e.name] = e.beliefs[n-1].token
			}
			writes[g.name+"/"+e.name] = e.log
			e.mu.Unlock()
		}
	}
	return tokens, writes
}
