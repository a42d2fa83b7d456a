package manage

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
)

// app asks the application itself, on its own socket.
type app struct {
	client *http.Client
}

func newApp(task Task) *app {
	t := &http.Transport{
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 16 << 10,
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return task.Dial(ctx) },
	}
	return &app{&http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func (a *app) request(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	return a.client.Do(req)
}

// maxWord bounds what is repeated of a short answer, in bytes.
const maxWord = 512

// get asks for a short answer.
func (a *app) get(ctx context.Context, path string) (status int, said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, appTimeout)
	defer cancel()
	resp, err := a.request(ctx, path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxWord))
	return resp.StatusCode, strings.TrimSpace(strings.ToValidUTF8(string(body), "")), err
}

// pass hands on the application's own answer. It returns false, with nothing written, when there is none.
func (a *app) pass(w http.ResponseWriter, r *http.Request, path string) bool {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	// Only the beginning of the answer is waited for a short time: a profile takes as long as it was asked to.
	begun := make(chan struct{})
	go func() {
		select {
		case <-begun:
		case <-ctx.Done():
		case <-after(ctx, appTimeout+a.expected(r)):
			cancel(errors.New("the application does not answer"))
		}
	}()
	resp, err := a.request(ctx, path)
	if err != nil {
		return false
	}
	close(begun)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false
	}
	if kind := resp.Header.Get("Content-Type"); kind != "" {
		w.Header().Set("Content-Type", kind)
	}
	w.Header().Set("Retinue-Source", "application")
	_, _ = io.Copy(flushing{w, http.NewResponseController(w)}, resp.Body)
	return true
}
