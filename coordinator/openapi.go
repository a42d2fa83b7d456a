package coordinator

import (
	_ "embed"
	"net/http"
)

// openAPI describes the HTTP interface. A test generates it from the handlers and compares.
//
//go:embed openapi.json
var openAPI []byte

func (a *handlers) openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI) // the client is gone when it fails
}
