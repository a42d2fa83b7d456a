package coordinator

import (
	"strings"
	"testing"

	"retinue/internal/mutanttest"
)

// mutants are the mistakes that work queues are known to make, put into the code on purpose. Each must turn a test red.
var mutants = []struct {
	name     string
	file     string
	old, new string
	tests    string // that notice it, after the folder of their package if that is another
}{
	{"an ack before the commit", "finish.go",
		"	case m.cfg.Record:\n		it.state = item.Committing\n		m.offer(it)\n", "	case m.cfg.Record:\n		it.state = item.Committing\n		m.offer(it)\n		m.acks = append(m.acks, it.handle)\n		it.state = item.Acking\n", "TestModel"},
	{"an ack before the next stage has its messages", "finish.go",
		"	it.state = item.Publishing\n	m.emit(m.publication(it))\n}\n", "	m.emit(m.publication(it))\n	m.acknowledge(it)\n}\n", "TestModel"},
	{"a loser that goes on with its own output", "finish.go",
		"		m.settle(now, it, ev.record)\n	}\n}\n\n// settle", "		m.settle(now, it, *it.plan.record)\n	}\n}\n\n// settle", "TestModel"},
	{"no fence: the last rename wins", "commit/rename.go",
		"	if won, err := r.read(target); won != nil || err != nil {", "	os.RemoveAll(target)\n	if won, err := r.read(target); won != nil || err != nil {", "commit:TestRename"},
	{"no fence: a record in Consul that is overwritten", "commit/point.go",
		"current, err := j.KV.Create(ctx, key(rec.Stage, rec.ID), value)", "current, err := j.KV.Create(ctx, key(rec.Stage, rec.ID)+rec.Attempt, value)", "commit:TestJournal"},
	{"leases that are not extended", "machine.go",
		"		m.emit(fxExtend{handles})\n", "		m.extending = false\n", "TestLongItemRunsOnce"},
	{"an extension at the end of the lease", "machine.go",
		"	m.extendAt = now.Add(m.cfg.Lease / 3)\n	var handles", "	m.extendAt = now.Add(m.cfg.Lease)\n	var handles", "TestLongItemRunsOnce"},
	{"attempts burned by a worker that is not ready", "attempt.go",
		"	if !class.Counted() {\n", "	if !class.Counted() && class != item.NotReady {\n", "TestNotReadyBurnsNoAttempt"},
	{"a lost attempt that goes on", "machine.go",
		"		m.end(it.call, item.Infra, \"the lease was lost\")\n", "", "TestLostLease"},
	{"an attempt that ends because an extension was not answered", "machine.go",
		"		case lost(err):\n			m.lose(it)", "		case err != nil:\n			m.lose(it)", "TestLostLease"},
	{"a dead letter that a late worker can still commit", "finish.go",
		"	case m.cfg.Record:\n", "	case m.cfg.Record && p.state != item.Dead:\n", "TestModel"},
	{"a history that a stop forgets", "flow.go",
		"		case it.dirty && !m.inPlace(it):\n", "		case false:\n", "TestStopKeepsTheHistory"},
	{"an attempt counted at the stop", "attempt.go",
		"	default:\n		m.fail(now, c, it, item.Infra, v)\n", "	default:\n		m.fail(now, c, it, item.Error, v)\n", "TestDrainOnStop"},
	{"a duplicate that runs beside the first", "schedule.go",
		"!it.checking && m.busy[it.id] == nil && ", "!it.checking && ", "TestDuplicates"},
	{"the innocent half of a batch punished", "bisect.go",
		"		if t != nil {\n			m.close(t)\n		}\n		t = &bisection", "		if t != nil {\n			for _, it := range t.suspects {\n				it.env.History = append(it.env.History, item.Attempt{N: 9, Class: item.Crash})\n			}\n			m.close(t)\n		}\n		t = &bisection", "TestBisection"},
	{"a worker's restart that acquits the poison", "attempt.go",
		"return k != worker.NotReady && k != worker.Infra && k", "return k != worker.Infra && k", "TestBisectionOverARestart"},
	{"a suspect that waits for ever when the others went away", "bisect.go",
		"len(t.suspects) == 0 || len(t.suspects) == 1 && t.testing == 0", "len(t.suspects) == 0", "TestSuspectLeftAlone"},
	{"work that is done again because storage did not answer", "finish.go",
		"		m.offer(it)\n		case item.Publishing:", "		m.later(now, it, 0)\n		case item.Publishing:", "TestStorageTrouble"},
	{"a parked key that goes on", "attempt.go",
		"		l.parked = it.id\n", "", "TestLanes"},
	{"an ack before the group has its part", "finish.go",
		"	if len(it.plan.outs) == 0 && it.plan.part == nil {\n", "	if len(it.plan.outs) == 0 {\n", "TestForgetGroups"},
	{"a record that is forgotten while something older waits", "retention.go",
		"	case d.Oldest >= c.cfg.Keep:\n", "	case false:\n", "TestForgetsNothingThatCanComeBack"},
	{"an input whose sum nobody looks at", "blob/cache.go",
		"	case d.ref.SHA256 != \"\" && sum != d.ref.SHA256:\n", "	case false:\n", "blob:TestBlame"},
	{"an upload in the place of another attempt's", "commit/artifacts.go",
		"	return below(a.items(stage, id), attempt)\n", "	return below(a.items(stage, id), \"x\")\n", "TestUploadsOfLosers"},
	{"an item that ends in each of two queues", "finish.go",
		"Stage: m.cfg.stage()", "Stage: m.cfg.Queue", "TestTwoQueuesOneStage"},
	{"an item that is looked for in its queue, and not in its stage", "effects.go",
		"Read(ctx, c.cfg.stage(), fx.id)", "Read(ctx, c.cfg.Queue, fx.id)", "TestTwoQueuesOneStage"},
	{"attempts that are forgotten on the way to another queue", "divert.go",
		"	m.republish(now, it, m.cfg.Divert,", "	it.env.History = nil\n	m.republish(now, it, m.cfg.Divert,", "TestDivert"},
	{"priority without aging", "schedule.go",
		"return now.Sub(it.aged) + ", "return ", "TestPriorityAndAging"},
}

func TestMutantsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: mutants are slow (-short)")
	}
	var list []mutanttest.Mutant
	for _, m := range mutants {
		folder, tests, ok := strings.Cut(m.tests, ":")
		if !ok {
			folder, tests = "", m.tests
		}
		list = append(list, mutanttest.Mutant{Name: m.name, File: m.file, Old: m.old, New: m.new, Tests: tests, Package: folder})
	}
	mutanttest.Run(t, list, "-test.short")
}
