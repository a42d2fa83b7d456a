package rabbitmq

import (
	"crypto/sha256"
	"encoding/hex"
)

// bodyID identifies a message whose producer gave it no id. Two with the same body have the same.
func bodyID(body []byte) string {
	sum := sha256.Sum256(body)
	return "body-" + hex.EncodeToString(sum[:16])
}
