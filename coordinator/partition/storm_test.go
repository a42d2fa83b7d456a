package partition_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"retinue/internal/consulkit/consultest"
)

// ledger knows which holds there were and which of them were given, and so which may be clean.
type ledger struct {
	holds map[int]map[uint64]bool // by partition and epoch: whether it was given
	wrong []string
}

// noteAll takes down what everybody holds. The rig's lock is held.
func (r *rig) noteAll() {
	for _, o := range r.all {
		for p, c := range o.claims(r.n) {
			if _, known := r.book.holds[p][c.Epoch]; known {
				continue
			}
			r.book.note(p, c.Epoch, false)
			before := uint64(0)
			for epoch := range r.book.holds[p] {
				if epoch < c.Epoch {
					before = max(before, epoch)
				}
			}
			if given := before == 0 || r.book.holds[p][before]; c.Clean && !given {
				r.book.wrong = append(r.book.wrong, fmt.Sprintf("partition %d: %s has it clean with %d, and nobody gave %d", p, o.id, c.Epoch, before))
			}
		}
	}
}

func (l *ledger) note(p int, epoch uint64, given bool) {
	if l.holds == nil {
		l.holds = map[int]map[uint64]bool{}
	}
	if l.holds[p] == nil {
		l.holds[p] = map[uint64]bool{}
	}
	l.holds[p][epoch] = l.holds[p][epoch] || given
}

// Ways to Consul come and go, coordinators end and start again, withdraw and come back, Consul stands still: never do two hold a partition,
// none is clean that was not given, and in the end all is shared again.
func TestStorm(t *testing.T) {
	const n, coordinators = 16, 4
	r := newRig(t, n, consultest.Start(t))
	length := 15 * time.Second
	if testing.Short() {
		length = 4 * time.Second
	}
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	var live []*one
	for i := range coordinators {
		live = append(live, r.start(fmt.Sprintf("c%d@h", i)))
	}
	r.obey(live...)
	counts := map[string]int{}
	for end := time.Now().Add(length); time.Now().Before(end); {
		i := rnd.IntN(len(live))
		o := live[i]
		pause := time.Duration(rnd.IntN(2500)) * time.Millisecond
		switch what := rnd.IntN(10); {
		case what < 5: // some cut at once, some for so short that their sessions last
			o.wire.Cut()
			time.Sleep(min(pause, 1500*time.Millisecond))
			o.wire.Mend()
			counts["cut"]++
		case what < 7:
			o.stop()
			live[i] = r.start(o.id)
			r.obey(live[i])
			counts["restart"]++
		case what < 9:
			o.Stand(false)
			time.Sleep(pause / 8)
			o.Stand(true)
			counts["withdraw"]++
		default:
			if err := r.consul.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			time.Sleep(pause / 2)
			if err := r.consul.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			counts["consul stood still"]++
		}
		time.Sleep(pause / 10)
	}
	r.shares(20*time.Second, []int{4, 4, 4, 4}, live...)
	r.exclusive()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, wrong := range r.book.wrong {
		t.Error(wrong)
	}
	holds, given := 0, 0
	for _, epochs := range r.book.holds {
		for _, g := range epochs {
			if holds++; g {
				given++
			}
		}
	}
	if given == 0 || given == holds || len(counts) == 0 {
		t.Errorf("%d holds, %d given", holds, given)
	}
	t.Logf("%v: %d holds, %d of them given; %d samples", counts, holds, given, r.samples)
}
