package gather

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"retinue/internal/clock"
)

// Timeline is one request as it went: for people who ask why it was slow, or not whole.
type Timeline struct {
	ID         string         `json:"id"`
	Time       time.Time      `json:"time"`
	Method     string         `json:"method"`
	Path       string         `json:"path"`
	Status     int            `json:"status"`
	Cause      string         `json:"cause,omitempty"`
	Reason     string         `json:"reason,omitempty"`
	Policy     string         `json:"policy"`
	Coverage   float64        `json:"coverage"`
	Shards     CoverageLine   `json:"shards"`
	Problems   []ShardProblem `json:"problems,omitempty"`
	TotalMS    float64        `json:"total_ms"`
	LeavesMS   float64        `json:"leaves_ms"`
	MergeMS    float64        `json:"merge_ms"`
	DeadlineMS float64        `json:"deadline_ms"`
	GatherMS   float64        `json:"gather_ms"`
	HedgeMS    float64        `json:"hedge_after_ms,omitempty"`
	Hedges     int            `json:"hedges"`
	HedgesWon  int            `json:"hedges_won"`
	Calls      []Call         `json:"calls,omitempty"`
	Left       int            `json:"calls_left_out,omitempty"`
}

// Call is one leaf call of a timeline.
type Call struct {
	Shard   int     `json:"shard"`
	Replica string  `json:"replica"`
	Node    string  `json:"node,omitempty"`
	Kind    string  `json:"kind"`
	StartMS float64 `json:"start_ms"`
	EndMS   float64 `json:"end_ms"`
	Outcome string  `json:"outcome"`
	Won     bool    `json:"won"`
	Status  int     `json:"status,omitempty"`
	Bytes   int     `json:"bytes,omitempty"`
	Check   string  `json:"check,omitempty"` // of a leaf that was asked as a last resort: critical, warning or deregistered
	Detail  string  `json:"detail,omitempty"`
}

const (
	keptTimelines = 128
	keptCalls     = 256 // of one timeline: the slowest
)

// timelines keeps the last of them.
type timelines struct {
	mu   sync.Mutex
	ring []*Timeline
	next int
}

func newTimelines() *timelines { return &timelines{} }

func (t *timelines) add(one *Timeline) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.ring) < keptTimelines {
		t.ring = append(t.ring, one)
		return
	}
	t.ring[t.next] = one
	t.next = (t.next + 1) % keptTimelines
}

// list returns them, newest first, without their calls.
func (t *timelines) list() []Timeline {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Timeline, 0, len(t.ring))
	for i := range t.ring {
		one := *t.ring[(t.next+len(t.ring)-1-i)%len(t.ring)]
		one.Calls, one.Problems = nil, nil
		out = append(out, one)
	}
	return out
}

// find returns the newest of a request.
func (t *timelines) find(id string) *Timeline {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.ring {
		if one := t.ring[(t.next+len(t.ring)-1-i)%len(t.ring)]; one.ID == id {
			return one
		}
	}
	return nil
}

// timeline describes the request that just ended.
func (a *answering) timeline(now clock.Instant) *Timeline {
	g, req := a.g, a.req
	if a.merged == 0 {
		a.merged = a.gathered
	}
	t := &Timeline{ID: req.id, Time: time.Now().Add(-now.Sub(req.start)).UTC(), Method: req.method, Path: req.path, Status: a.status, Cause: a.cause, Reason: a.reason,
		Policy: req.policy.String(), Coverage: a.coverage.Fraction(), Shards: a.coverage.line(), Problems: g.problems(), TotalMS: ms(now.Sub(req.start)),
		LeavesMS: ms(a.gathered.Sub(req.start)), MergeMS: ms(a.merged.Sub(a.gathered)), DeadlineMS: ms(req.deadline.Total), GatherMS: ms(req.deadline.Gather),
		HedgeMS: ms(g.delay), Hedges: g.hedges, HedgesWon: g.won}
	for i := range g.shards {
		s := &g.shards[i]
		for _, att := range s.attempts {
			end := att.end
			if end == 0 {
				end = now
			}
			t.Calls = append(t.Calls, Call{Shard: s.id, Replica: att.replica.name, Node: att.replica.node, Kind: string(att.why), StartMS: ms(att.start.Sub(req.start)),
				EndMS: ms(end.Sub(req.start)), Outcome: string(att.outcome), Won: s.winner == att, Status: att.status, Bytes: att.size, Check: att.check, Detail: att.detail})
		}
	}
	if len(t.Calls) > keptCalls {
		slices.SortStableFunc(t.Calls, func(a, b Call) int { return cmp.Compare(b.EndMS, a.EndMS) })
		t.Left = len(t.Calls) - keptCalls
		t.Calls = slices.Clone(t.Calls[:keptCalls])
		slices.SortStableFunc(t.Calls, func(a, b Call) int { return a.Shard - b.Shard })
	}
	return t
}
