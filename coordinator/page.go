package coordinator

import (
	_ "embed"
	"net/http"
)

//go:embed page.html
var page []byte

// servePage shows the stage to a person's browser: what waits and for how long, what is in hand, dead letters. It only reads.
func servePage(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	// Ids, reasons and bodies are anybody's text: the page writes them as text, and could load or send nothing if it did not.
	h.Set("Content-Security-Policy", "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(page) // the client is gone when it fails
}
