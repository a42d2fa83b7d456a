package lifecycle

import (
	"maps"
	"strings"
	"time"
)

// view is the state as Status shows it; For holds when the phase began until Status reads the clock.
func (m *machine) view() Status {
	s := Status{
		Phase:     m.s.Phase,
		For:       time.Duration(m.s.Changed),
		Ready:     m.s.Phase == Running,
		AppStatus: m.status,
		Stopping:  m.saidStop,
		Aborts:    m.s.Aborts,
		Exit:      m.s.Exit,
		Hooks:     maps.Clone(m.lastHook),
	}
	if m.op != nil {
		s.Operation = string(m.op.verb)
	}
	if m.run != nil {
		s.Hook, s.Progress = m.run.hook.Name, m.run.last
	}
	return s
}

// verbOf says which operation a signal stands for.
func (e *Engine) verbOf(signal string) (verb, bool) {
	switch strings.ToLower(signal) {
	case "pause":
		return verbPause, true
	case "resume":
		return verbResume, true
	case "drain":
		return verbDrain, true
	case "save":
		return verbSave, true
	}
	h, ok := e.opts.Config.Hooks[OnConfig]
	if !ok {
		return "", false
	}
	name := strings.ToUpper(signal)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	return verbConfig, name == h.OnSignal
}
