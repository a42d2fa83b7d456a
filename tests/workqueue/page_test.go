package workqueue_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"retinue/tests/harness"
)

// The coordinator's own page shows the stage, what is in hand and dead letters to a browser, and takes nobody's text for anything else.
func TestPage(t *testing.T) {
	harness.Need(t, harness.Chromium)
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a free port
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.CommandContext(t.Context(), harness.RetinueBinary(t), "coordinator", "--queue", "thumbs", "--broker", "memory:", "--done", dir+"/done", "--work", dir+"/wq", "--attempts", "1", "--slots", "1",
		"--listen", "tcp://"+addr, "--", "/bin/sh", "-c", `case $RETINUE_ITEM in long) sleep 60;; bad*) echo '{"verdict":"dead","reason":"<b id=evil>no</b>"}' >status;; esac`)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for _, id := range []string{"good", "bad", "long", "waits"} {
		harness.Eventually(t, 20*time.Second, "put "+id, func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/queues/thumbs/items", strings.NewReader("x"))
			if err != nil {
				return err
			}
			req.Header.Set("Idempotency-Key", id)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			resp.Body.Close()
			if resp.StatusCode > 299 {
				return fmt.Errorf("%s", resp.Status)
			}
			return nil
		})
	}
	b := harness.RunBrowser(t)
	b.Open("http://" + addr + "/")
	harness.Eventually(t, 60*time.Second, "the page shows the stage", func(context.Context) error {
		text := b.Text()
		for _, word := range []string{"thumbs", "running", "1 / 1", "long", "waits", "refused: ", "<b id=evil>no</b>"} {
			if !strings.Contains(text, word) {
				return fmt.Errorf("%q is not there; the page says:\n%s", word, text)
			}
		}
		return nil
	})
	if found, err := b.Eval(`String(document.getElementById("evil"))`); err != nil || found != "null" {
		t.Errorf("a reason became an element: %s, %v", found, err)
	}
}
