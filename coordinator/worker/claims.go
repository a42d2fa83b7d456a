package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
	"retinue/internal/disk"
)

// Claims is the worker's side of Watch for a command that is started for each item, as Exec starts it: it runs where the command
// is, in the worker's container, and shares a folder with the coordinator and nothing else.
type Claims struct {
	Work    string // the folder of the contract
	Command []string
	Grace   time.Duration // between SIGTERM and SIGKILL, when an attempt is taken back
	Slots   int
	Codes   ExitCodes
}

// How often an idle slot looks for work of which the kernel has told it nothing, and how often a busy one looks whether its attempt is still its own.
const (
	claimPollMin = 5 * time.Millisecond
	claimPollMax = 100 * time.Millisecond
	ownPoll      = 100 * time.Millisecond
)

// errTakenBack is the cause of the end of an attempt that the coordinator has renamed away.
var errTakenBack = errors.New("taken back")

// Run claims and works until ctx ends; what runs then has until hard ends.
func (c *Claims) Run(ctx, hard context.Context) error {
	offers := openOffers(c.Work, c.Slots)
	defer offers.close()
	var slots sync.WaitGroup
	for range c.Slots {
		slots.Go(func() {
			for pause := claimPollMin; ctx.Err() == nil; {
				offers.watch()
				if attempt, lock := c.claim(); lock >= 0 {
					c.attempt(hard, attempt)
					unix.Close(lock)
					pause = claimPollMin
					continue
				}
				timer := time.NewTimer(pause)
				select {
				case <-offers.news:
				case <-timer.C:
				case <-ctx.Done():
				}
				timer.Stop()
				pause = min(2*pause, claimPollMax)
			}
		})
	}
	slots.Wait()
	return ctx.Err()
}

// claim takes an offered attempt and returns its name and its lock, an open file; -1 when there is none. The lock comes before the claim, and a mark
// that says so: whenever this process dies, the coordinator sees a claim that is marked and not locked.
func (c *Claims) claim() (string, int) {
	offered, err := os.ReadDir(filepath.Join(c.Work, readyDir)) // in order of name; the coordinator makes it, soon after its start
	if err != nil {
		return "", -1
	}
	for _, e := range offered {
		if lock := c.take(e.Name()); lock >= 0 {
			return e.Name(), lock
		}
	}
	return "", -1
}

// take claims one attempt; -1 when another one was faster.
func (c *Claims) take(name string) int {
	ready := filepath.Join(c.Work, readyDir, name)
	lock, err := disk.Open(ready, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1
	}
	if unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB) == nil &&
		disk.Write(filepath.Join(ready, lockedName), nil) == nil &&
		unix.Rename(ready, filepath.Join(c.Work, runDir, name)) == nil {
		return lock
	}
	unix.Close(lock)
	return -1
}

// attempt works on one claim.
func (c *Claims) attempt(hard context.Context, name string) {
	dir := filepath.Join(c.Work, runDir, name)
	ctx, cancel := context.WithCancelCause(hard)
	defer cancel(nil)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		c.guard(ctx, cancel, dir)
	}()
	v := c.work(ctx, dir)
	cancel(nil)
	<-watching
	if v.Kind == Stopped { // by whoever took it back, or by the end of this process: the coordinator sees either
		return
	}
	_ = writeStatus(dir, v) // gone: it was taken back meanwhile
}

// Once works on the attempt in one folder, which is nobody else's, and says there how it ended. Its error is that nothing could be said. An
// attempt that ctx has ended has no verdict: whoever ended it knows why.
func (c *Claims) Once(ctx context.Context, dir string) error {
	v := c.work(ctx, dir)
	if v.Kind == Stopped {
		return fmt.Errorf("the attempt was ended: %s", v.Reason)
	}
	return writeStatus(dir, v)
}

// guard ends ctx when the folder is no longer there.
func (c *Claims) guard(ctx context.Context, cancel context.CancelCauseFunc, dir string) {
	poll := time.NewTicker(ownPoll)
	defer poll.Stop()
	for {
		select {
		case <-poll.C:
			if _, err := os.Stat(filepath.Join(dir, "meta.json")); err != nil {
				cancel(errTakenBack)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// maxMeta is more than any broker lets the headers of a message be.
const maxMeta = 16 << 20

func (c *Claims) work(ctx context.Context, dir string) Verdict {
	data, err := disk.Read(filepath.Join(dir, "meta.json"), maxMeta)
	if err != nil {
		return Verdict{Kind: Stopped, Reason: errTakenBack.Error()}
	}
	var task item.Task
	if err := json.Unmarshal(data, &task); err != nil {
		return Verdict{Kind: Retry, Reason: "meta.json: " + err.Error()}
	}
	e := Exec{Command: c.Command, Codes: c.Codes, Grace: c.Grace}
	v := e.run(ctx, dir, filepath.Join(dir, "input"), environment(&task, dir))
	if v.Kind == Infra { // of this side, which Watch knows as a worker that is not ready
		v.Kind = NotReady
	}
	if v.Kind == Ack {
		if err := keepStdout(dir); err != nil {
			return Verdict{Kind: NotReady, Reason: err.Error()}
		}
	}
	return v
}

// keepStdout makes an output of what a command wrote to its stdout.
func keepStdout(dir string) error {
	path, output := filepath.Join(dir, "stdout"), filepath.Join(dir, "out", "stdout")
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil || info.Size == 0 {
		return nil
	}
	return moveFile(path, output)
}

// moveFile renames a file. Package os looks first whether the new name is a folder, which the kernel refuses by itself.
func moveFile(from, to string) error {
	if err := unix.Rename(from, to); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// writeStatus says how an attempt ended, in one step.
func writeStatus(dir string, v Verdict) error {
	s := map[string]string{"verdict": string(v.Kind), "reason": v.Reason, "stderr": v.Stderr}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, ".status")
	if err := disk.Write(tmp, data); err != nil {
		return fmt.Errorf("write the verdict: %w", err)
	}
	return moveFile(tmp, filepath.Join(dir, "status"))
}
