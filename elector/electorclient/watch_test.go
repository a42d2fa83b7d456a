package electorclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

const (
	stateA   = "event: state\ndata: {\"role\":\"follower\",\"lease_ms\":1000,\"leader\":{\"id\":\"a\",\"address\":\"10.0.0.1:80\",\"token\":1}}\n\n"
	changedA = "id: 3\nevent: leader_changed\ndata: {\"role\":\"follower\",\"leader\":{\"id\":\"a\",\"address\":\"10.0.0.1:80\",\"token\":1}}\n\n"
	changedB = "id: 4\nevent: leader_changed\ndata: {\"role\":\"follower\",\"leader\":{\"id\":\"b\",\"token\":2,\"value\":{\"shard\":3}}}\n\n"
	vacant   = "id: 5\nevent: vacant\ndata: {\"role\":\"follower\"}\n\n"
	elected  = "id: 6\nevent: elected\ndata: {\"role\":\"leader\",\"leader\":{\"id\":\"me\",\"token\":7,\"self\":true}}\n\n"
	suspend  = "id: 7\nevent: suspended\ndata: {\"role\":\"suspended\",\"leader\":{\"id\":\"me\",\"token\":7,\"self\":true}}\n\n"
	beat     = "event: beat\ndata: {\"role\":\"follower\",\"remaining_ms\":0}\n\n"
)

func TestWatch(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		var streams atomic.Int32
		f.on("events", func(w http.ResponseWriter, r request) {
			switch streams.Add(1) {
			case 1: // then it breaks off
				for _, frame := range []string{stateA, beat, changedA, changedB} {
					fmt.Fprint(w, frame)
				}
			case 2: // then it falls silent
				fmt.Fprint(w, stateA, vacant)
				flush(w)
				<-r.Context().Done()
			default:
				fmt.Fprint(w, elected, suspend)
				flush(w)
				<-r.Context().Done()
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var seen []string
		var end error
		for leader, err := range c.Watch(ctx, "leader") {
			switch {
			case err != nil:
				end = err
			case leader == nil:
				seen = append(seen, "-")
				if len(seen) == 6 {
					cancel()
				}
			default:
				seen = append(seen, fmt.Sprintf("%s/%d%s", leader.ID, leader.Token, leader.Value))
			}
		}
		// The suspended leader is nobody; a beat and a repetition are no change.
		if want := []string{"a/1", `b/2{"shard":3}`, "a/1", "-", "me/7", "-"}; !slices.Equal(seen, want) {
			t.Errorf("saw %q, want %q", seen, want)
		}
		if !errors.Is(end, context.Canceled) {
			t.Errorf("ended with %v", end)
		}
		if took := f.now(); took < 2*lease || took > 3*lease {
			t.Errorf("a silent stream was left after %v, want two leases", took)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		f.on("events", func(w http.ResponseWriter, _ request) { refuse(w, 404, "unknown_election", "") })
		var end error
		for _, end = range c.Watch(t.Context(), "leader") {
		}
		if !errors.Is(end, ErrUnknownElection) {
			t.Errorf("ended with %v", end)
		}
		f.on("events", func(w http.ResponseWriter, r request) {
			fmt.Fprint(w, stateA)
			flush(w)
			<-r.Context().Done()
		})
		for range c.Watch(t.Context(), "leader") {
			break // closes the stream, or the bubble does not end
		}
	})
}

func TestLeader(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		f.on("leader", func(w http.ResponseWriter, _ request) { refuse(w, 404, "vacant", "") })
		if _, err := c.Leader(t.Context(), "leader"); !errors.Is(err, ErrVacant) {
			t.Error(err)
		}
		f.on("leader", func(w http.ResponseWriter, _ request) {
			fmt.Fprint(w, `{"id":"a","address":"10.0.0.1:80","since":"2026-01-02T03:04:05Z"}`)
		})
		l, err := c.Leader(t.Context(), "leader")
		if err != nil || l.Address != "10.0.0.1:80" || l.Since.Year() != 2026 {
			t.Errorf("%+v, %v", l, err)
		}
		f.on("leader", func(w http.ResponseWriter, r request) { <-r.Context().Done() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Leader(ctx, "leader"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
