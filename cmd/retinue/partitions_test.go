package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What `queue stats` says about partitions, of a coordinator that answers this.
func TestStatsShowPartitions(t *testing.T) {
	for name, test := range map[string]struct {
		partitions string
		want       string // all that is said of them
	}{
		"none": {``, ""},
		"some here": {`,"partitions":{"members":["a@x","b@y","c@z"],"connected":true,"partitions":[
			{"partition":0,"owner":"a@x","ours":true},{"partition":1,"owner":"b@y","ours":false},{"partition":2,"owner":"c@z","ours":false},{"partition":3,"owner":"a@x","ours":true}]}`,
			"partitions  4 over 3 coordinators, 2 here: 0 3\n"},
		"one goes, nobody has two": {`,"partitions":{"members":["a@x"],"connected":true,"partitions":[
			{"partition":0,"owner":"a@x","ours":true,"leave":true},{"partition":1,"ours":false},{"partition":2,"ours":false}]}`,
			"partitions  3 over 1 coordinator, 1 here: 0\n            to go to another: 0\n            nobody holds: 1 2\n"},
		"none here, and why": {`,"partitions":{"members":["a@x","b@y"],"connected":true,"why":"does not stand for partitions","partitions":[
			{"partition":0,"owner":"b@y","ours":false}]}`,
			"partitions  1 over 2 coordinators, none here\n            does not stand for partitions\n"},
		// Who holds the others is not known: nothing is said of them.
		"without Consul": {`,"partitions":{"members":["a@x"],"connected":false,"why":"renew the session: connection refused","partitions":[
			{"partition":0,"owner":"a@x","ours":true},{"partition":1,"ours":false}]}`,
			"partitions  2, 1 here: 0\n            not connected to Consul: renew the session: connection refused\n"},
		"a session that is over": {`,"partitions":{"members":[],"connected":false,"partitions":[{"partition":0,"ours":false}]}`,
			"partitions  1, none here\n            not connected to Consul: those of others are not known\n"},
	} {
		t.Run(name, func(t *testing.T) {
			stats := `{"queue":"thumbs","coordinator":"a@x","status":"running","slots":4,"limit":4,"waiting":0,"running":0,"finishing":0,"totals":{}` + test.partitions + `}`
			mux := http.NewServeMux()
			mux.HandleFunc("GET /v1/queues", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"queues":["thumbs"]}`) })
			mux.HandleFunc("GET /v1/queues/thumbs/stats", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, stats) })
			srv := httptest.NewServer(mux)
			defer srv.Close()
			addr := "tcp://" + strings.TrimPrefix(srv.URL, "http://")
			code, out, errs := call("queue", "stats", "--addr", addr)
			if code != exitOK {
				t.Fatalf("%d %s %s", code, out, errs)
			}
			_, rest, ok := strings.Cut(out, " of 4 slots\n")
			said, _, end := strings.Cut(rest, "ended ")
			if !ok || !end || said != test.want {
				t.Errorf("it says %q, not %q; all of it:\n%s", said, test.want, out)
			}
			if code, out, _ = call("queue", "stats", "--json", "--addr", addr); code != exitOK || strings.Contains(out, `"partitions"`) != (test.partitions != "") {
				t.Errorf("as JSON: %d %s", code, out)
			}
		})
	}
}
