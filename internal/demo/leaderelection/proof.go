package leaderelection

import (
	"fmt"
	"time"
)

// proof is what the store's log and the client's acknowledgements show when they are laid side by side.
type proof struct {
	acked   int // writes that the application acknowledged to the client
	lost    int // acknowledged, but not in the log
	refused int // sent under an old token and refused by the store
	stale   int // in the log behind a write with a higher token
	shared  int // tokens under which more than one allocation wrote
}

// prove reads the log as it is, without trust in the check that the store made.
func prove(log []accepted, refused []Write, acks []ack) proof {
	p := proof{acked: len(acks), refused: len(refused)}
	kept := make(map[ack]bool, len(log))
	writers := map[uint64]string{}
	var highest uint64
	for _, w := range log {
		kept[ack{w.Seq, w.Token}] = true
		if w.Token < highest {
			p.stale++
		}
		highest = max(highest, w.Token)
		if first, ok := writers[w.Token]; !ok {
			writers[w.Token] = w.Writer
		} else if first != w.Writer {
			p.shared++
		}
	}
	for _, a := range acks {
		if !kept[a] {
			p.lost++
		}
	}
	return p
}

func (p proof) String() string {
	return fmt.Sprintf("%d writes lost, %d stale writes accepted", p.lost, p.stale+p.shared)
}

// longestGap is the longest time in which nobody wrote, from the last write
// before a moment on, in milliseconds; 0 when nobody has written since. It is an
// upper bound of the time without a leader, by at most the pause between two writes.
func longestGap(log []accepted, since time.Time) (ms float64) {
	for i := 1; i < len(log); i++ {
		if log[i].at.After(since) {
			ms = max(ms, float64(log[i].at.Sub(log[i-1].at).Microseconds())/1000)
		}
	}
	return ms
}
