package gather

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"
)

// arrayMerge makes one JSON array of all leaves' values, in the order of shards.
type arrayMerge struct{ held }

func (*arrayMerge) prepare(a *answer) error {
	values, err := jsonValues(a.body)
	a.item = values
	return err
}

func (m *arrayMerge) finish(context.Context, ending) (*reply, error) {
	sortByShard(m.answers)
	var b bytes.Buffer
	b.WriteByte('[')
	for _, a := range m.answers {
		for _, v := range a.item.([]json.RawMessage) {
			if b.Len() > 1 {
				b.WriteByte(',')
			}
			b.Write(v)
		}
	}
	b.WriteString("]\n")
	return jsonReply(b.Bytes()), nil
}

func sortByShard(answers []*answer) {
	slices.SortStableFunc(answers, func(a, b *answer) int { return cmp.Compare(a.shard, b.shard) })
}
