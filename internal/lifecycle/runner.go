package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrUnreachable is what Host.HTTP returns, wrapped, when nobody listens at the address.
var ErrUnreachable = errors.New("nobody listens")

// outputLimit bounds the output of hooks other than save_state.
const outputLimit = 64 << 10

// runner carries out single attempts of hooks.
type runner struct {
	host   Host
	states States
	cfg    *Config
}

// place gives the saved state back as a file, before the process starts.
func (r *runner) place(ctx context.Context) (string, error) {
	h := r.cfg.Hooks[RestoreState]
	ctx, cancel := context.WithTimeoutCause(ctx, h.Timeout, fmt.Errorf("not done within %s", h.Timeout))
	defer cancel()
	state, found, err := r.load(ctx)
	if err != nil || !found {
		return "", err
	}
	if err := r.host.Place(ctx, state.Data); err != nil {
		return "", fmt.Errorf("place the state: %w", err)
	}
	return describe(state), nil
}

func describe(s State) string {
	word := fmt.Sprintf("%d bytes", len(s.Data))
	if s.AppVersion != "" {
		word += " of version " + s.AppVersion
	}
	return word
}

// load reads the newest state. One that cannot be used is set aside, so that the next start is a clean one.
func (r *runner) load(ctx context.Context) (State, bool, error) {
	if r.states == nil {
		return State{}, false, errors.New("no store is configured")
	}
	state, found, err := r.states.Load(ctx)
	if err == nil {
		return state, found, nil
	}
	var damaged interface{ Damaged() bool }
	if errors.As(err, &damaged) && damaged.Damaged() {
		if rejected := r.states.Reject(ctx, err.Error()); rejected != nil {
			err = fmt.Errorf("%w; setting it aside failed: %w", err, rejected)
		} else {
			err = fmt.Errorf("%w; it was set aside", err)
		}
	}
	return State{}, false, err
}

// run makes one attempt of a hook. left is the time until its deadline.
func (r *runner) run(ctx context.Context, fx fxHook, left time.Duration) outcome {
	if fx.hook.Name == RestoreState {
		return r.restore(ctx, fx, left)
	}
	o, body := r.ask(ctx, fx, left, nil)
	switch {
	case o.err != nil || o.again:
	case fx.hook.Name == Drain:
		o = drained(o, fx.hook, body)
	case fx.hook.Name == SaveState:
		o = r.save(ctx, body)
	}
	return o
}

// restore hands the saved state to the application after its start.
func (r *runner) restore(ctx context.Context, fx fxHook, left time.Duration) outcome {
	state, found, err := r.load(ctx)
	if err != nil || !found {
		return outcome{err: err, detail: "nothing to restore"}
	}
	o, _ := r.ask(ctx, fx, left, &state)
	var refused refusal
	if errors.As(o.err, &refused) && refused.status/100 == 4 {
		if err := r.states.Reject(ctx, "the application refused it: "+o.err.Error()); err != nil {
			o.err = fmt.Errorf("%w; setting it aside failed: %w", o.err, err)
		} else {
			o.err = fmt.Errorf("%w; it was set aside", o.err)
		}
	}
	if o.err == nil && !o.again {
		o.detail = describe(state)
	}
	return o
}

func (r *runner) save(ctx context.Context, body []byte) outcome {
	if r.states == nil {
		return outcome{err: errors.New("no store is configured")}
	}
	if err := r.states.Save(ctx, body); err != nil {
		return outcome{err: err}
	}
	return outcome{detail: fmt.Sprintf("%d bytes", len(body))}
}

// ask carries out a hook by its kind, and returns what it printed or answered.
func (r *runner) ask(ctx context.Context, fx fxHook, left time.Duration, state *State) (outcome, []byte) {
	h := fx.hook
	switch h.Kind {
	case KindSleep:
		timer := time.NewTimer(h.Sleep)
		defer timer.Stop()
		select {
		case <-timer.C:
			return outcome{}, nil
		case <-ctx.Done():
			return outcome{err: context.Cause(ctx)}, nil
		}
	case KindSignal:
		return outcome{err: r.host.Signal(ctx, h.Signal), detail: h.Signal}, nil
	case KindTCP:
		n, err := r.host.Connections(ctx, h.Port)
		return outcome{err: err}, strconv.AppendInt(nil, int64(n), 10)
	case KindExec:
		return r.exec(ctx, fx, left)
	case KindHTTP:
		return r.http(ctx, fx, left, state)
	}
	return outcome{err: fmt.Errorf("no such kind of hook: %s", h.Kind)}, nil
}

func (r *runner) limit(h Hook) int64 {
	if h.Name == SaveState {
		return r.cfg.State.MaxSize
	}
	return outputLimit
}

// facts are what a hook is told, in headers or in the environment.
func facts(fx fxHook, left time.Duration) [][2]string {
	all := [][2]string{
		{"Hook", string(fx.hook.Name)},
		{"Delivery", fx.delivery},
		{"Attempt", strconv.Itoa(fx.attempt)},
		{"Reason", fx.reason},
		{"Deadline-Ms", strconv.FormatInt(max(0, left.Milliseconds()), 10)},
	}
	if fx.exit != nil {
		all = append(all, [2]string{"Exit-Code", strconv.Itoa(fx.exit.Code)}, [2]string{"Exit-Signal", strconv.Itoa(fx.exit.Signal)})
	}
	return all
}

func (r *runner) exec(ctx context.Context, fx fxHook, left time.Duration) (outcome, []byte) {
	call := ExecCall{Command: fx.hook.Exec, Limit: r.limit(fx.hook)}
	for _, f := range facts(fx, left) {
		call.Env = append(call.Env, "RETINUE_"+strings.ToUpper(strings.ReplaceAll(f[0], "-", "_"))+"="+f[1])
	}
	res, err := r.host.Exec(ctx, call)
	switch {
	case err != nil:
		return outcome{err: err}, nil
	case int64(len(res.Stdout)) > call.Limit:
		return outcome{err: fmt.Errorf("printed more than %s", formatSize(call.Limit))}, nil
	case res.Code != 0:
		said := clip(append(bytes.TrimSpace(res.Stderr), bytes.TrimSpace(res.Stdout)...))
		return outcome{err: fmt.Errorf("exit code %d%s", res.Code, said)}, nil
	}
	return outcome{}, res.Stdout
}

// refusal is an answer that says no.
type refusal struct {
	status int
	said   string
}

func (r refusal) Error() string { return fmt.Sprintf("answered %d%s", r.status, r.said) }

func (r *runner) http(ctx context.Context, fx fxHook, left time.Duration, state *State) (outcome, []byte) {
	call := HTTPCall{Request: fx.hook.HTTP, Header: map[string]string{}, Limit: r.limit(fx.hook), FromHost: fx.hook.Name == OnExit}
	for _, f := range facts(fx, left) {
		call.Header["Retinue-"+f[0]] = f[1]
	}
	if state != nil {
		call.Body = state.Data
		call.Header["Content-Type"] = "application/octet-stream"
		call.Header["Retinue-App-Version"] = state.AppVersion
		call.Header["Retinue-Saved-At"] = state.SavedAt.UTC().Format(time.RFC3339)
	}
	res, err := r.host.HTTP(ctx, call)
	switch {
	case err != nil:
		return outcome{err: err, unreachable: errors.Is(err, ErrUnreachable)}, nil
	case int64(len(res.Body)) > call.Limit:
		return outcome{err: fmt.Errorf("answered more than %s", formatSize(call.Limit))}, nil
	case res.Status == 202 && res.RetryAfter != "":
		seconds, err := strconv.ParseFloat(strings.TrimSpace(res.RetryAfter), 64)
		if err != nil || !(seconds >= 0 && seconds <= MaxTimeout.Seconds()) {
			return outcome{err: fmt.Errorf("answered 202 with Retry-After %q: give seconds", clip([]byte(res.RetryAfter)))}, nil
		}
		return outcome{again: true, after: max(10*time.Millisecond, time.Duration(seconds*float64(time.Second))), detail: "asked to be asked again"}, nil
	case res.Status < 200 || res.Status > 299:
		return outcome{err: refusal{res.Status, clip(bytes.TrimSpace(res.Body))}}, nil
	}
	return outcome{}, res.Body
}

// clip shortens what a hook said, for an event.
func clip(said []byte) string {
	if len(said) == 0 {
		return ""
	}
	s := strings.ToValidUTF8(string(said[:min(len(said), 200)]), "?")
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == utf8.RuneError {
			return ' '
		}
		return c
	}, s)
	return ": " + s
}

// drained reads the answer of a drain hook: how much is in flight. A negative number -n of a command asks to be run again in
// n seconds (as BOSH has it); an empty answer says that all is done.
func drained(o outcome, h Hook, body []byte) outcome {
	n, err := inFlight(body)
	switch {
	case err != nil:
		return outcome{err: err}
	case n < 0 && h.Kind == KindExec:
		return outcome{again: true, after: min(time.Duration(-max(n, -int64(MaxTimeout/time.Second)))*time.Second, MaxTimeout), detail: fmt.Sprintf("again in %d s", -n)}
	case n < 0:
		return outcome{err: fmt.Errorf("answered %d in flight", n)}
	case n > 0:
		return outcome{again: true, detail: fmt.Sprintf("in flight %d", n)}
	}
	return outcome{detail: "in flight 0"}
}

func inFlight(body []byte) (int64, error) {
	said := bytes.TrimSpace(body)
	if len(said) == 0 {
		return 0, nil
	}
	if said[0] == '{' {
		var answer struct {
			InFlight *int64 `json:"in_flight"`
		}
		if err := json.Unmarshal(said, &answer); err != nil || answer.InFlight == nil {
			return 0, fmt.Errorf("answered no number and no {\"in_flight\": n}%s", clip(said))
		}
		return *answer.InFlight, nil
	}
	n, err := strconv.ParseInt(string(said), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("answered no number%s", clip(said))
	}
	return n, nil
}
