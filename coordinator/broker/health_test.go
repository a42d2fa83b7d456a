package broker

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// A broker that has lost its disk is not healthy before it has its copy of the queue again.
func TestHealth(t *testing.T) {
	b := &three{t: t, file: filepath.Join(t.TempDir(), "routes")}
	var health [3]string
	for i := range b.peers {
		b.peers[i], b.dirs[i], health[i] = freeAddress(t), t.TempDir(), freeAddress(t)
	}
	b.list(b.peers[:]...)
	start := func(i int) {
		t.Helper()
		var err error
		if b.up[i], err = Start(t.Context(), Config{Dir: b.dirs[i], Listen: "127.0.0.1:0", User: "u", Password: "p", Durability: Process,
			Name: fmt.Sprint("b", i), Cluster: b.peers[i], RoutesFile: b.file, Health: health[i]}); err != nil {
			t.Fatal(err)
		}
	}
	// As Nomad asks: it has to stay so for a while. Between what all three have and its own copies it is healthy for a moment.
	healthy := func(i int) (bad int) {
		t.Helper()
		why, since := "", time.Time{}
		for end := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
			resp, err := http.Get("http://" + health[i] + "/health?js-enabled-only=true&details=true")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && since.IsZero() {
				since = time.Now()
			}
			if resp.StatusCode == http.StatusOK && time.Since(since) < time.Second {
				continue
			}
			if resp.StatusCode == http.StatusOK {
				t.Logf("b%d: %d times not healthy, then %s; the last reason %s", i, bad, body, why)
				return bad
			}
			if bad++; time.Now().After(end) || err != nil || resp.StatusCode != http.StatusServiceUnavailable {
				t.Fatalf("b%d: %s: %s, %v", i, resp.Status, body, err)
			}
			why, since = string(body), time.Time{}
		}
	}
	for i := range b.up {
		start(i)
		defer func() { b.up[i].Close() }()
	}
	for i := range b.up {
		healthy(i)
	}
	js := b.stream()
	const count = 3000
	body := make([]byte, 16<<10)
	for range count {
		if _, err := js.PublishAsync("s", body); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		t.Fatal("not published in a minute")
	}
	b.up[0].Close()
	b.dirs[0] = t.TempDir()
	start(0)
	if healthy(0) == 0 {
		t.Error("it is healthy at once")
	}
	state, err := b.up[0].srv.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		t.Fatal(err)
	}
	if state.Messages != count {
		t.Errorf("it is healthy with %d of %d messages", state.Messages, count)
	}
	resp, err := http.Get("http://" + health[0] + "/varz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("it tells more than its health: %s", resp.Status)
	}
}
