package command

// ballast makes a small heap larger in the eyes of the garbage collector, which lets it grow by as much as lives: of Go's 4 MiB at the beginning
// thousands of items a second fill the rest every few milliseconds, a sixth of a coordinator's processor time. Nobody touches these bytes, so
// they are nowhere in memory. What may lie there besides is their number, whatever the size of the heap: no share of it, as with another GOGC.
var ballast []byte

// growHeap gives the heap of a process its ballast.
func growHeap() { ballast = make([]byte, 5<<20) }
