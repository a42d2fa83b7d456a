package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"retinue/internal/clock"
)

// script drives a machine by the commands of a text file, event by event, without a clock, a task or a goroutine.
type script struct {
	t     *testing.T
	m     *machine
	cfg   Config
	limit time.Duration
	now   clock.Instant
	start clock.Instant
	calls uint64
	names map[uint64]string
}

func newScript(t *testing.T) *script {
	start := clock.Instant(time.Hour)
	return &script{t: t, now: start, start: start, names: map[uint64]string{}}
}

// TestScripts runs testdata/*.txt; go test -run TestScripts -rewrite writes what the machine does now.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		s := newScript(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.t = t
			return s.command(d)
		})
	})
}

func (s *script) command(d *datadriven.TestData) string {
	switch d.Cmd {
	case "task": // a new task with the block of the input
		var value any
		if d.Input != "" {
			if err := json.Unmarshal([]byte(d.Input), &value); err != nil {
				d.Fatalf(s.t, "%v", err)
			}
		}
		cfg, err := Decode(value)
		if err != nil {
			return err.Error()
		}
		if cfg == nil {
			cfg = &Config{Budget: Separate}
		}
		s.cfg, s.limit, s.now = *cfg, s.duration(d, "limit", 5*time.Minute), s.start
		s.m = newMachine(s.cfg, s.limit, "id")
		return s.flush()
	case "call":
		s.calls++
		verb := verb(d.CmdArgs[0].Key)
		s.names[s.calls] = string(verb)
		s.m.step(s.now, evCall{id: s.calls, verb: verb, stop: StopRequest{Signal: "SIGTERM", Timeout: s.duration(d, "timeout", 5*time.Second)}})
	case "acted":
		s.m.step(s.now, evActed{err: s.err(d)})
	case "hooked":
		if s.m.run == nil {
			return "no hook is under way"
		}
		o := outcome{err: s.err(d), unreachable: d.HasArg("unreachable"), again: d.HasArg("again"), after: s.duration(d, "after", 0)}
		d.MaybeScanArgs(s.t, "detail", &o.detail)
		s.m.step(s.now, evHooked{s.m.run.number, o})
	case "exited":
		var status ExitStatus
		d.MaybeScanArgs(s.t, "code", &status.Code)
		d.MaybeScanArgs(s.t, "signal", &status.Signal)
		s.m.step(s.now, evExited{status})
	case "notify":
		s.m.step(s.now, evNotify{Notice{Ready: d.HasArg("ready"), Stopping: d.HasArg("stopping"), Watchdog: d.HasArg("watchdog"), Trigger: d.HasArg("trigger"), Extend: s.duration(d, "extend", 0)}})
	case "pass": // lets time pass, with every tick that the machine asks for
		end := s.now.Add(s.duration(d, "for", 0))
		for s.m.next() <= end {
			s.now = max(s.now, s.m.next())
			s.m.step(s.now, evTick{})
		}
		s.now = end
	case "crash": // the driver dies and is started anew
		data := s.m.encode()
		m, err := recoverMachine(s.cfg, s.limit, s.now, data)
		if err != nil {
			return err.Error()
		}
		s.m = m
	default:
		d.Fatalf(s.t, "no such command: %s", d.Cmd)
	}
	return s.flush()
}

func (s *script) err(d *datadriven.TestData) error {
	var text string
	d.MaybeScanArgs(s.t, "err", &text)
	if text == "" {
		return nil
	}
	return errors.New(text)
}

func (s *script) duration(d *datadriven.TestData, name string, otherwise time.Duration) time.Duration {
	if !d.HasArg(name) {
		return otherwise
	}
	var text string
	d.ScanArgs(s.t, name, &text)
	v, err := time.ParseDuration(text)
	if err != nil {
		d.Fatalf(s.t, "%v", err)
	}
	return v
}

// flush says in words what the machine wants done, and where it is.
func (s *script) flush() string {
	var out strings.Builder
	fx, _ := s.m.take()
	for _, one := range fx {
		fmt.Fprintln(&out, s.words(one))
	}
	fmt.Fprintf(&out, "[%s at %s", s.m.s.Phase, s.now.Sub(s.start))
	if s.m.op != nil {
		fmt.Fprintf(&out, ", %s under way", s.m.op.verb)
	}
	if at := s.m.next(); at != clock.Never {
		fmt.Fprintf(&out, ", next tick at %s", at.Sub(s.start))
	}
	out.WriteString("]\n")
	return out.String()
}

func (s *script) words(fx any) string {
	switch fx := fx.(type) {
	case fxHook:
		return fmt.Sprintf("hook %s (%s) attempt %d, reason %s, until %s, delivery %s", fx.hook.Name, fx.hook.Kind, fx.attempt, fx.reason, clock.Instant(fx.deadline).Sub(s.start), fx.delivery)
	case fxCancel:
		return "cancel the hook"
	case fxPlace:
		return "place the state"
	case fxStart:
		return "start the process"
	case fxFreeze:
		return "freeze"
	case fxThaw:
		return "thaw"
	case fxStop:
		return fmt.Sprintf("stop with %s, kill after %s", fx.signal, fx.timeout)
	case fxKill:
		return "kill"
	case fxSignal:
		return "signal " + fx.signal
	case fxEvent:
		return fmt.Sprintf("event %s -> %s: %s", fx.event.From, fx.event.To, fx.event.Message)
	case fxReply:
		if fx.err != nil {
			return fmt.Sprintf("answer %s: error: %v", s.names[fx.id], fx.err)
		}
		return strings.TrimSuffix(fmt.Sprintf("answer %s: ok, %s", s.names[fx.id], fx.detail), ", ")
	}
	return fmt.Sprintf("%T", fx)
}
