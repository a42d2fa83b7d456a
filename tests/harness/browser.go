package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/chromedp/chromedp"
)

// Browser is a headless Chromium with a profile of its own, and one tab.
type Browser struct {
	t   T
	ctx context.Context

	mu   sync.Mutex
	said []string
}

// RunBrowser starts a browser with a window of 1280 by 800. Tests call Need(t, Chromium) before.
func RunBrowser(t T) *Browser {
	t.Helper()
	path, err := chromiumPath()
	if err != nil {
		t.Fatalf("%v", err)
	}
	profile := Dir(t, "chromium")
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path),
		chromedp.UserDataDir(profile),
		chromedp.WindowSize(1280, 800),
		chromedp.Flag("headless", true),
		chromedp.Flag("no-sandbox", true), // Chromium refuses its sandbox to root
		chromedp.Flag("no-first-run", true),
		chromedp.Flag("disable-gpu", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("hide-scrollbars", true),
		chromedp.Env("HOME=" + profile),
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	b := &Browser{t: t}
	ctx, cancel := chromedp.NewContext(allocator, chromedp.WithErrorf(b.note))
	b.ctx = ctx
	t.Cleanup(func() {
		cancel() // ends the browser and waits for it
		stop()
	})
	attachLog(t, b.log)
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1280, 800)); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return b
}

// Do runs browser actions, and fails the test with the text of the page when
// they do not end in time.
func (b *Browser) Do(timeout time.Duration, what string, actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, timeout)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("%s: %v; the page says:\n%s", what, err, b.Text())
	}
}

// Zoom shows more of the page in the same window, as Ctrl and minus do: 1 is
// the whole size.
func (b *Browser) Zoom(factor float64) {
	b.t.Helper()
	b.Do(10*time.Second, "zoom", chromedp.EmulateViewport(int64(1280/factor), int64(800/factor), chromedp.EmulateScale(factor)))
}

// Open goes to an address and waits until the page shows something. A page that
// stays blank is loaded again, as a person would: these are large applications,
// and on a busy machine a script of theirs may be late.
func (b *Browser) Open(url string) {
	b.t.Helper()
	for range 3 {
		b.Do(60*time.Second, "open "+url, chromedp.Navigate(url))
		for began := time.Now(); time.Since(began) < 25*time.Second; time.Sleep(50 * time.Millisecond) {
			if b.Text() != "" {
				return
			}
		}
		state, err := b.Eval(`location.href + " is " + document.readyState + ", " + document.documentElement.outerHTML.length + " bytes, " + document.documentElement.className`)
		b.t.Logf("blank page: %s, %v", state, err)
	}
	b.t.Fatalf("%s stays blank", url)
}

// Text is the visible text of the page.
func (b *Browser) Text() string {
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body ? document.body.innerText.trim() : ""`))
	if err != nil {
		return fmt.Sprintf("(no text: %v)", err)
	}
	return text
}

// Eval is the string that a JavaScript expression gives.
func (b *Browser) Eval(expression string) (string, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[string](expression))
}

// Screenshot saves what the window shows, when UPDATE_SCREENSHOTS=1: the
// pictures of the documentation change on purpose only.
func (b *Browser) Screenshot(path string) {
	b.t.Helper()
	if os.Getenv("UPDATE_SCREENSHOTS") != "1" {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatalf("take a screenshot: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatalf("%v", err)
	}
	if err := os.WriteFile(path, png, 0o644); err != nil {
		b.t.Fatalf("%v", err)
	}
}

func (b *Browser) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.said = append(b.said, fmt.Sprintf(format, args...))
}

func (b *Browser) log() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprintf("--- browser ---\n%v", b.said)
}
