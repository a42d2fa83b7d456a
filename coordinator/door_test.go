package coordinator

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"retinue/coordinator/source"
	"retinue/coordinator/source/memory"
)

// Items come in where no coordinator is, under the same rules; what only a coordinator knows is refused.
func TestDoor(t *testing.T) {
	broker := memory.New()
	src, err := broker.Open(source.Options{Queue: "thumbs", Classes: 2})
	if err != nil {
		t.Fatal(err)
	}
	next, err := broker.Open(source.Options{Queue: "next", Classes: 2})
	if err != nil {
		t.Fatal(err)
	}
	door := Door(2, []string{"thumbs", "next"}, map[string]source.Source{"thumbs": src, "next": next})
	for _, test := range []struct {
		method, path, body string
		want               int
		says               string
	}{
		{"GET", "/v1/queues", "", http.StatusOK, `"thumbs","next"`},
		{"POST", "/v1/queues/thumbs/items", "hello", http.StatusAccepted, `"ids":["first"]`},
		{"POST", "/v1/queues/next/items", "hello", http.StatusAccepted, `"ids":["first"]`},
		{"POST", "/v1/queues/others/items", "hello", http.StatusNotFound, "unknown_queue"},
		{"POST", "/v1/queues/thumbs/items?wait=3s", "hello", http.StatusBadRequest, "ask a coordinator"},
		{"GET", "/v1/items/first", "", http.StatusNotFound, ""},
	} {
		req := httptest.NewRequest(test.method, test.path, strings.NewReader(test.body))
		req.Header.Set("Idempotency-Key", "first")
		req.Header.Set("Retinue-Priority", "5") // more than there are: the highest
		got := httptest.NewRecorder()
		door.ServeHTTP(got, req)
		if got.Code != test.want || !strings.Contains(got.Body.String(), test.says) {
			t.Errorf("%s %s: %d %s", test.method, test.path, got.Code, got.Body)
		}
	}
	ms, err := src.Receive(t.Context(), 5)
	if err != nil || len(ms) != 1 || ms[0].ID != "first" || string(ms[0].Body) != "hello" || ms[0].Class != 1 {
		t.Errorf("%+v, %v", ms, err)
	}
}
