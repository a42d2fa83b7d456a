package elector

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"
)

// State is an election as GET /v1/elections/{e} tells it.
type State struct {
	Election     string      `json:"election"`
	Role         Role        `json:"role"`
	ID           string      `json:"id,omitempty"`
	Token        uint64      `json:"token,omitempty"`
	Term         uint64      `json:"term,omitempty"`
	LeaseMS      int64       `json:"lease_ms"`
	RemainingMS  int64       `json:"remaining_ms,omitempty"`
	DeadlineBoot int64       `json:"deadline_boottime_ns,omitempty"`
	Stepdown     bool        `json:"stepdown,omitempty"`
	Leader       *LeaderInfo `json:"leader"`
	Candidates   []string    `json:"candidates"`
	Waiting      []string    `json:"waiting,omitempty"` // this elector's own applications
	Blocked      Reason      `json:"blocked,omitempty"`
	Connected    bool        `json:"connected"`
	LastLost     *lastLost   `json:"last_lost,omitempty"`
	Index        uint64      `json:"index"`
}

type lastLost struct {
	Token  uint64 `json:"token"`
	Reason string `json:"reason"`
}

func (a *handlers) stateOf(v *View) State {
	now := a.el.clock.Now()
	s := State{Election: v.Election, Role: v.Role(now), ID: v.Holder, Token: v.Token, Term: v.Term, LeaseMS: v.Lease.Milliseconds(), Stepdown: v.Stepdown,
		Leader: v.Leader, Candidates: v.Candidates, Waiting: v.Local, Blocked: v.Blocked, Connected: v.Connected, Index: v.Index}
	if v.Holder != "" {
		s.RemainingMS, s.DeadlineBoot = max(0, v.Deadline.Sub(now).Milliseconds()), int64(v.Deadline)
	}
	if v.LostReason != "" {
		s.LastLost = &lastLost{v.LostToken, v.LostReason}
	}
	if s.Candidates == nil {
		s.Candidates = []string{}
	}
	return s
}

// state answers at once, or, with ?index=N, when the election's index is above N; 304 when it is not within ?wait.
func (a *handlers) state(w http.ResponseWriter, r *http.Request, election string) {
	query := r.URL.Query()
	var index uint64
	wait := 5 * time.Minute
	var err error
	if s := query.Get("index"); s != "" {
		if index, err = strconv.ParseUint(s, 10, 64); err != nil {
			writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", fmt.Sprintf("index %q is not a number", s)))
			return
		}
	}
	if s := query.Get("wait"); s != "" {
		if wait, err = time.ParseDuration(s); err != nil || wait < 0 || wait > 10*time.Minute {
			writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", fmt.Sprintf("wait %q is not a duration between 0s and 10m", s)))
			return
		}
	}
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		changed := a.el.feed.changed(election)
		v := a.el.feed.view(election)
		if !query.Has("index") || v.Index != index { // a higher one: somebody remembers an earlier life of this elector
			writeJSON(w, http.StatusOK, v.Index, a.stateOf(v))
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			w.Header().Set("X-Elector-Index", strconv.FormatUint(v.Index, 10))
			w.WriteHeader(http.StatusNotModified)
			return
		case <-r.Context().Done():
			return
		case <-a.el.ended:
			writeRefusal(w, refuse(http.StatusServiceUnavailable, "stopping", "this elector is shutting down"))
			return
		}
	}
}

func (a *handlers) list(w http.ResponseWriter, r *http.Request) {
	out := struct {
		*Info
		Elections []State `json:"elections"`
	}{Info: a.el.feed.info.Load(), Elections: []State{}}
	for _, name := range a.el.cfg.Elections {
		out.Elections = append(out.Elections, a.stateOf(a.el.feed.view(name)))
	}
	writeJSON(w, http.StatusOK, 0, out)
}

// stream is one client that reads server-sent events.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	return &stream{w, http.NewResponseController(w)}
}

// send writes one event.
func (s *stream) send(id uint64, event string, data any) error {
	return s.write(frame(id, event, data))
}

// write writes an event that is encoded. A client that does not read for ten seconds is cut off.
func (s *stream) write(frame []byte) error {
	// Not every writer has deadlines; those of real connections have.
	_ = s.rc.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.w.Write(frame); err != nil {
		return err
	}
	return s.rc.Flush()
}

// beat is sent every third of a lease, so that a reader notices a dead connection, and a leader reads its deadline.
func (a *handlers) beat() time.Duration { return a.el.cfg.Lease / 3 }

// events streams the changes of one election, or of all (""). It begins with the state, or, with Last-Event-ID, with what was missed.
func (a *handlers) events(w http.ResponseWriter, r *http.Request, election string) {
	after, resume, ok := lastEventID(r)
	if !ok {
		writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", "Last-Event-ID is not a number"))
		return
	}
	s := newStream(w)
	beat := time.NewTicker(a.beat())
	defer beat.Stop()
	for {
		changed := a.el.feed.changed(election)
		events, last, remembered := a.el.feed.since(after, election)
		if !resume || !remembered {
			if a.sendStates(s, election, last) != nil {
				return
			}
			events, resume = nil, true
		}
		for _, ev := range events {
			if s.write(ev.frame()) != nil {
				return
			}
		}
		after = last
	wait:
		for {
			select {
			case <-changed:
				break wait
			case <-beat.C:
				if s.send(0, "beat", a.beatOf(election)) != nil {
					return
				}
			case <-r.Context().Done():
				return
			case <-a.el.ended:
				return
			}
		}
	}
}

func lastEventID(r *http.Request) (id uint64, given, ok bool) {
	s := r.Header.Get("Last-Event-ID")
	if s == "" {
		s = r.URL.Query().Get("index")
	}
	if s == "" {
		return 0, false, true
	}
	id, err := strconv.ParseUint(s, 10, 64)
	return id, true, err == nil
}

func (a *handlers) sendStates(s *stream, election string, index uint64) error {
	for _, name := range a.el.cfg.Elections {
		if election == "" || name == election {
			if err := s.send(index, "state", a.stateOf(a.el.feed.view(name))); err != nil {
				return err
			}
		}
	}
	return nil
}

type beatData struct {
	Election     string `json:"election"`
	Role         Role   `json:"role"`
	Token        uint64 `json:"token,omitempty"`
	RemainingMS  int64  `json:"remaining_ms"`
	DeadlineBoot int64  `json:"deadline_boottime_ns,omitempty"`
}

func (a *handlers) beatOf(election string) any {
	now := a.el.clock.Now()
	one := func(name string) beatData {
		v := a.el.feed.view(name)
		b := beatData{Election: name, Role: v.Role(now), Token: v.Token}
		if b.Role == Leader {
			b.RemainingMS, b.DeadlineBoot = v.Deadline.Sub(now).Milliseconds(), int64(v.Deadline)
		}
		return b
	}
	if election != "" {
		return one(election)
	}
	leading := []beatData{}
	for _, name := range a.el.cfg.Elections {
		if b := one(name); b.Role != Follower {
			leading = append(leading, b)
		}
	}
	return map[string]any{"held": leading}
}

// hold is the tether: while the stream is open the application lives; when it closes, for whatever reason, it has ended, and so has
// its leadership.
func (a *handlers) hold(w http.ResponseWriter, r *http.Request, election string) {
	token, err := strconv.ParseUint(r.URL.Query().Get("token"), 10, 64)
	if err != nil || token == 0 {
		writeRefusal(w, refuse(http.StatusBadRequest, "bad_request", "?token= is missing: it comes with the answer to become"))
		return
	}
	after := a.el.feed.view(election).Index
	rep, err := a.el.ask(r.Context(), evTether{election: election, token: token})
	if err != nil || rep.refusal != nil {
		a.fail(w, rep, err)
		return
	}
	var failed error
	defer func() {
		end := evTether{election: election, token: token, closed: true, stuck: errors.Is(failed, os.ErrDeadlineExceeded)}
		a.el.ask(context.WithoutCancel(r.Context()), end)
	}()
	failed = a.tethered(w, r, rep.grant, after)
}

// tethered streams what happens to a leadership until it or the connection ends. It returns the error of a write that failed.
func (a *handlers) tethered(w http.ResponseWriter, r *http.Request, grant *Grant, after uint64) error {
	election, token := grant.Election, grant.Token
	s := newStream(w)
	if err := s.send(grant.Index, "grant", grant); err != nil {
		return err
	}
	beat := time.NewTicker(a.beat())
	defer beat.Stop()
	for ended := false; ; {
		changed := a.el.feed.changed(election)
		events, last, _ := a.el.feed.since(after, election)
		after = last
		for _, ev := range events {
			if ev.Token != token || ev.Type == EventElected {
				continue
			}
			if err := s.write(ev.frame()); err != nil || ev.Type == EventLost {
				return err
			}
		}
		if v := a.el.feed.view(election); v.Holder == "" || v.Token != token {
			if ended {
				return nil
			}
			ended = true // the view precedes its event by a moment
		}
		select {
		case <-changed:
		case <-beat.C:
			if err := s.send(0, "beat", a.beatOf(election)); err != nil {
				return err
			}
		case <-r.Context().Done():
			return nil
		case <-a.el.ended:
			return nil
		}
	}
}
