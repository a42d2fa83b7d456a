package leaderelection

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// elector speaks to the sidecar the way any application in any language can: plain HTTP.
type elector struct {
	base string
	http *http.Client
}

// grant is what the application needs of the elector's answer.
type grant struct {
	Token       uint64 `json:"token"`
	LeaseMS     int64  `json:"lease_ms"`
	RemainingMS int64  `json:"remaining_ms"`
}

func (g grant) remaining() time.Duration { return time.Duration(g.RemainingMS) * time.Millisecond }

// refusal is an answer other than 200, such as 409 for "another leads".
type refusal struct {
	status int
	body   string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("elector answered %d: %s", r.status, r.body)
}

// newElector takes the RETINUE_ELECTOR_ADDR of the jobspec: http://127.0.0.1:4040 or unix:///alloc/tmp/elector.sock.
func newElector(addr string) (*elector, error) {
	u, err := url.Parse(addr)
	if err != nil {
		return nil, fmt.Errorf("elector address %q: %w", addr, err)
	}
	transport := &http.Transport{}
	switch u.Scheme {
	case "unix":
		path := u.Path
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		return &elector{base: "http://elector", http: &http.Client{Transport: transport}}, nil
	case "http":
		return &elector{base: strings.TrimSuffix(addr, "/"), http: &http.Client{Transport: transport}}, nil
	}
	return nil, fmt.Errorf("elector address %q: want unix:///path or http://127.0.0.1:port", addr)
}

// become campaigns until elected, or until wait has passed: then the answer is a
// 409 refusal. Whoever is elected must renew within lease, so that the elector
// notices an application that hangs with its connection open.
func (e *elector) become(ctx context.Context, election, id string, lease, wait time.Duration) (grant, error) {
	return e.post(ctx, election, "become", map[string]any{"id": id, "lease_ms": lease.Milliseconds(), "wait_ms": wait.Milliseconds()})
}

func (e *elector) renew(ctx context.Context, election string, token uint64) (grant, error) {
	return e.post(ctx, election, "renew", map[string]any{"token": token})
}

func (e *elector) resign(ctx context.Context, election string, token uint64) error {
	_, err := e.post(ctx, election, "resign", map[string]any{"token": token})
	return err
}

// hold opens the tether: as long as the connection lives, so does this
// application; when it closes, the elector hands leadership on at once.
// It returns without error when leadership is lost, and calls stepDown when the
// elector asks for it back.
func (e *elector) hold(ctx context.Context, election string, token uint64, stepDown func()) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/elections/%s/hold?token=%d", e.base, url.PathEscape(election), token), nil)
	if err != nil {
		return err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refused(resp)
	}
	return readEvents(resp.Body, func(event string) bool {
		if event == "stepdown" {
			stepDown()
		}
		return event != "lost"
	})
}

func (e *elector) post(ctx context.Context, election, verb string, body any) (grant, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return grant{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("%s/v1/elections/%s/%s", e.base, url.PathEscape(election), verb), bytes.NewReader(raw))
	if err != nil {
		return grant{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.http.Do(req)
	if err != nil {
		return grant{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return grant{}, refused(resp)
	}
	var g grant
	if err := json.NewDecoder(resp.Body).Decode(&g); err != nil {
		return grant{}, fmt.Errorf("%s: decode the elector's answer: %w", verb, err)
	}
	return g, nil
}

func refused(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<12))
	return &refusal{status: resp.StatusCode, body: strings.TrimSpace(string(text))}
}
