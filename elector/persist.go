package elector

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"retinue/internal/clock"
	"retinue/internal/hint"
)

// Saved is what an elector has to know after a restart to go on where it was: its session, and what it leads. A restarted elector
// believes none of it before Consul has confirmed it; until then its application is suspended, not deposed.
type Saved struct {
	BootID     string                   `json:"boot_id"` // the boot clock begins anew with every boot
	App        string                   `json:"app"`
	ID         string                   `json:"id"`
	Lease      time.Duration            `json:"lease"`
	Revocation Revocation               `json:"revocation"`
	Session    Session                  `json:"session"`
	Confirmed  clock.Instant            `json:"confirmed"`
	Index      uint64                   `json:"index"`
	Elections  map[string]SavedElection `json:"elections"`
}

// SavedElection is one leadership.
type SavedElection struct {
	Candidate string        `json:"candidate"`
	Priority  int           `json:"priority,omitempty"`
	Lease     time.Duration `json:"lease"`
	Explicit  bool          `json:"explicit,omitempty"`
	Stepdown  bool          `json:"stepdown,omitempty"`
	Token     uint64        `json:"token"`
	Key       KeyIndex      `json:"key"`
	Record    Record        `json:"record"`
}

// saved is what should be in the file now.
func (m *machine) saved() Saved {
	s := Saved{App: m.cfg.App, ID: m.cfg.ID, Lease: m.cfg.Lease, Revocation: m.cfg.Revocation, Session: m.session.Session, Confirmed: m.session.confirmed,
		Index: m.index, Elections: map[string]SavedElection{}}
	for name, e := range m.elections {
		if c := e.holder; c != nil && c.claimed && e.lock == lockHeld {
			s.Elections[name] = SavedElection{Candidate: c.id, Priority: c.priority, Lease: c.lease, Explicit: c.explicit, Stepdown: c.frozen,
				Token: e.token, Key: e.key, Record: e.record}
		}
	}
	return s
}

// restore takes up what an earlier process of this elector left. The applications get one lease from now to be heard of again:
// whatever they were granted before has run out by then.
func (m *machine) restore(now clock.Instant, s Saved) {
	if s.Session.ID == "" {
		return
	}
	m.session = sessionState{Session: s.Session, confirmed: s.Confirmed, next: now}
	m.index = s.Index
	m.inherited = now.Add(m.cfg.Lease)
	m.candDirty, m.leads, m.leadsDirty = true, unknownLeads, true
	for name, saved := range s.Elections {
		e := m.elections[name]
		e.lock, e.token, e.key, e.record, e.term = lockHeld, saved.Token, saved.Key, saved.Record, saved.Record.Term
		e.floor, e.leading = saved.Key.Modify, s.Session.ID
		e.holder = &candidate{id: saved.Candidate, priority: saved.Priority, lease: saved.Lease, explicit: saved.Explicit, claimed: true,
			frozen: saved.Stepdown, until: now.Add(saved.Lease)}
		e.suspended = true
		m.event(e, EventSuspended, "elector_restarted")
	}
}

// fits says whether s belongs to an elector with this configuration, in this boot of the machine.
func (s Saved) fits(cfg Config, bootID string) bool {
	for name := range s.Elections {
		if !slices.Contains(cfg.Elections, name) {
			return false
		}
	}
	return s.BootID == bootID && s.App == cfg.App && s.ID == cfg.ID && s.Lease == cfg.Lease && s.Revocation == cfg.Revocation
}

// StateFile keeps a Saved on disk, for one process at a time.
type StateFile struct {
	path   string
	bootID string
	lock   *os.File
	queue  chan Saved
	done   chan struct{}
}

// OpenStateFile opens or makes the file at path, readable for this user alone: who knows a session can end it.
func OpenStateFile(path string) (*StateFile, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read the boot id: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("open the state file: %w", err), "--state must name a file in a folder that exists and is writable")
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, hint.Wrap(fmt.Errorf("state file %s: another elector uses it", path), "stop that elector, or give this one another --state")
	}
	f := &StateFile{path: path, bootID: strings.TrimSpace(string(boot)), lock: lock, queue: make(chan Saved, 1), done: make(chan struct{})}
	go f.write()
	return f, nil
}

// load returns what an earlier process left, if it belongs to cfg. A file that cannot be read is an elector that starts anew.
func (f *StateFile) load(cfg Config) (Saved, bool) {
	data, err := os.ReadFile(f.path)
	if err != nil {
		return Saved{}, false
	}
	var s Saved
	if json.Unmarshal(data, &s) != nil || !s.fits(cfg, f.bootID) {
		return Saved{}, false
	}
	return s, true
}

// save queues s. Only the newest is written; the caller never waits for the disk.
func (f *StateFile) save(s Saved) {
	s.BootID = f.bootID
	select {
	case <-f.queue:
	default:
	}
	f.queue <- s
}

func (f *StateFile) write() {
	defer close(f.done)
	for s := range f.queue {
		data, err := json.Marshal(s)
		if err != nil {
			continue
		}
		// A state file that cannot be written costs a leadership at the next restart, nothing else.
		tmp := f.path + ".new"
		if os.WriteFile(tmp, data, 0o600) == nil {
			_ = os.Rename(tmp, f.path)
		}
	}
}

// Close writes what is queued. keep false removes the file: there is nothing to take up.
func (f *StateFile) Close(keep bool) error {
	close(f.queue)
	<-f.done
	defer f.lock.Close()
	if keep {
		return nil
	}
	err := os.Remove(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.Remove(filepath.Clean(f.path+".lock")))
}
