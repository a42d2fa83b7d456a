package lifecycle

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// How the load behaves.
const (
	users    = 4
	oneTry   = time.Second      // of one request
	patience = 90 * time.Second // of one increment, over all of its tries; then it has failed
	between  = 50 * time.Millisecond
)

// load is a number of users who count, each one increment after the other. A user who gets no answer sends the same increment again.
type load struct {
	consul *consul.Client
	name   string // of the users, with a number
	http   *http.Client

	mu      sync.Mutex
	acked   uint64
	failed  int
	longest time.Duration // an increment took, since the last look
	address string
	done    sync.WaitGroup
}

// begin lets the users count until ctx ends.
func (l *load) begin(ctx context.Context) {
	l.http = &http.Client{Timeout: oneTry}
	for i := range users {
		l.done.Go(func() { l.count(ctx, fmt.Sprintf("%s-%d", l.name, i)) })
	}
}

func (l *load) count(ctx context.Context, user string) {
	for seq := uint64(1); ctx.Err() == nil; seq++ {
		began := time.Now()
		// An increment that was begun is brought to its end, so that the sum is known.
		err := l.increment(context.WithoutCancel(ctx), user, seq)
		l.mu.Lock()
		if err != nil {
			l.failed++
		} else {
			l.acked++
		}
		l.longest = max(l.longest, time.Since(began))
		l.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-time.After(between):
		case <-ctx.Done():
		}
	}
}

// increment tries until the server has counted.
func (l *load) increment(ctx context.Context, user string, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := l.ask(ctx, http.MethodPost, fmt.Sprintf("/increment?client=%s&seq=%d", user, seq))
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(between):
		case <-ctx.Done():
		}
	}
}

// ask sends one request to where the server is now, as Consul says.
func (l *load) ask(ctx context.Context, method, path string) (string, error) {
	l.mu.Lock()
	address := l.address
	l.mu.Unlock()
	if address == "" {
		entries, _, err := l.consul.Health().Service(Job, "", false, (&consul.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return "", err
		}
		if len(entries) == 0 {
			return "", fmt.Errorf("no server is registered")
		}
		e := entries[len(entries)-1]
		for _, one := range entries { // the newest, should the one before it not be deregistered yet
			if one.Service.CreateIndex > e.Service.CreateIndex {
				e = one
			}
		}
		address = fmt.Sprintf("%s:%d", e.Service.Address, e.Service.Port)
		l.mu.Lock()
		l.address = address
		l.mu.Unlock()
	}
	body, err := l.send(ctx, method, "http://"+address+path)
	if err != nil {
		l.mu.Lock()
		if l.address == address {
			l.address = "" // it may have moved
		}
		l.mu.Unlock()
	}
	return body, err
}

func (l *load) send(ctx context.Context, method, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %d", resp.StatusCode)
	}
	return strings.TrimSpace(string(body)), err
}

// value asks the server for its counter.
func (l *load) value(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		body, err := l.ask(ctx, http.MethodGet, "/value")
		if err == nil {
			return strconv.ParseUint(body, 10, 64)
		}
		select {
		case <-time.After(between):
		case <-ctx.Done():
			return 0, fmt.Errorf("ask for the counter: %w", err)
		}
	}
}

// look returns the acknowledged increments and the longest time that one has taken since the last look.
func (l *load) look() (acked uint64, failed int, longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	longest, l.longest = l.longest, 0
	return l.acked, l.failed, longest
}
