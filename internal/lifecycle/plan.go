package lifecycle

// A step is one part of an operation.
type step struct {
	kind  stepKind
	hook  HookName // stepHook
	phase Phase    // stepEnter
}

type stepKind int

const (
	stepHook stepKind = iota
	stepEnter
	stepPlace
	stepStart
	stepFreeze
	stepThaw
	stepStop
)

func enter(p Phase) step { return step{kind: stepEnter, phase: p} }
func (m *machine) hooks(names ...HookName) (steps []step) {
	for _, name := range names {
		if m.cfg.Has(name) {
			steps = append(steps, step{kind: stepHook, hook: name})
		}
	}
	return steps
}

// plan returns the steps of an operation that begins now.
func (m *machine) plan(v verb) (steps []step) {
	add := func(more ...step) { steps = append(steps, more...) }
	switch v {
	case verbStart:
		asFile := m.cfg.Has(RestoreState) && m.cfg.Hooks[RestoreState].Kind == KindFile
		if asFile {
			add(enter(Restoring), step{kind: stepPlace})
		}
		add(enter(Starting), step{kind: stepStart}, enter(Warming))
		if !asFile {
			add(m.hooks(RestoreState)...)
		}
		add(m.hooks(PostStart, Ready)...)
		add(enter(Running))
	case verbStop:
		switch m.s.Phase {
		case Created, Restoring, Starting:
			return []step{enter(Stopped)}
		case Stopping: // it was begun before, and Nomad tries again
			if !m.s.Ended {
				add(m.hooks(PreStop)...)
			}
			add(step{kind: stepStop}, enter(Stopped))
			return steps
		case Paused:
			add(step{kind: stepThaw})
		}
		add(enter(Draining))
		add(m.hooks(PreDrain, Drain)...)
		if m.cfg.Has(SaveState) {
			add(enter(Saving))
			add(m.hooks(SaveState)...)
		}
		add(enter(Stopping))
		add(m.hooks(PreStop)...)
		add(step{kind: stepStop}, enter(Stopped))
	case verbPause:
		add(m.hooks(Pause)...)
		add(step{kind: stepFreeze})
	case verbResume:
		if m.s.Phase == Paused {
			add(step{kind: stepThaw})
		}
		add(m.hooks(Resume)...)
		add(enter(Running))
	case verbConfig:
		add(m.hooks(OnConfig)...)
	case verbDrain:
		add(enter(Draining))
		add(m.hooks(PreDrain, Drain)...)
	case verbSave, verbEvery:
		add(m.hooks(SaveState)...)
	}
	return steps
}
