// Package blobtest is an object store for tests: gofakes3 behind a gate that
// can refuse, break and count requests, and that looks at who asks.
package blobtest

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"retinue/coordinator/blob"
)

// Server is a store with the bucket "b".
type Server struct {
	*httptest.Server
	mu   sync.Mutex
	gate func(w http.ResponseWriter, r *http.Request) bool
	seen []string
}

// Key is the access key that the server takes.
const Key = "test-key"

// Start starts a store.
func Start(t testing.TB) *Server {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("b"); err != nil {
		t.Fatal(err)
	}
	fake := gofakes3.New(backend).Server()
	s := &Server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.URL.Path)
		gate := s.gate
		s.mu.Unlock()
		if gate != nil && gate(w, r) {
			return
		}
		if !strings.Contains(r.Header.Get("Authorization"), "Credential="+Key+"/") {
			Refuse(w, http.StatusForbidden, "InvalidAccessKeyId")
			return
		}
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// Refuse answers as S3 refuses.
func Refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = w.Write([]byte("<Error><Code>" + code + "</Code><Message>no</Message></Error>"))
}

// Gate sets what sees every request first; true: it has answered. nil takes it away.
func (s *Server) Gate(gate func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = gate
}

// Seen are the requests so far, as "METHOD PATH".
func (s *Server) Seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

// Variables are the environment of who uses the store.
func (s *Server) Variables() map[string]string {
	return map[string]string{"AWS_ENDPOINT_URL": s.URL, "AWS_ACCESS_KEY_ID": Key, "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "eu-central-1"}
}

// Environment is the same for a client in this process.
func (s *Server) Environment() blob.Environment {
	v := s.Variables()
	return blob.ReadEnvironment(func(name string) string { return v[name] })
}
