package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
	"retinue/internal/disk"
)

// Watch offers folders to a long-lived worker that claims them by renaming.
type Watch struct {
	Folders Folders
	// Patience is how long an offer waits for a claim before the worker counts as not ready.
	Patience time.Duration
	// Beat is told that an attempt makes progress; again: it has only begun now.
	Beat func(id string, again bool)

	lock    *os.File
	notices *notices
	mu      sync.Mutex
	wake    map[string]chan struct{} // by attempt
	watches map[int32]string         // attempts by inotify's number
	ended   chan struct{}
}

// lockPoll is how often claims are looked at: the kernel tells nobody when a lock is let go. filePoll is for file systems on
// which inotify sees nothing of other machines.
const (
	lockPoll = 200 * time.Millisecond
	filePoll = time.Second
)

// Open prepares the work folder.
func (w *Watch) Open() (err error) {
	if w.lock, err = w.Folders.Open(); err != nil {
		return err
	}
	if err := forAll(filepath.Join(w.Folders.Work, readyDir), filepath.Join(w.Folders.Work, runDir)); err != nil {
		w.lock.Close()
		return err
	}
	w.wake, w.watches, w.ended = map[string]chan struct{}{}, map[int32]string{}, make(chan struct{})
	if w.notices = openNotices(); w.notices == nil {
		close(w.ended) // polling is enough
		return nil
	}
	w.notices.watch(filepath.Join(w.Folders.Work, runDir), unix.IN_MOVED_TO)
	go func() {
		defer close(w.ended)
		w.notices.each(w.see)
	}()
	return nil
}

// Close implements Worker.
func (w *Watch) Close() error {
	w.notices.close()
	<-w.ended
	return w.lock.Close()
}

// Discard implements Worker.
func (w *Watch) Discard(o *Output) { discard(o) }

// Progress implements Progressive.
func (w *Watch) Progress(task *item.Task) json.RawMessage {
	return progressOf(filepath.Join(w.Folders.Work, runDir, task.Attempt))
}

// see wakes the attempt that something happened to: its folder came to run, or a file came to its folder.
func (w *Watch) see(number int32, _ uint32, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if attempt, ok := w.watches[number]; ok {
		name = attempt
	}
	if c := w.wake[name]; c != nil {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// lockedName is the mark of a worker that has locked the folder before it claimed it. Without it a lock counts once it was seen, and a
// worker that dies before that looks like one that does not lock.
const lockedName = "_LOCKED"

// claim is one offered attempt.
type claim struct {
	task    *item.Task
	ready   string
	run     string
	claimed bool
	locked  bool // was seen, or is said to have been
	sign    sign
}

// Call implements Worker. It has one task.
func (w *Watch) Call(ctx context.Context, tasks []*item.Task) []Verdict {
	task := tasks[0]
	c := &claim{task: task, ready: filepath.Join(w.Folders.Work, readyDir, task.Attempt), run: filepath.Join(w.Folders.Work, runDir, task.Attempt)}
	wake := make(chan struct{}, 1)
	w.mu.Lock()
	w.wake[task.Attempt] = wake
	w.mu.Unlock()
	defer w.unwatch(task.Attempt)
	if err := w.offer(c); err != nil {
		return []Verdict{inputVerdict(err)}
	}
	return []Verdict{w.await(ctx, c, wake)}
}

func (w *Watch) unwatch(attempt string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.wake, attempt)
	for n, name := range w.watches {
		if name == attempt {
			delete(w.watches, n) // the kernel forgets it with the folder
		}
	}
}

// offer makes the folder elsewhere, so that it appears in ready complete.
func (w *Watch) offer(c *claim) error {
	dir := filepath.Join(w.Folders.Work, takenDir, c.task.Attempt+".new")
	err := w.Folders.make(dir, c.task)
	if err == nil {
		err = forAll(dir, filepath.Join(dir, "out"))
	}
	if err == nil {
		err = os.Rename(dir, c.ready)
	}
	if err != nil {
		os.RemoveAll(dir)
	}
	return err
}

// forAll lets a worker of any user write to folders, whatever this process's umask: it may run in a container as nobody.
func forAll(dirs ...string) error {
	for _, dir := range dirs {
		if err := os.Chmod(dir, 0o777); err != nil {
			return err
		}
	}
	return nil
}

func (w *Watch) await(ctx context.Context, c *claim, wake <-chan struct{}) Verdict {
	offered := time.Now()
	poll := time.NewTicker(lockPoll)
	defer poll.Stop()
	var looked time.Time
	for {
		woken := false
		select {
		case <-wake:
			woken = true
		case <-poll.C:
		case <-ctx.Done():
			return w.takeBack(c, stopped(ctx))
		}
		if !woken && !c.locked && time.Since(looked) < filePoll {
			continue
		}
		looked = time.Now()
		if !c.claimed {
			switch w.find(c); {
			case c.claimed:
			case time.Since(offered) > w.Patience:
				return w.takeBack(c, Verdict{Kind: NotReady, Reason: "nobody claims items"})
			default:
				w.Beat(c.task.ID, true)
				continue
			}
		}
		if v, ended := w.look(c); ended {
			return w.takeBack(c, v)
		}
	}
}

// find notices the claim.
func (w *Watch) find(c *claim) {
	if _, err := os.Stat(c.run); err != nil {
		return
	}
	c.claimed = true
	if _, err := os.Lstat(filepath.Join(c.run, lockedName)); err == nil {
		c.locked = true // since before the claim: a lock that nobody holds now was let go
	}
	if number, ok := w.notices.watch(c.run, unix.IN_CREATE|unix.IN_MOVED_TO); ok { // without, the poll finds it
		w.mu.Lock()
		w.watches[number] = c.task.Attempt
		w.mu.Unlock()
	}
	w.Beat(c.task.ID, true)
}

// look says whether a claimed attempt has ended, and how.
func (w *Watch) look(c *claim) (Verdict, bool) {
	if c.complete() {
		return Verdict{Kind: Ack}, true // what status says is read once it can no longer change
	}
	dir, err := disk.Open(c.run, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Verdict{Kind: Crashed, Reason: "the claimed folder is gone"}, true
		}
		return Verdict{}, false
	}
	defer unix.Close(dir)
	err = unix.Flock(dir, unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		c.locked = true
	} else if err == nil && c.locked {
		if c.complete() { // written between the look and the end of the lock
			return Verdict{Kind: Ack}, true
		}
		return Verdict{Kind: Crashed, Reason: "the worker let go of the claim without a verdict"}, true
	}
	if c.sign.changed(c.run) {
		w.Beat(c.task.ID, false)
	}
	return Verdict{}, false
}

func (c *claim) complete() bool {
	for _, name := range []string{"status", "_DONE"} {
		if _, err := os.Lstat(filepath.Join(c.run, name)); err == nil {
			return true
		}
	}
	return false
}

// takeBack renames the folder away, so that nobody can claim it or add to it any more, and reads what is in it.
func (w *Watch) takeBack(c *claim, v Verdict) Verdict {
	taken := filepath.Join(w.Folders.Work, takenDir, c.task.Attempt)
	if err := os.Rename(c.ready, taken); err == nil {
		if v.Kind == TimedOut { // of its own waiting, not of any work
			v = Verdict{Kind: NotReady, Reason: "nobody claims items"}
		}
		v.Output = &Output{Dir: taken}
		return v
	}
	if err := os.Rename(c.run, taken); err != nil {
		if v.Kind == Ack {
			return Verdict{Kind: Infra, Reason: err.Error()}
		}
		return v
	}
	if v.Kind == NotReady { // claimed in the last moment; it must not run twice at once without need, but it may
		v.Kind, v.Reason = Stopped, "taken back when it had just been claimed"
	}
	return w.Folders.collect(taken, c.task, v)
}
