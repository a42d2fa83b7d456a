package electorclient

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestLeadInGoodOrder(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		err := c.Lead(t.Context(), "leader", func(ctx context.Context, l *Leadership) error {
			if l.Token() != 42 || l.Term() != 7 || l.ID() != "app-x" || !l.Valid() {
				t.Errorf("token %d, term %d, id %q, valid %v", l.Token(), l.Term(), l.ID(), l.Valid())
			}
			if left := time.Until(l.Deadline()); left != lease {
				t.Errorf("%v are left", left)
			}
			if f.tethers() != 1 {
				t.Errorf("%d tethers before the first act", f.tethers())
			}
			time.Sleep(10 * lease) // renewals keep it
			if !l.Valid() || ctx.Err() != nil {
				t.Error("leadership was not renewed")
			}
			if _, ok := f.last("resign"); ok {
				t.Error("resigned before the function returned")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if got, want := f.verbs(), []string{"", "become", "hold", "renew", "resign"}; !slices.Equal(got, want) {
			t.Errorf("requests %q, want %q", got, want)
		}
		become, _ := f.last("become")
		if id, _ := become.body["id"].(string); !strings.HasPrefix(id, "app-") || len(id) != len("app-")+6 {
			t.Errorf("candidate id %q", id)
		}
		if become.body["lease_ms"] != float64(lease.Milliseconds()) {
			t.Errorf("lease_ms %v: without an explicit lease the elector never notices a process that hangs", become.body["lease_ms"])
		}
		if resign, _ := f.last("resign"); resign.body["token"] != float64(42) {
			t.Errorf("resigned with %v", resign.body)
		}
	})
}

func TestDeadlineCountsFromBeforeTheRequest(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		f.on("become", func(w http.ResponseWriter, _ request) {
			time.Sleep(time.Hour) // a standby waits
			grantFor(w, lease)
		})
		f.on("renew", func(w http.ResponseWriter, _ request) {
			time.Sleep(100 * time.Millisecond)
			grantFor(w, lease)
		})
		err := c.Lead(t.Context(), "leader", func(_ context.Context, l *Leadership) error {
			if left := time.Until(l.Deadline()); left != lease-100*time.Millisecond {
				t.Errorf("%v are left after a renewal that took 100ms", left)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestLossEndsTheFunctionBeforeTheDeadline(t *testing.T) {
	for name, lose := range map[string]struct {
		by     time.Duration // after the last good renewal
		why    string
		script func(f *fake)
	}{
		"elector hangs": {lease - lease/10, "could not be confirmed", func(f *fake) {
			f.on("renew", func(_ http.ResponseWriter, r request) { <-r.Context().Done() })
		}},
		"Consul hangs": {lease - lease/10, "could not be confirmed", func(f *fake) {
			f.on("renew", func(w http.ResponseWriter, _ request) { refuse(w, 503, "suspended", "") })
		}},
		"renew is refused": {lease / 3, "revoked", func(f *fake) {
			f.on("renew", func(w http.ResponseWriter, _ request) { refuse(w, 409, "lost", "revoked") })
		}},
		"the elector says lost": {0, "superseded", func(f *fake) {
			f.push <- "event: lost\ndata: {\"reason\":\"superseded\",\"token\":42}\n\n"
		}},
		"elector restarted and knows nothing": {50 * time.Millisecond, "unknown_token", func(f *fake) {
			f.on("hold", func(w http.ResponseWriter, _ request) { refuse(w, 409, "lost", "unknown_token") })
			f.push <- ""
		}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake, c *Client) {
				err := c.Lead(t.Context(), "leader", func(ctx context.Context, l *Leadership) error {
					began := f.now()
					lose.script(f)
					<-ctx.Done()
					if took := f.now() - began; took > lose.by+time.Millisecond {
						t.Errorf("told after %v, want %v", took, lose.by)
					}
					if l.Valid() {
						t.Error("still valid")
					}
					if cause := context.Cause(ctx); !errors.Is(cause, ErrLost) || !strings.Contains(cause.Error(), lose.why) {
						t.Errorf("cause %v", cause)
					}
					before := f.total()
					time.Sleep(5 * lease) // stops slowly, and must not be kept in office meanwhile
					if n := f.total(); n != before {
						t.Errorf("%d requests after the loss", n-before)
					}
					return ctx.Err()
				})
				if !errors.Is(err, ErrLost) || errors.Is(err, context.Canceled) {
					t.Errorf("Lead returned %v", err)
				}
			})
		})
	}
}

func TestSuspensionThatPassesIsNoLoss(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		var n atomic.Int32
		f.on("renew", func(w http.ResponseWriter, _ request) {
			if k := n.Add(1); k > 1 && k%2 == 0 {
				refuse(w, 503, "suspended", "")
				return
			}
			grantFor(w, lease)
		})
		f.push <- "event: suspended\ndata: {\"role\":\"suspended\"}\n\n"
		err := c.Lead(t.Context(), "leader", func(ctx context.Context, l *Leadership) error {
			time.Sleep(10 * lease)
			return ctx.Err()
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestTetherIsTiedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		err := c.Lead(t.Context(), "leader", func(ctx context.Context, l *Leadership) error {
			f.push <- ""
			time.Sleep(lease)
			if f.tethers() != 1 {
				t.Errorf("%d tethers", f.tethers())
			}
			return ctx.Err()
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestStepDown(t *testing.T) {
	for name, ask := range map[string]func(f *fake){
		"by event": func(f *fake) { f.push <- "event: stepdown\ndata: {\"role\":\"leader\"}\n\n" },
		"by renewal": func(f *fake) {
			f.on("renew", func(w http.ResponseWriter, _ request) {
				w.Write([]byte(`{"token":42,"remaining_ms":900,"stepdown":true}`))
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *fake, c *Client) {
				err := c.Lead(t.Context(), "leader", func(ctx context.Context, l *Leadership) error {
					ask(f)
					<-ctx.Done()
					if !l.Valid() {
						t.Error("a step-down leaves the rest of the lease")
					}
					return nil
				})
				if !errors.Is(err, ErrStepDown) {
					t.Errorf("Lead returned %v", err)
				}
				if _, ok := f.last("resign"); !ok {
					t.Error("did not resign")
				}
			})
		})
	}
}

func TestCleanUpIsCoveredByTheLease(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		ctx, cancel := context.WithCancel(t.Context())
		var cleaned time.Duration
		err := c.Lead(ctx, "leader", func(ctx context.Context, l *Leadership) error {
			cancel()
			<-ctx.Done()
			time.Sleep(20 * lease)
			if !l.Valid() {
				t.Error("leadership ran out while the function cleaned up")
			}
			cleaned = f.now()
			return errors.New("disk full")
		})
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("Lead returned %v, want both reasons", err)
		}
		if resign, ok := f.last("resign"); !ok || resign.at < cleaned {
			t.Errorf("resigned at %v, cleaned up at %v", resign.at, cleaned)
		}
	})
}

func TestPanicGivesLeadershipBack(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
			if _, ok := f.last("resign"); !ok {
				t.Error("did not resign")
			}
		}()
		_ = c.Lead(t.Context(), "leader", func(context.Context, *Leadership) error { panic("bug") })
	})
}

func TestCampaignWaitsForTheElector(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		var n atomic.Int32
		f.on("", func(w http.ResponseWriter, _ request) {
			if n.Add(1) < 4 {
				panic(http.ErrAbortHandler) // the connection breaks, as when the elector restarts
			}
			w.Write([]byte(`{"lease_ms":1000}`))
		})
		f.on("become", func(w http.ResponseWriter, _ request) {
			if n.Add(1) < 8 {
				refuse(w, 503, "stopping", "")
				return
			}
			grantFor(w, lease)
		})
		led := false
		if err := c.Lead(t.Context(), "leader", func(context.Context, *Leadership) error { led = true; return nil }); err != nil || !led {
			t.Errorf("led %v, %v", led, err)
		}
	})
}

func TestCampaignGivesUp(t *testing.T) {
	nobody := func(context.Context, *Leadership) error { panic("not elected") }
	t.Run("unknown election", func(t *testing.T) {
		bubble(t, func(t *testing.T, f *fake, c *Client) {
			f.on("", func(w http.ResponseWriter, _ request) { refuse(w, 404, "unknown_election", "") })
			if err := c.Lead(t.Context(), "leader", nobody); !errors.Is(err, ErrUnknownElection) {
				t.Error(err)
			}
		})
	})
	t.Run("not an elector", func(t *testing.T) {
		bubble(t, func(t *testing.T, f *fake, c *Client) {
			f.on("", func(w http.ResponseWriter, _ request) { http.Error(w, "what?", http.StatusNotFound) })
			var refused *StatusError
			if err := c.Lead(t.Context(), "leader", nobody); !errors.As(err, &refused) || refused.Status != 404 {
				t.Error(err)
			}
		})
	})
	t.Run("context", func(t *testing.T) {
		bubble(t, func(t *testing.T, f *fake, c *Client) {
			withdrawn := false
			f.on("become", func(_ http.ResponseWriter, r request) { <-r.Context().Done(); withdrawn = true })
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("a minute is over"))
			defer cancel()
			if err := c.Lead(ctx, "leader", nobody); err == nil || !strings.Contains(err.Error(), "a minute is over") {
				t.Error(err)
			}
			synctest.Wait()
			if !withdrawn {
				t.Error("the campaign goes on")
			}
		})
	})
}

func TestElectedButLostAtOnceCampaignsAgain(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		var n atomic.Int32
		f.on("renew", func(w http.ResponseWriter, _ request) {
			switch n.Add(1) {
			case 1:
				refuse(w, 409, "lost", "app_lease_expired")
			case 2:
				w.Write([]byte(`{"token":42,"remaining_ms":900,"stepdown":true}`))
			case 3:
				grantFor(w, 0)
			default:
				grantFor(w, lease)
			}
		})
		led := 0
		if err := c.Lead(t.Context(), "leader", func(context.Context, *Leadership) error { led++; return nil }); err != nil || led != 1 {
			t.Errorf("led %d times, %v", led, err)
		}
	})
}

func TestVerifyAndPublish(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, c *Client) {
		f.on("verify", func(w http.ResponseWriter, _ request) { refuse(w, 409, "stale", "superseded") })
		f.on("value", func(w http.ResponseWriter, r request) {
			if r.Method != http.MethodPut || r.body["value"].(map[string]any)["shard"] != float64(3) {
				t.Errorf("%s %v", r.Method, r.body)
			}
			grantFor(w, lease)
		})
		err := c.Lead(t.Context(), "leader", func(ctx context.Context, l *Leadership) error {
			if err := l.Verify(ctx); !errors.Is(err, ErrLost) {
				t.Errorf("verify: %v", err)
			}
			return l.Publish(ctx, map[string]int{"shard": 3})
		})
		if err != nil {
			t.Error(err)
		}
	})
}
