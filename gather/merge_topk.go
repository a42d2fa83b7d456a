package gather

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// topKMerge takes the objects with the largest field.
type topKMerge struct {
	held
	spec MergeSpec
}

// ranked is an object with the value that it is sorted by.
type ranked struct {
	raw   json.RawMessage
	has   bool
	num   float64
	text  string // where the field is a string; strings come after numbers
	isNum bool
	shard int
}

func (m *topKMerge) prepare(a *answer) error {
	values, err := jsonValues(a.body)
	if err != nil {
		return err
	}
	items := make([]ranked, 0, len(values))
	path := strings.Split(m.spec.Field, ".")
	for _, v := range values {
		item, err := rank(v, path)
		if err != nil {
			return err
		}
		item.shard = a.shard
		items = append(items, item)
	}
	a.item = m.cut(items) // a leaf's surplus is dropped here, where many work at once
	return nil
}

func rank(raw json.RawMessage, path []string) (ranked, error) {
	item := ranked{raw: raw}
	if raw[0] != '{' {
		return item, fmt.Errorf("%.40q is not an object", raw)
	}
	field := raw
	for _, name := range path {
		var object map[string]json.RawMessage
		if json.Unmarshal(field, &object) != nil {
			return item, nil
		}
		var ok bool
		if field, ok = object[name]; !ok {
			return item, nil
		}
	}
	if f, err := strconv.ParseFloat(string(field), 64); err == nil && f-f == 0 {
		item.num, item.isNum, item.has = f, true, true
	} else if json.Unmarshal(field, &item.text) == nil && !bytes.Equal(field, []byte("null")) {
		item.has = true
	}
	return item, nil
}

// cut sorts items and keeps the first. Equal ones keep the order of shards, and within a shard the leaf's own.
func (m *topKMerge) cut(items []ranked) []ranked {
	slices.SortStableFunc(items, func(a, b ranked) int {
		if a.has != b.has {
			return boolsFirst(a.has, b.has)
		}
		c := 0
		switch {
		case a.isNum != b.isNum:
			return boolsFirst(a.isNum, b.isNum)
		case a.isNum:
			c = cmp.Compare(b.num, a.num)
		default:
			c = strings.Compare(b.text, a.text)
		}
		if m.spec.Ascending {
			c = -c
		}
		if c == 0 {
			c = cmp.Compare(a.shard, b.shard)
		}
		return c
	})
	return items[:min(len(items), m.spec.Limit)]
}

func boolsFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func (m *topKMerge) finish(context.Context, ending) (*reply, error) {
	sortByShard(m.answers)
	var all []ranked
	for _, a := range m.answers {
		all = append(all, a.item.([]ranked)...)
	}
	var b bytes.Buffer
	b.WriteByte('[')
	for i, item := range m.cut(all) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(item.raw)
	}
	b.WriteString("]\n")
	return jsonReply(b.Bytes()), nil
}
