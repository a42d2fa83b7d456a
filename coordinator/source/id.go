package source

import (
	"crypto/rand"
	"encoding/hex"
)

// NewID returns a random name of 128 bits, for an item whose producer has none or for a consumer.
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
