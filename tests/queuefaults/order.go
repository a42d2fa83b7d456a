package main

import (
	"fmt"
	"slices"
	"time"

	"retinue/coordinator/item"
)

// keys is how many keys there are. Items of one key are further apart than the items of one call of Publish: of those that are published again
// together, nobody knows which came first.
const keys = 64

// keyOf is the key of an item; one in eight has none.
func keyOf(n int) string {
	if n%8 == 0 {
		return ""
	}
	return fmt.Sprintf("k%d", n%keys)
}

// judgeOrder looks whether the items of each key were executed one after the other, in the order of their publication: none begins before the
// one before it has ended.
func judgeOrder(items map[string]*history, records map[string]*item.Record, ran map[string][]*execution) (found []finding) {
	type last struct {
		id    string
		ended time.Time
	}
	ids := make([]string, 0, len(items))
	for id := range items {
		ids = append(ids, id)
	}
	slices.Sort(ids) // as they were published
	before := map[string]last{}
	for _, id := range ids {
		h, rec := items[id], records[id]
		if h.key == "" || rec == nil || !h.confirmed {
			continue
		}
		prev := before[h.key]
		for _, e := range ran[id] {
			if e.from.Before(prev.ended) {
				found = append(found, finding{inOrder, id, fmt.Sprintf("%s began it at %s, and %s of the same key ended %v later", e.member, e.from.Format("15:04:05.000"), prev.id, prev.ended.Sub(e.from).Round(time.Millisecond))})
				break
			}
		}
		if rec.Ended.After(prev.ended) {
			before[h.key] = last{id, rec.Ended}
		}
	}
	return found
}
