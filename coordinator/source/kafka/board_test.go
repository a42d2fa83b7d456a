package kafka

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// The board is what its marks say, and can be made again from low.
func TestBoard(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	marks := []struct {
		at     position
		holder string
		m      *mark
	}{
		{position{0, 1, 7}, "a", &mark{lease: 10 * time.Second}},
		{position{0, 1, 8}, "a", &mark{lease: time.Second}},
		{position{0, 1, 9}, "a", &mark{due: now.Add(5 * time.Second), handed: 1}},
		{position{0, 1, 7}, "a", nil},
		{position{1, 1, 3}, "b", &mark{lease: time.Second}},
		{position{1, 1, 3}, "a", &mark{lease: time.Second}},
		{position{1, 1, 3}, "a", nil},                            // another's hold is not ended by it
		{position{0, 1, 8}, "a", &mark{lease: 20 * time.Second}}, // extended
	}
	read := func(from int64) *board {
		b := newBoard("a")
		for i, x := range marks {
			if int64(i) < from {
				continue
			}
			r := &kgo.Record{Offset: int64(i), Key: []byte(keyOf(x.at, x.holder))}
			if x.m != nil {
				r.Value = x.m.value()
			}
			b.apply(r, now)
		}
		return b
	}
	b := read(0)
	if b.low() != 2 || b.next != 8 {
		t.Errorf("low %d, next %d", b.low(), b.next)
	}
	for _, b := range []*board{b, read(b.low())} {
		if flying, delayed := b.counts(); flying != 2 || delayed != 1 {
			t.Errorf("%d in flight, %d delayed", flying, delayed)
		}
		if first := b.first(0, 1, 100); first != 8 {
			t.Errorf("deleted up to %d", first)
		}
		if first := b.first(1, 1, 2); first != 2 {
			t.Errorf("deleted up to %d, committed is 2", first)
		}
		for after, want := range map[time.Duration]int{0: 0, 2 * time.Second: 1, 6 * time.Second: 2, 21 * time.Second: 3} {
			if due := b.due(now.Add(after), 10); len(due) != want {
				t.Errorf("after %v: %d due, not %d", after, len(due), want)
			}
		}
		at, ok := b.alarm()
		if !ok || !at.Equal(now.Add(time.Second)) {
			t.Errorf("the next is at %v", at)
		}
		key := keyOf(position{0, 1, 9}, "a")
		if e := b.open[key]; e.handed != 1 || e.deadline != time.UnixMilli(now.Add(5*time.Second).UnixMilli()) {
			t.Errorf("%+v", e)
		}
	}
}

func TestMarksOfOthers(t *testing.T) {
	b := newBoard("a")
	for i, text := range []string{"", "x", "0/1/2", "0/x/2/a", "line"} {
		b.apply(&kgo.Record{Offset: int64(i), Key: []byte(text), Value: []byte("held 5")}, time.Now())
	}
	b.apply(&kgo.Record{Offset: 5, Key: []byte("0/1/2/a"), Value: []byte("what 1 2")}, time.Now())
	if len(b.open) != 0 || b.next != 6 {
		t.Errorf("%+v", b)
	}
	b.apply(&kgo.Record{Offset: 6, Key: []byte(lineKey), Value: []byte("b 9")}, time.Now())
	b.apply(&kgo.Record{Offset: 7, Key: []byte(lineKey), Value: []byte("a 4")}, time.Now())
	if b.line != 4 {
		t.Errorf("line %d", b.line)
	}
}

// Who tells how many messages it has is believed for as long as it says.
func TestCountsOfOthers(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	b := newBoard("a")
	tell := func(holder, value string) {
		b.apply(&kgo.Record{Offset: b.next, Key: []byte(countKey + holder), Value: []byte(value)}, now)
	}
	tell("x", "3 1000")
	tell("y", "4 5000")
	tell("x", "2 1000")
	for after, want := range map[time.Duration]int{0: 6, 999 * time.Millisecond: 6, time.Second: 4, 5 * time.Second: 0} {
		b := newBoard("a")
		b.flying["x"], b.flying["y"] = count{2, now.Add(time.Second)}, count{4, now.Add(5 * time.Second)}
		b.forget(now.Add(after))
		if n, _ := b.counts(); n != want || b.dirty != (want != 6) {
			t.Errorf("after %v: %d in flight, to be committed %t", after, n, b.dirty)
		}
	}
	if n, _ := b.counts(); n != 6 || len(b.open) != 0 || b.low() != 3 {
		t.Errorf("%d in flight, board %+v", n, b)
	}
}

// How often a message was handed out is written as all versions read it, where that says enough.
func TestHandedInMarks(t *testing.T) {
	at := position{1, 2, 3}
	for handed, text := range map[int]string{0: "due 0 false", 1: "due 0 true", 4: "due 0 4"} {
		value := mark{at: at, handed: handed}.value()
		back, ok := parseMark([]byte(keyOf(at, "a")), value)
		if string(value) != text || !ok || back.handed != handed {
			t.Errorf("%d: %s, read as %+v", handed, value, back)
		}
	}
}
