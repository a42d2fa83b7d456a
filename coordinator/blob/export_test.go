package blob

import (
	"net/http"
	"time"
)

// Hurry takes the pauses between tries away.
func (c *Cache) Hurry() { c.pauses = func(int) time.Duration { return time.Millisecond } }

// Impatient shortens how long a connection may stand still.
func (c *Client) Impatient(d time.Duration) { c.stall = d }

// Sign signs as a client does.
func Sign(req *http.Request, id, secret, token, region, sum string, now time.Time) {
	sign(req, credentials{id, secret, token}, region, sum, now)
}
