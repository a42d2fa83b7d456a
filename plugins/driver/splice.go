package driver

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// spliceKey is the one key that this driver adds to the state of the inner driver.
// Drivers decode their state by name and skip what they do not know, so a task can
// be handed to the driver that is built into the agent, and back.
const spliceKey = "RetinueLifecycle"

// errNotAMap is for state that nothing can be spliced into.
var errNotAMap = errors.New("the driver's state is not a msgpack map")

// splice adds value under spliceKey to the msgpack map state, whose other bytes stay
// as they are. A value that is there already is replaced. Empty state becomes a map.
func splice(state, value []byte) ([]byte, error) {
	state, _, err := unsplice(state)
	if err != nil {
		return nil, err
	}
	n, head := uint32(0), 0
	if len(state) > 0 {
		if n, head, err = mapHeader(state); err != nil {
			return nil, err
		}
	}
	if n == 1<<32-1 {
		return nil, errors.New("the driver's state is full")
	}
	out := appendMapHeader(make([]byte, 0, len(state)+len(value)+len(spliceKey)+16), n+1)
	out = append(out, state[min(head, len(state)):]...)
	out = appendString(out, []byte(spliceKey))
	return appendString(out, value), nil
}

// unsplice takes the value under spliceKey out: the state of the inner driver, and
// the value, nil when there is none. State that is not a msgpack map fails with
// errNotAMap; nothing but a map that ends where the state ends is one.
func unsplice(state []byte) (inner, value []byte, err error) {
	inner, raw, err := cutKey(state, spliceKey)
	if err != nil || raw == nil {
		return inner, nil, err
	}
	text, ok := stringAt(raw, 0)
	if !ok {
		return nil, nil, fmt.Errorf("%s in the driver's state is not a string", spliceKey)
	}
	return inner, append([]byte{}, text...), nil
}

// cutKey takes the pair with that key out of a msgpack map: the map without
// it, and the value as it was encoded, nil when there is none. Nothing else changes.
func cutKey(data []byte, key string) (rest, raw []byte, err error) {
	if len(data) == 0 {
		return data, nil, nil
	}
	n, pos, err := mapHeader(data)
	if err != nil {
		return nil, nil, err
	}
	var from, to int
	head := pos
	for range n {
		start := pos
		name, isString := stringAt(data, pos)
		if pos, err = skipValue(data, pos); err != nil {
			return nil, nil, err
		}
		val := pos
		if pos, err = skipValue(data, pos); err != nil {
			return nil, nil, err
		}
		if isString && string(name) == key {
			if to != 0 {
				return nil, nil, fmt.Errorf("%s is there twice", key)
			}
			raw, from, to = data[val:pos], start, pos
		}
	}
	if pos != len(data) {
		return nil, nil, fmt.Errorf("%w: %d bytes follow it", errNotAMap, len(data)-pos)
	}
	if to == 0 {
		return data, nil, nil
	}
	rest = appendMapHeader(make([]byte, 0, len(data)), n-1)
	rest = append(rest, data[head:from]...)
	return append(rest, data[to:]...), raw, nil
}

// mapHeader reads the number of pairs of the map at the start of b, and where the
// first pair begins.
func mapHeader(b []byte) (n uint32, next int, err error) {
	switch c := b[0]; {
	case c&0xf0 == 0x80:
		return uint32(c & 0x0f), 1, nil
	case c == 0xde && len(b) >= 3:
		return uint32(binary.BigEndian.Uint16(b[1:])), 3, nil
	case c == 0xdf && len(b) >= 5:
		return binary.BigEndian.Uint32(b[1:]), 5, nil
	}
	return 0, 0, errNotAMap
}

func appendMapHeader(b []byte, n uint32) []byte {
	switch {
	case n < 16:
		return append(b, 0x80|byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 0xde), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xdf), n)
}

func appendString(b, s []byte) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, s...)
}

// stringAt is the string, or the binary, at pos.
func stringAt(b []byte, pos int) ([]byte, bool) {
	head, body, children, err := valueAt(b, pos)
	if err != nil || children != 0 {
		return nil, false
	}
	switch c := b[pos]; {
	case c&0xe0 == 0xa0, c >= 0xd9 && c <= 0xdb, c >= 0xc4 && c <= 0xc6:
		return b[pos+head : pos+head+body], true
	}
	return nil, false
}

// skipValue is the position after the value at pos. It keeps a count instead of
// recursing, so that no nesting is too deep for it.
func skipValue(b []byte, pos int) (int, error) {
	for left := uint64(1); left > 0; left-- {
		head, body, children, err := valueAt(b, pos)
		if err != nil {
			return 0, err
		}
		pos += head + body
		left += children
		if left > uint64(len(b)-pos)+1 {
			return 0, fmt.Errorf("%w: cut short", errNotAMap)
		}
	}
	return pos, nil
}

// valueAt measures the value at pos: its header and body in bytes, and how many
// values are inside it.
func valueAt(b []byte, pos int) (head, body int, children uint64, err error) {
	short := fmt.Errorf("%w: cut short", errNotAMap)
	if pos >= len(b) {
		return 0, 0, 0, short
	}
	c := b[pos]
	// size reads a length of n bytes after the first one.
	size := func(n int) uint64 {
		if len(b)-pos < 1+n {
			err = short
			return 0
		}
		v := uint64(0)
		for _, x := range b[pos+1 : pos+1+n] {
			v = v<<8 | uint64(x)
		}
		return v
	}
	length := uint64(0)
	switch {
	case c < 0x80, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3:
		head = 1
	case c < 0x90:
		head, children = 1, 2*uint64(c&0x0f)
	case c < 0xa0:
		head, children = 1, uint64(c&0x0f)
	case c < 0xc0:
		head, length = 1, uint64(c&0x1f)
	case c >= 0xc4 && c <= 0xc6: // bin
		n := 1 << (c - 0xc4)
		head, length = 1+n, size(n)
	case c >= 0xc7 && c <= 0xc9: // ext: a byte of type follows the length
		n := 1 << (c - 0xc7)
		head, length = 1+n, size(n)+1
	case c == 0xca, c == 0xcb: // float
		head, length = 1, 4<<(c-0xca)
	case c >= 0xcc && c <= 0xcf: // uint
		head, length = 1, 1<<(c-0xcc)
	case c >= 0xd0 && c <= 0xd3: // int
		head, length = 1, 1<<(c-0xd0)
	case c >= 0xd4 && c <= 0xd8: // fixext
		head, length = 1, 1+1<<(c-0xd4)
	case c >= 0xd9 && c <= 0xdb: // str
		n := 1 << (c - 0xd9)
		head, length = 1+n, size(n)
	case c == 0xdc, c == 0xdd: // array
		n := 2 << (c - 0xdc)
		head, children = 1+n, size(n)
	case c == 0xde, c == 0xdf: // map
		n := 2 << (c - 0xde)
		head, children = 1+n, 2*size(n)
	default:
		return 0, 0, 0, fmt.Errorf("%w: byte 0x%02x", errNotAMap, c)
	}
	if err == nil && (head > len(b)-pos || length > uint64(len(b)-pos-head)) {
		err = short
	}
	return head, int(length), children, err
}
