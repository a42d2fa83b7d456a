package gather

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"strings"
)

// sumMerge adds numbers, or objects of numbers key by key. Whole numbers are added exactly.
type sumMerge struct{ held }

// maxDigits bounds the numbers that are taken apart: a short text like 1e999999999 is a number of a billion digits.
const maxDigits = 400

// amount is a sum of numbers, or of objects.
type amount struct {
	whole  *big.Int
	float  float64
	floats bool // a number that is not whole was added
	fields map[string]*amount
}

func (*sumMerge) prepare(a *answer) error {
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.UseNumber()
	total := &amount{}
	for {
		var v any
		if err := dec.Decode(&v); err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("body is not JSON: %w", err)
		}
		one, err := newAmount(v)
		if err != nil {
			return err
		}
		if err := total.add(one); err != nil {
			return err
		}
	}
	a.item = total
	return nil
}

func newAmount(v any) (*amount, error) {
	switch v := v.(type) {
	case json.Number:
		if len(v) > maxDigits {
			return nil, fmt.Errorf("a number of %d digits", len(v))
		}
		if !strings.ContainsAny(string(v), ".eE") {
			whole, ok := new(big.Int).SetString(string(v), 10)
			if ok {
				return &amount{whole: whole}, nil
			}
		}
		f, err := v.Float64()
		if err != nil {
			return nil, fmt.Errorf("number %s: out of range", v)
		}
		return &amount{whole: new(big.Int), float: f, floats: true}, nil
	case map[string]any:
		sum := &amount{fields: map[string]*amount{}}
		for k, field := range v {
			one, err := newAmount(field)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
			sum.fields[k] = one
		}
		return sum, nil
	}
	return nil, fmt.Errorf("%T is not a number and not an object of numbers", v)
}

// add adds b; the zero amount takes any shape.
func (s *amount) add(b *amount) error {
	switch {
	case b.whole == nil && b.fields == nil:
		return nil
	case s.whole == nil && s.fields == nil:
		*s = *b.clone()
		return nil
	case (s.fields == nil) != (b.fields == nil):
		return fmt.Errorf("a number and an object cannot be added")
	case s.fields == nil:
		s.whole.Add(s.whole, b.whole)
		s.float += b.float
		s.floats = s.floats || b.floats
		return nil
	}
	for k, field := range b.fields {
		if s.fields[k] == nil {
			s.fields[k] = &amount{}
		}
		if err := s.fields[k].add(field); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

func (s *amount) clone() *amount {
	c := &amount{float: s.float, floats: s.floats}
	if s.whole != nil {
		c.whole = new(big.Int).Set(s.whole)
	}
	if s.fields != nil {
		c.fields = map[string]*amount{}
		for k, f := range s.fields {
			c.fields[k] = f.clone()
		}
	}
	return c
}

// MarshalJSON implements json.Marshaler.
func (s *amount) MarshalJSON() ([]byte, error) {
	switch {
	case s.fields != nil:
		return json.Marshal(s.fields)
	case s.whole == nil:
		return []byte("0"), nil
	case s.floats:
		f, _ := new(big.Float).SetInt(s.whole).Float64()
		sum := f + s.float
		if sum-sum != 0 {
			return nil, fmt.Errorf("the sum is out of range")
		}
		return strconv.AppendFloat(nil, sum, 'g', -1, 64), nil
	}
	return []byte(s.whole.String()), nil
}

func (m *sumMerge) finish(context.Context, ending) (*reply, error) {
	sortByShard(m.answers) // the sum of floating-point numbers depends on their order
	total := &amount{}
	for _, a := range m.answers {
		if err := total.add(a.item.(*amount)); err != nil {
			return nil, err
		}
	}
	out, err := json.Marshal(total)
	return jsonReply(append(out, '\n')), err
}
