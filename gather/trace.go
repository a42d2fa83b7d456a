package gather

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Trace is the W3C trace context of a request: what every leaf call shares.
type Trace struct {
	id    string // 32 hex digits
	flags string // 2 hex digits
}

// ParseTrace reads a traceparent; a new trace when it is absent or no good, as the standard says.
func ParseTrace(s string) Trace {
	parts := strings.Split(s, "-")
	if len(parts) >= 4 && len(parts[0]) == 2 && parts[0] != "ff" && (parts[0] != "00" || len(parts) == 4) &&
		isHex(parts[0], 2) && isHex(parts[1], 32) && isHex(parts[2], 16) && isHex(parts[3], 2) {
		return Trace{parts[1], parts[3]}
	}
	return Trace{fmt.Sprintf("%016x%016x", rand.Uint64()|1, rand.Uint64()), "00"}
}

func isHex(s string, n int) bool {
	if len(s) != n || n > 8 && strings.Trim(s, "0") == "" || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// Span returns a traceparent for one leaf call.
func (t Trace) Span() string {
	var b [55]byte
	copy(b[:], "00-")
	copy(b[3:], t.id)
	b[35] = '-'
	const digits = "0123456789abcdef"
	for i, n := 0, rand.Uint64()|1; i < 16; i, n = i+1, n>>4 {
		b[36+i] = digits[n&15]
	}
	b[52] = '-'
	copy(b[53:], t.flags)
	return string(b[:])
}
