// Package hookhttp carries out http hooks: to the application's Unix socket, to
// a port inside the task's network namespace, or, after the task's end, from the
// host.
//
// The caller runs as root on the host, and the job names the address. So the
// application's socket is opened without following links, redirects are not
// followed, no proxy of the environment is used, and a request from the host
// never goes to a loopback, link-local or unspecified address: those are the
// host's own services and the cloud's metadata, which the job may not reach.
package hookhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/allocfs"
)

// DialFunc dials inside the task's network namespace.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Caller makes the requests of one task.
type Caller struct {
	Socket allocfs.Socket // the application's
	Dial   DialFunc       // nil: the caller's own namespace, which is the task's in host mode
	// AllowLocal lets requests from the host go to every address. Only for tests and for `retinue init`, which runs inside
	// the task.
	AllowLocal bool
}

// Do makes one request. It implements lifecycle.Host's HTTP.
func (c *Caller) Do(ctx context.Context, call lifecycle.HTTPCall) (lifecycle.HTTPResult, error) {
	base := call.URL
	dial := c.dial(call)
	if base == "" {
		base = "http://localhost"
	}
	req, err := http.NewRequestWithContext(ctx, call.Method, base+call.Path, bytes.NewReader(call.Body))
	if err != nil {
		return lifecycle.HTTPResult{}, err
	}
	if len(call.Body) == 0 {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	for name, value := range call.Header {
		req.Header.Set(name, value)
	}
	transport := &http.Transport{DialContext: dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if refused(err) {
			err = fmt.Errorf("%w: %w", lifecycle.ErrUnreachable, err)
		}
		return lifecycle.HTTPResult{}, err
	}
	defer resp.Body.Close()
	// One byte more than allowed shows that there is more.
	body, err := io.ReadAll(io.LimitReader(resp.Body, call.Limit+1))
	if err != nil {
		return lifecycle.HTTPResult{}, fmt.Errorf("read the answer: %w", err)
	}
	return lifecycle.HTTPResult{Status: resp.StatusCode, RetryAfter: resp.Header.Get("Retry-After"), Body: body}, nil
}

func (c *Caller) dial(call lifecycle.HTTPCall) DialFunc {
	switch {
	case call.URL == "":
		return func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Socket.Dial(ctx, "unix") }
	case call.FromHost && !c.AllowLocal:
		d := &net.Dialer{Timeout: 5 * time.Second, Control: guard}
		return d.DialContext
	case call.FromHost || c.Dial == nil:
		d := &net.Dialer{Timeout: 5 * time.Second}
		return d.DialContext
	}
	return c.Dial
}

// guard refuses addresses that are the host's own. It sees what a name was resolved to.
func guard(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if ip := ap.Addr().Unmap(); ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() {
		return fmt.Errorf("%s is an address of the host itself, or of its cloud: a hook that runs on the host may not call it", ip)
	}
	return nil
}

func refused(err error) bool {
	return allocfs.Refused(err) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
