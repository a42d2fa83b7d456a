package kafka

import (
	"bytes"
	"container/heap"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// position is where a message stands.
type position struct {
	class     int
	partition int32
	offset    int64
}

// mark says what is with a message that was taken out of its partition's order.
type mark struct {
	at position
	// lease is how long it is held from when the mark is read: no clock but one's own is asked. 0: nobody holds it.
	lease time.Duration
	// due is when it is to be delivered, where nobody holds it; zero for at once.
	due time.Time
	// handed is how often it was given to a consumer.
	handed int
}

// keyOf is a mark's key. The holder stands in it: where two hold a message, one's end is not the other's.
func keyOf(at position, holder string) string {
	return fmt.Sprintf("%d/%d/%d/%s", at.class, at.partition, at.offset, holder)
}

func (m mark) value() []byte {
	if m.lease > 0 {
		return fmt.Appendf(nil, "held %d", m.lease.Milliseconds())
	}
	due := int64(0)
	if !m.due.IsZero() {
		due = m.due.UnixMilli()
	}
	handed := strconv.Itoa(m.handed)
	if m.handed < 2 {
		handed = strconv.FormatBool(m.handed == 1) // as all versions write and read it
	}
	return fmt.Appendf(nil, "due %d %s", due, handed)
}

// countKey begins the key under which a consumer by share groups tells how many messages it has.
const countKey = "count/"

// lineKey is the key of the lines: a line says to who wrote it that everything before was read.
const lineKey = "line"

// parseMark understands what value wrote.
func parseMark(key, value []byte) (mark, bool) {
	var m mark
	parts := strings.Split(string(key), "/")
	if len(parts) != 4 {
		return m, false
	}
	class, err1 := strconv.Atoi(parts[0])
	partition, err2 := strconv.ParseInt(parts[1], 10, 32)
	offset, err3 := strconv.ParseInt(parts[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return m, false
	}
	m.at = position{class, int32(partition), offset}
	if value == nil {
		return m, true
	}
	words := strings.Fields(string(value))
	if len(words) < 2 {
		return m, false
	}
	n, err := strconv.ParseInt(words[1], 10, 64)
	switch {
	case err != nil:
		return m, false
	case words[0] == "held" && n > 0:
		m.lease, m.handed = time.Duration(n)*time.Millisecond, 1
	case words[0] == "due" && len(words) == 3:
		if n > 0 {
			m.due = time.UnixMilli(n)
		}
		if m.handed, err = strconv.Atoi(words[2]); err != nil && words[2] == "true" {
			m.handed = 1
		}
	default:
		return m, false
	}
	return m, true
}

// board is what one partition of the marks says: every message that was taken and is not finished.
type board struct {
	holder string // whose lines count
	open   map[string]*entry
	flying map[string]count // by holder, of those who tell
	alarms alarms
	next   int64 // offset of the next mark
	line   int64 // number of the last own line that was read
	dirty  bool  // since the last commit
}

// count is how many messages somebody has, for as long as it says so.
type count struct {
	n     int
	until time.Time
}

type entry struct {
	mark
	offset   int64 // of its mark
	deadline time.Time
	copied   bool // its end is under way
}

func newBoard(holder string) *board {
	return &board{holder: holder, open: map[string]*entry{}, flying: map[string]count{}}
}

// apply reads the next record.
func (b *board) apply(r *kgo.Record, now time.Time) {
	b.next, b.dirty = r.Offset+1, true
	if string(r.Key) == lineKey {
		if holder, n, ok := bytes.Cut(r.Value, []byte(" ")); ok && string(holder) == b.holder {
			b.line, _ = strconv.ParseInt(string(n), 10, 64)
		}
		return
	}
	key := string(r.Key)
	if holder, ok := strings.CutPrefix(key, countKey); ok {
		var n, millis int
		fmt.Sscan(string(r.Value), &n, &millis)
		b.flying[holder] = count{n, now.Add(time.Duration(millis) * time.Millisecond)}
		return
	}
	m, ok := parseMark(r.Key, r.Value)
	if !ok || r.Value == nil {
		delete(b.open, key)
		return
	}
	e := &entry{mark: m, offset: r.Offset, deadline: m.due}
	if m.lease > 0 {
		e.deadline = now.Add(m.lease)
	}
	if old := b.open[key]; old != nil && old.copied {
		// Whoever extended it came too late, and its end follows.
		e.copied = true
	}
	b.open[key] = e
	heap.Push(&b.alarms, alarm{e.deadline, key})
}

// due are the messages whose time has come, at most max.
func (b *board) due(now time.Time, max int) map[string]*entry {
	found := map[string]*entry{}
	var again []alarm
	for len(b.alarms) > 0 && len(found) < max && !b.alarms[0].at.After(now) {
		a := heap.Pop(&b.alarms).(alarm)
		if e := b.open[a.key]; e != nil && !e.copied && !e.deadline.After(now) && found[a.key] == nil {
			found[a.key] = e
			again = append(again, alarm{e.deadline, a.key})
		}
	}
	for _, a := range again {
		heap.Push(&b.alarms, a)
	}
	return found
}

// alarm is when to look at the board again.
func (b *board) alarm() (time.Time, bool) {
	for len(b.alarms) > 0 {
		a := b.alarms[0]
		if e := b.open[a.key]; e != nil && !e.copied && e.deadline.Equal(a.at) {
			return a.at, true
		}
		heap.Pop(&b.alarms)
	}
	return time.Time{}, false
}

// postpone looks at a message later.
func (b *board) postpone(key string, until time.Time) {
	if e := b.open[key]; e != nil {
		e.deadline = until
		heap.Push(&b.alarms, alarm{until, key})
	}
}

// low is the oldest mark that still counts: the board can be made again from there.
func (b *board) low() int64 {
	low := b.next
	for _, e := range b.open {
		low = min(low, e.offset)
	}
	return low
}

// first is the lowest offset of a partition that somebody may need, or limit.
func (b *board) first(class int, partition int32, limit int64) int64 {
	for _, e := range b.open {
		if e.at.class == class && e.at.partition == partition {
			limit = min(limit, e.at.offset)
		}
	}
	return limit
}

// old are delayed messages whose marks hold low back, to be written again.
func (b *board) old(now time.Time) map[string]mark {
	const many = 50_000
	all := map[string]mark{}
	if b.next-b.low() < many {
		return all
	}
	for key, e := range b.open {
		// Nobody but its watcher writes the mark of a message that nobody holds.
		if e.lease == 0 && !e.copied && e.offset < b.next-many/2 && e.deadline.After(now.Add(time.Minute)) {
			all[key] = e.mark
		}
	}
	return all
}

// forget drops counts that nobody repeated.
func (b *board) forget(now time.Time) {
	for holder, c := range b.flying {
		if !now.Before(c.until) {
			delete(b.flying, holder)
			b.dirty = true
		}
	}
}

// counts says how many are held and how many wait.
func (b *board) counts() (flying, delayed int) {
	for _, c := range b.flying {
		flying += c.n
	}
	for _, e := range b.open {
		if e.lease > 0 {
			flying++
		} else {
			delayed++
		}
	}
	return flying, delayed
}

type alarm struct {
	at  time.Time
	key string
}

// alarms is a heap by time.
type alarms []alarm

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a alarms) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *alarms) Push(x any)        { *a = append(*a, x.(alarm)) }
func (a *alarms) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	*a = (*a)[:last]
	return x
}
