package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
)

// gate stands between one elector and its Consul agent, on their host. It can do to a single request what networks and busy servers do:
// carry it out late, or lose its answer.
type gate struct {
	server *http.Server
	agent  *url.URL
	net    *http.Transport
	pass   *httputil.ReverseProxy

	mu     sync.Mutex
	decide func(key, verb string) passage // nil: everything passes
}

// passage is what the gate does with a request.
type passage struct {
	lose bool  // its answer; the request is carried out
	hold *held // the request, until it is let go
	drop bool  // the request

	wait <-chan struct{} // the request, until this is closed
}

// held is a request on its way.
type held struct {
	session string        // that it acts for
	caught  chan struct{} // closed when the gate has it
	letgo   chan *url.URL // where to carry it out then; nil: at its own agent
	done    chan struct{} // closed when it has been
}

func newHeld() *held {
	return &held{caught: make(chan struct{}), letgo: make(chan *url.URL, 1), done: make(chan struct{})}
}

// openGate opens the gate of a slot, before its elector starts.
func openGate(s *slot) (*gate, error) {
	l, err := s.node.host.Listen("tcp", s.address+":8501")
	if err != nil {
		return nil, err
	}
	g := &gate{agent: &url.URL{Scheme: "http", Host: s.address + ":8500"}, net: s.node.host.Transport()}
	g.pass = httputil.NewSingleHostReverseProxy(g.agent)
	g.pass.Transport = g.net
	g.pass.ErrorLog = log.New(io.Discard, "", 0) // electors give up all the time
	g.pass.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	g.server = &http.Server{Handler: g}
	go g.server.Serve(l)
	return g, nil
}

func (g *gate) close() { g.server.Close() }

// rule sets what is done with requests from now on. verb is that of a key in a transaction, "" for everything else.
func (g *gate) rule(decide func(key, verb string) passage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.decide = decide
}

// ServeHTTP is one request of the elector.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	p := g.judge(r, body)
	switch {
	case p.drop:
	case p.lose:
		g.carryOut(r, body, g.agent)
	case p.hold != nil:
		close(p.hold.caught)
		defer close(p.hold.done)
		to := <-p.hold.letgo
		if to == nil {
			to = g.agent
		}
		resp := g.carryOut(r, body, to)
		if resp == nil || r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
		return
	default:
		if p.wait != nil {
			select {
			case <-p.wait:
			case <-r.Context().Done():
			}
		}
		g.pass.ServeHTTP(w, r)
		return
	}
	<-r.Context().Done() // the elector gives up
	panic(http.ErrAbortHandler)
}

// judge asks the rule about each part of the request.
func (g *gate) judge(r *http.Request, body []byte) passage {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.decide == nil {
		return passage{}
	}
	var ops []struct{ KV *consulapi.KVTxnOp }
	if r.URL.Path == "/v1/txn" && json.Unmarshal(body, &ops) == nil {
		for _, op := range ops {
			if op.KV == nil {
				continue
			}
			if p := g.decide(op.KV.Key, string(op.KV.Verb)); p != (passage{}) {
				if p.hold != nil {
					p.hold.session = op.KV.Session
				}
				return p
			}
		}
	}
	return g.decide("", "")
}

// carryOut sends the request on, whether its sender still waits or not. The body of the answer has been read.
func (g *gate) carryOut(r *http.Request, body []byte, to *url.URL) *http.Response {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 10*time.Second)
	defer cancel()
	out := r.Clone(ctx)
	out.URL.Scheme, out.URL.Host, out.RequestURI = to.Scheme, to.Host, ""
	out.Host, out.Body = to.Host, io.NopCloser(bytes.NewReader(body))
	resp, err := g.net.RoundTrip(out)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(data))
	return resp
}
