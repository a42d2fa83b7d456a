package gather

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// statusClientGone is written for a client that went away: nobody reads it, the log and the metrics do.
const statusClientGone = 499

// ShardProblem says what is wrong with one shard of an answer.
type ShardProblem struct {
	Shard    int     `json:"shard"`
	State    State   `json:"state"`
	Error    string  `json:"error,omitempty"`
	Coverage float64 `json:"coverage,omitempty"`
	Replica  string  `json:"replica,omitempty"`
	Node     string  `json:"node,omitempty"`
}

// Problem is an error as the client gets it: application/problem+json.
type Problem struct {
	Type     string         `json:"type"`
	Title    string         `json:"title"`
	Status   int            `json:"status"`
	Detail   string         `json:"detail"`
	ID       string         `json:"id,omitempty"`
	Cause    string         `json:"cause"`
	Coverage *float64       `json:"coverage,omitempty"`
	Shards   []ShardProblem `json:"shards,omitempty"`
}

func writeProblem(w http.ResponseWriter, p Problem) {
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	if p.Cause == "overloaded" || p.Cause == "not_ready" {
		h.Set("Retry-After", "1")
	}
	body, err := json.Marshal(p)
	if err != nil { // no field can be the reason
		body = []byte("{}")
	}
	body = append(body, '\n')
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	w.Write(body)
}
