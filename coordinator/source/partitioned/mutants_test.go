package partitioned

import (
	"testing"

	"retinue/internal/mutanttest"
)

// mutants are mistakes that bring keys out of order, put into the code on purpose. Each must turn a test red.
var mutants = []mutanttest.Mutant{
	{Name: "a partition begun while its last holder's leases run", File: "tend.go",
		Old: "	wait := s.wait\n", New: "	wait := time.Duration(0)\n"},
	{Name: "what was left, as it comes", File: "part.go",
		Old: "	slices.SortStableFunc(ms, func(a, b *source.Message) int { return a.Published.Compare(b.Published) })\n", New: ""},
	{Name: "a partition handed out that is somebody else's", File: "part.go",
		Old: "p.stale == 0 && p.heldLocked() }", New: "p.stale == 0 }"},
	{Name: "leases extended that are somebody else's", File: "part.go",
		Old: "!e.part.broken && e.part.heldLocked()\n", New: "!e.part.broken\n"},
	{Name: "a partition given away while something of it is in hand", File: "tend.go",
		Old: "p.leaving && len(p.inHand) == 0)", New: "p.leaving)"},
	{Name: "a lost lease that concerns one message only", File: "part.go",
		Old: "errors.Is(err, source.ErrClosed) {\n				p.breakUpLocked(\"a lease was lost\")\n", New: "errors.Is(err, source.ErrClosed) {\n"},
	{Name: "messages at the end of the buffer that were taken back", File: "part.go",
		Old: "		at, _ := slices.BinarySearchFunc(p.buffer, e, func(a, b *entry) int { return int(int64(a.seq) - int64(b.seq)) })\n", New: "		at := len(p.buffer)\n"},
}

func TestMutantsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("skip: mutants are slow (-short)")
	}
	list := make([]mutanttest.Mutant, len(mutants))
	for i, m := range mutants {
		m.Tests = "TestOrder|TestTakenBack|TestAfterADeath|TestHandOver|TestRobbed|TestOneLeaseLost|TestHoldIsLookedAt"
		list[i] = m
	}
	mutanttest.Run(t, list)
}
