package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"retinue/coordinator/item"
)

// finding is a promise that was broken.
type finding struct {
	Promise string `json:"promise"`
	Item    string `json:"item"`
	What    string `json:"what"`
}

func (f finding) String() string { return fmt.Sprintf("%s: %s: %s", f.Promise, f.Item, f.What) }

// The promises.
const (
	noLoss      = "nothing is lost"
	oneEffect   = "effects happen once"
	attempts    = "attempts are accounted for"
	noRerun     = "nothing is executed again without a reason"
	inOrder     = "items of a key are executed in order"
	emptyAtEnd  = "the queue is empty at the end"
	rightOutput = "the output is the one of an execution of the item"
)

func promises() []string {
	return []string{noLoss, oneEffect, rightOutput, attempts, noRerun, inOrder, emptyAtEnd}
}

// execution is one that a worker wrote down.
type execution struct {
	member  string
	nonce   string
	attempt int
	from    time.Time
	end     string // "": it was cut off
}

// executions reads what the workers wrote down, by item.
func executions(dir string, members []string) (map[string][]*execution, error) {
	all, open := map[string][]*execution{}, map[string]*execution{}
	for _, member := range members {
		f, err := os.Open(filepath.Join(dir, member+".executions"))
		if errors.Is(err, fs.ErrNotExist) { // it had no item
			continue
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			var at int64
			var what, nonce, id string
			var attempt int
			if _, err := fmt.Sscan(lines.Text(), &at, &what, &nonce, &id, &attempt); err != nil {
				f.Close()
				return nil, fmt.Errorf("%s: %q: %w", f.Name(), lines.Text(), err)
			}
			if what == began {
				e := &execution{member: member, nonce: nonce, attempt: attempt, from: time.Unix(0, at)}
				open[nonce] = e
				all[id] = append(all[id], e)
			} else if e := open[nonce]; e != nil {
				e.end = what
			}
		}
		f.Close()
		if err := lines.Err(); err != nil {
			return nil, err
		}
	}
	for _, list := range all {
		slices.SortFunc(list, func(a, b *execution) int { return a.from.Compare(b.from) })
	}
	return all, nil
}

// record reads what was committed for an item; nil when nothing was.
func record(dir, id string) (*item.Record, error) {
	data, err := os.ReadFile(filepath.Join(dir, "done", "in", item.FileName(id), "_record.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rec item.Record
	return &rec, json.Unmarshal(data, &rec)
}

// judge holds the history against the promises.
func (w *world) judge() (*report, error) {
	members := make([]string, len(w.coords))
	for i, m := range w.coords {
		members[i] = m.name
	}
	ran, err := executions(w.Dir, members)
	if err != nil {
		return nil, err
	}
	broke, err := w.broker.OwnErrors()
	if err != nil {
		return nil, err
	}
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	r := newReport(w)
	faults := w.ledger.faults
	for _, at := range broke {
		r.Faults[ownError]++
		faults = append(faults, event{class: ownError, from: at.Add(-w.Lease), to: at})
	}
	records := map[string]*item.Record{}
	for id, h := range w.ledger.items {
		rec, err := record(w.Dir, id)
		if err != nil {
			return nil, err
		}
		records[id] = rec
		r.count(h, rec, ran[id])
		for _, f := range judgeItem(id, h, rec, ran[id], w.reach(), faults, w.ledger.late) {
			r.Findings = append(r.Findings, f)
			r.Broken[f.Promise]++
		}
	}
	for _, f := range judgeOrder(w.ledger.items, records, ran) {
		r.Findings = append(r.Findings, f)
		r.Broken[f.Promise]++
	}
	slices.SortFunc(r.Findings, func(a, b finding) int { return strings.Compare(a.String(), b.String()) })
	return r, nil
}

// scope is how far a fault reaches.
type scope struct {
	lease time.Duration
	all   bool // it may have moved items between any coordinators
}

// reach: where a partition begins anew because of one item, or goes to another coordinator, its other items do so too, when everybody knows.
func (w *world) reach() scope {
	if w.Partitions > 0 {
		return scope{4 * w.Lease, true}
	}
	return scope{w.Lease, false}
}

// judgeItem is the judgement of one item.
func judgeItem(id string, h *history, rec *item.Record, ran []*execution, reach scope, faults, late []event) (found []finding) {
	say := func(promise, format string, args ...any) {
		found = append(found, finding{promise, id, fmt.Sprintf(format, args...)})
	}
	if h.offered.IsZero() {
		say(oneEffect, "it came out, and nobody had published it")
		return found
	}
	dead := h.task.End == "dead"
	switch {
	case rec == nil && h.confirmed:
		say(noLoss, "it was confirmed and has no record; executed %d times", len(ran))
		return found
	case rec == nil: // nobody was promised anything
		return found
	case h.confirmed && !h.ended():
		say(noLoss, "it has a record (%s) and never came out", rec.State)
	}
	if want := map[bool]item.State{true: item.Dead, false: item.Done}[dead]; rec.State != want {
		say(attempts, "it is %s (%s %s), expected %s", rec.State, rec.Class, rec.Reason, want)
	}
	if len(h.outs) > 1 || len(h.outs) > 0 && h.dead > 0 {
		say(oneEffect, "it came out as %v and as %d dead letters", h.outs, h.dead)
	}
	if rec.State == item.Done {
		output := outputOf(rec)
		if len(h.outs) > 0 && h.outs[output] == 0 {
			say(oneEffect, "the next stage got %v, the record says %s", h.outs, output)
		}
		if !slices.ContainsFunc(ran, func(e *execution) bool { return e.nonce == output && e.end == done }) {
			say(rightOutput, "no execution of it that ended well made %q", output)
		}
	}
	failures := rec.N
	if rec.State == item.Done {
		failures--
	}
	if failures < h.task.Fail && rec.State == item.Done {
		say(attempts, "it fails %d times, and %d are counted", h.task.Fail, failures)
	}
	unseen := struckEarly(h, faults)
	if rec.N > len(ran)+unseen {
		say(attempts, "attempt %d is counted, and it was executed %d times", rec.N, len(ran))
	}
	for n, e := range ran {
		if e.attempt > n+1+unseen {
			say(attempts, "execution %d was called attempt %d", n+1, e.attempt)
		}
		if n > 0 && !h.again && !explained(h, ran[:n+1], reach, faults, late) {
			say(noRerun, "executed by %s at %s, and again by %s %v later, without a fault nearby", ran[n-1].member, ran[n-1].from.Format("15:04:05.000"), e.member, e.from.Sub(ran[n-1].from).Round(time.Millisecond))
		}
	}
	return found
}

// struckEarly is how many attempts of an item may have ended before their worker wrote anything down: it was killed just then, or up to a second
// before, which is how long a coordinator goes on using a connection.
func struckEarly(h *history, faults []event) (n int) {
	for _, f := range faults {
		if f.class == workerKill && f.from.Add(time.Second).After(h.offered) && (h.latest.IsZero() || f.from.Before(h.latest)) {
			n++
		}
	}
	return n
}

// explained says whether the last of some executions has a reason: the one before failed, or something that concerns the item
// was broken since it was taken first, or the machine stood still.
func explained(h *history, ran []*execution, reach scope, faults, late []event) bool {
	before, last := ran[len(ran)-2], ran[len(ran)-1]
	if before.end == failed && h.task.Fail >= before.attempt {
		return true
	}
	from := ran[0].from.Add(-reach.lease)
	if from.Before(h.offered) {
		from = h.offered
	}
	overlaps := func(e event) bool { return e.from.Before(last.from) && (e.to.IsZero() || e.to.After(from)) }
	for _, f := range faults {
		// After a broker is back, or a coordinator, it takes a moment until all go on.
		if !f.to.IsZero() {
			f.to = f.to.Add(reach.lease)
		}
		if overlaps(f) && (f.member == "" || reach.all || slices.ContainsFunc(ran, func(e *execution) bool { return e.member == f.member })) {
			return true
		}
	}
	return slices.ContainsFunc(late, overlaps)
}

// outputOf is the nonce in a record: of the message to the next stage.
func outputOf(rec *item.Record) string {
	if len(rec.Next) == 0 {
		return ""
	}
	text := string(rec.Next[0].Body)
	if plain, err := strconv.Unquote(text); err == nil { // a batch answers in JSON
		return plain
	}
	return text
}
