package gather

import (
	"sync"
	"time"

	"retinue/internal/clock"
)

const (
	budgetWindow = 10 // seconds that an unspent token is good for
	// fewTokens is the least that a window has beside its earnings, so that a root with little traffic can hedge and retry too.
	fewTokens = 10
	// outage is how many times the budget must be wanted before the brake acts: then it is not a few slow replicas, and more
	// load does no good.
	outage = 3
)

// Budget is a token bucket: each leaf call earns a share of a token, which is good for ten seconds. In any ten seconds no more is
// spent than was earned in them, and the reserve.
type Budget struct {
	ratio   float64
	reserve float64
	brake   bool // refuse everything while far more is wanted than there is

	mu    sync.Mutex
	slots [budgetWindow]budgetSlot
	sum   budgetSlot
	now   int64 // second of the newest slot

	spent, refused uint64
}

type budgetSlot struct{ earned, spent, wanted float64 }

// NewBudget returns a budget of ratio tokens per call, and reserve of them in any ten seconds.
func NewBudget(ratio float64, reserve int, brake bool) *Budget {
	return &Budget{ratio: ratio, reserve: float64(reserve), brake: brake}
}

func (b *Budget) advance(now clock.Instant) *budgetSlot {
	second := int64(now) / int64(time.Second)
	if second-b.now >= budgetWindow {
		b.slots, b.sum, b.now = [budgetWindow]budgetSlot{}, budgetSlot{}, second
	}
	for b.now < second {
		b.now++
		old := &b.slots[b.now%budgetWindow]
		b.sum.earned -= old.earned
		b.sum.spent -= old.spent
		b.sum.wanted -= old.wanted
		*old = budgetSlot{}
	}
	return &b.slots[b.now%budgetWindow]
}

// Earn notes calls.
func (b *Budget) Earn(now clock.Instant, calls int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	slot := b.advance(now)
	slot.earned += b.ratio * float64(calls)
	b.sum.earned += b.ratio * float64(calls)
}

// Spend takes a token, if there is one.
func (b *Budget) Spend(now clock.Instant) bool { return b.spend(now, 1) }

// SpendAgain is Spend for who was refused before: it does not count as wanted twice.
func (b *Budget) SpendAgain(now clock.Instant) bool { return b.spend(now, 0) }

func (b *Budget) spend(now clock.Instant, wanted float64) bool {
	if b.ratio == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	slot := b.advance(now)
	slot.wanted += wanted
	b.sum.wanted += wanted
	if b.sum.spent+1 > b.sum.earned+b.reserve || b.brake && b.sum.wanted > outage*(b.sum.earned+b.reserve) {
		b.refused += uint64(wanted)
		return false
	}
	slot.spent++
	b.sum.spent++
	b.spent++
	return true
}

// Want counts what nobody asks for, because there is another reason against it, among what is wanted.
func (b *Budget) Want(now clock.Instant) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now).wanted++
	b.sum.wanted++
	b.refused++
}

// BudgetState is a budget as people see it.
type BudgetState struct {
	Share   float64 `json:"share"`
	Tokens  float64 `json:"tokens"`
	Spent   uint64  `json:"spent_total"`
	Refused uint64  `json:"refused_total"`
	Braked  bool    `json:"braked"`
}

// State returns what there is now.
func (b *Budget) State(now clock.Instant) BudgetState {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	return BudgetState{Share: b.ratio, Tokens: b.sum.earned + b.reserve - b.sum.spent, Spent: b.spent, Refused: b.refused,
		Braked: b.brake && b.sum.wanted > outage*(b.sum.earned+b.reserve)}
}
