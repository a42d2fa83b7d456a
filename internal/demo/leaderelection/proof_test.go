package leaderelection

import (
	"testing"
	"time"
)

func logOf(writes ...Write) []accepted {
	log := make([]accepted, len(writes))
	for i, w := range writes {
		log[i] = accepted{Write: w, at: time.UnixMilli(int64(10 * i))}
	}
	return log
}

func TestProve(t *testing.T) {
	a1, a2 := Write{Token: 5, Writer: "a", Seq: 1}, Write{Token: 5, Writer: "a", Seq: 2}
	b3, late := Write{Token: 9, Writer: "b", Seq: 3}, Write{Token: 5, Writer: "a", Seq: 4}
	for name, tc := range map[string]struct {
		log  []accepted
		acks []ack
		want proof
	}{
		"all well":         {logOf(a1, a2, b3), []ack{{1, 5}, {2, 5}, {3, 9}}, proof{acked: 3}},
		"lost":             {logOf(a1, b3), []ack{{1, 5}, {2, 5}, {3, 9}}, proof{acked: 3, lost: 1}},
		"kept under other": {logOf(a1), []ack{{1, 9}}, proof{acked: 1, lost: 1}},
		"stale":            {logOf(a1, b3, late), nil, proof{stale: 1}},
		"two writers":      {logOf(a1, Write{Token: 5, Writer: "b", Seq: 2}), nil, proof{shared: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := prove(tc.log, nil, tc.acks); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestLongestGap(t *testing.T) {
	log := logOf(Write{}, Write{}, Write{}, Write{}) // every 10 ms
	log[2].at, log[3].at = log[2].at.Add(30*time.Millisecond), log[3].at.Add(30*time.Millisecond)
	for since, want := range map[int64]float64{0: 40, 12: 40, 55: 10, 70: 0} {
		if got := longestGap(log, time.UnixMilli(since)); got != want {
			t.Errorf("since %d ms: %v ms, want %v", since, got, want)
		}
	}
}

func TestStoreRefusesOldTokens(t *testing.T) {
	var s store
	for _, step := range []struct {
		token uint64
		kept  bool
	}{{5, true}, {5, true}, {9, true}, {5, false}, {8, false}, {9, true}} {
		if _, kept := s.put(Write{Token: step.token}); kept != step.kept {
			t.Errorf("token %d: kept %v, want %v", step.token, kept, step.kept)
		}
	}
	log, refused := s.history()
	if len(log) != 4 || len(refused) != 2 {
		t.Errorf("%d kept and %d refused, want 4 and 2", len(log), len(refused))
	}
}
