package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue/coordinator/blob"
	"retinue/coordinator/blob/blobtest"
	"retinue/coordinator/item"
)

func random(n int) []byte {
	data := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(data)
	return data
}

func reference(address string, data []byte) item.Reference {
	sum := sha256.Sum256(data)
	return item.Reference{URL: address, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
}

// web is a server of one file that does what a test says to a request first.
type web struct {
	*httptest.Server
	mu     sync.Mutex
	data   []byte
	etag   string
	ranges []string
	before func(n int, w http.ResponseWriter, r *http.Request) bool
}

func serve(t *testing.T, data []byte) *web {
	s := &web{data: data, etag: `"one"`}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.ranges = append(s.ranges, r.Header.Get("Range"))
		n, before, data, etag := len(s.ranges), s.before, s.data, s.etag
		s.mu.Unlock()
		if before != nil && before(n, w, r) {
			return
		}
		w.Header().Set("ETag", etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(s.Close)
	return s
}

// breaking is a ResponseWriter whose connection breaks after so many bytes.
type breaking struct {
	http.ResponseWriter
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	if len(p) >= b.left {
		_, _ = b.ResponseWriter.Write(p[:b.left])
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	b.left -= len(p)
	return b.ResponseWriter.Write(p)
}

func open(t *testing.T, dir string, limit int64, env blob.Environment, allow ...string) *blob.Cache {
	t.Helper()
	var prefixes []blob.Prefix
	for _, a := range allow {
		p, err := blob.ParsePrefix(a)
		if err != nil {
			t.Fatal(err)
		}
		prefixes = append(prefixes, p)
	}
	c, err := blob.NewCache(dir, limit, prefixes, env)
	if err != nil {
		t.Fatal(err)
	}
	c.Hurry()
	return c
}

func fetch(t *testing.T, c *blob.Cache, ref item.Reference, attempt string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	path, err := c.Fetch(ctx, ref, attempt, func() {})
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data), nil
}

// The connection breaks again and again; each time it goes on where it broke.
func TestResume(t *testing.T) {
	data := random(1 << 20)
	s := serve(t, data)
	s.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n < 8 {
			w.Header().Set("ETag", `"one"`)
			http.ServeContent(&breaking{w, 100_000}, r, "", time.Time{}, bytes.NewReader(data))
		}
		return false
	}
	c := open(t, t.TempDir(), 1<<30, blob.Environment{}, s.URL)
	if got, err := fetch(t, c, reference(s.URL+"/a", data), "1"); err != nil || got != string(data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if len(s.ranges) != 8 || s.ranges[0] != "" || s.ranges[1] == "" || slices.Contains(s.ranges[2:], s.ranges[1]) {
		t.Errorf("%q", s.ranges)
	}
	if hits, fetched, failed, n := c.Counts(); hits != 0 || fetched != 1 || failed != 0 || n != uint64(len(data)) {
		t.Errorf("%d %d %d, %d bytes", hits, fetched, failed, n)
	}
	// Again: from the disk.
	if got, err := fetch(t, c, reference(s.URL+"/other", data), "2"); err != nil || got != string(data) || len(s.ranges) != 8 {
		t.Errorf("%v, %d requests", err, len(s.ranges))
	}
}

// What a killed coordinator had is gone on with, and thrown away when it was of something else.
func TestResumeAfterKill(t *testing.T) {
	data := random(300_000)
	for name, part := range map[string][]byte{"same": data[:120_000], "other": random(1000), "whole": data, "too long": random(400_000)} {
		t.Run(name, func(t *testing.T) {
			s, dir := serve(t, data), t.TempDir()
			ref := reference(s.URL+"/a", data)
			if err := os.MkdirAll(filepath.Join(dir, "part"), 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "part", ref.SHA256), part, 0o666); err != nil {
				t.Fatal(err)
			}
			c := open(t, dir, 1<<30, blob.Environment{}, s.URL)
			if got, err := fetch(t, c, ref, "1"); err != nil || got != string(data) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if name == "same" && (len(s.ranges) != 1 || s.ranges[0] != "bytes=120000-") || name == "whole" && len(s.ranges) != 0 {
				t.Errorf("%q", s.ranges)
			}
		})
	}
}

// A server that knows no ranges, and one whose object has changed meanwhile, begin anew.
func TestNoRanges(t *testing.T) {
	data, changed := random(300_000), random(300_001)
	for name, second := range map[string]func(s *web, w http.ResponseWriter, r *http.Request) bool{
		"none":    func(_ *web, w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(data); return true },
		"changed": func(s *web, w http.ResponseWriter, r *http.Request) bool { return false },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, data)
			want := data
			s.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if n == 1 {
					w.Header().Set("ETag", `"one"`)
					if name == "changed" {
						s.mu.Lock()
						s.data, s.etag = changed, `"two"`
						s.mu.Unlock()
					}
					http.ServeContent(&breaking{w, 100_000}, r, "", time.Time{}, bytes.NewReader(data))
				}
				return second(s, w, r)
			}
			if name == "changed" {
				want = changed
			}
			c := open(t, t.TempDir(), 1<<30, blob.Environment{}, s.URL)
			ref := reference(s.URL+"/a", want)
			ref.Size = 0
			if got, err := fetch(t, c, ref, "1"); err != nil || got != string(want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// What is the reference's fault and what is not.
func TestBlame(t *testing.T) {
	data := random(1000)
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter)
		blame  bool
	}{
		{"404", func(w http.ResponseWriter) { w.WriteHeader(404) }, true},
		{"410", func(w http.ResponseWriter) { w.WriteHeader(410) }, true},
		{"403", func(w http.ResponseWriter) { blobtest.Refuse(w, 403, "AccessDenied") }, true},
		{"401", func(w http.ResponseWriter) { w.WriteHeader(401) }, true},
		{"expired", func(w http.ResponseWriter) { blobtest.Refuse(w, 400, "ExpiredToken") }, false},
		{"clock", func(w http.ResponseWriter) { blobtest.Refuse(w, 403, "RequestTimeTooSkewed") }, false},
		{"500", func(w http.ResponseWriter) { w.WriteHeader(500) }, false},
		{"503", func(w http.ResponseWriter) { blobtest.Refuse(w, 503, "SlowDown") }, false},
		{"429", func(w http.ResponseWriter) { w.WriteHeader(429) }, false},
		{"reset", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, false},
		{"longer", func(w http.ResponseWriter) { _, _ = w.Write(random(1001)) }, true},
		{"chunked and longer", func(w http.ResponseWriter) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(random(1001))
		}, true},
		{"other", func(w http.ResponseWriter) { _, _ = w.Write(make([]byte, 1000)) }, true},
		{"redirect", func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://127.0.0.1:1/x")
			w.WriteHeader(302)
		}, true},
	} {
		s := serve(t, data)
		s.before = func(_ int, w http.ResponseWriter, _ *http.Request) bool { c.answer(w); return true }
		cache := open(t, t.TempDir(), 1<<20, blob.Environment{}, s.URL)
		_, err := fetch(t, cache, reference(s.URL+"/a?signature=geheim", data), "1")
		if err == nil || blob.Blame(err) != c.blame {
			t.Errorf("%s: %v, to blame %t", c.name, err, blob.Blame(err))
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: the signature stands in %q", c.name, err)
		}
	}
	cache := open(t, t.TempDir(), 1<<20, blob.Environment{}, "http://127.0.0.1:1")
	if _, err := fetch(t, cache, reference("http://127.0.0.1:1/a?signature=geheim", data), "1"); err == nil || blob.Blame(err) || strings.Contains(err.Error(), "geheim") {
		t.Errorf("nobody listens: %v", err)
	}
	bad := reference("http://127.0.0.1:1/a", data)
	bad.SHA256 = "xyz"
	if _, err := fetch(t, cache, bad, "1"); !blob.Blame(err) {
		t.Errorf("no sum: %v", err)
	}
}

// A connection over which nothing comes is broken.
func TestStall(t *testing.T) {
	data := random(100_000)
	s := serve(t, data)
	s.before = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n == 1 {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(data[:5000])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}
		return false
	}
	c := open(t, t.TempDir(), 1<<20, blob.Environment{}, s.URL)
	c.Client.Impatient(200 * time.Millisecond)
	if got, err := fetch(t, c, reference(s.URL+"/a", data), "1"); err != nil || got != string(data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := c.Fetch(ctx, reference(s.URL+"/b", random(7)), "2", func() {}); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
}

func TestAllow(t *testing.T) {
	s := serve(t, nil)
	c := open(t, t.TempDir(), 1<<20, s2(s.URL), s.URL+"/in/", "s3://b/in")
	for address, allowed := range map[string]bool{
		s.URL + "/in/a": true, s.URL + "/in": true, s.URL + "/inside": false, s.URL + "/in/../etc": false, s.URL + "/in/%2e%2e/etc": false, s.URL + "/": false,
		"s3://b/in/x": true, "s3://b/out/x": false, "s3://c/in/x": false, "http://127.0.0.1:1/in/a": false, "https" + strings.TrimPrefix(s.URL, "http") + "/in/a": false,
		"http://user:geheim@" + strings.TrimPrefix(s.URL, "http://") + "/in/a": false, "s3://b/in/x?versionId=1": false, "http:///in/a": false,
	} {
		_, err := fetch(t, c, item.Reference{URL: address}, "1")
		if errors.Is(err, blob.ErrNotAllowed) == allowed {
			t.Errorf("%s: %v", address, err)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("a password stands in %q", err)
		}
	}
	for _, bad := range []string{"ftp://a/b", "s3://", "http://a/../b", "https://a/?x=y", "http://u:p@a/"} {
		if _, err := blob.ParsePrefix(bad); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

func s2(endpoint string) blob.Environment {
	return blob.ReadEnvironment(func(name string) string { return map[string]string{"AWS_ENDPOINT_URL": endpoint}[name] })
}

// The cache stays within its bound; what attempts have stays, and what was not used for longest goes first.
func TestBound(t *testing.T) {
	s := serve(t, nil)
	dir := t.TempDir()
	c := open(t, dir, 250_000, blob.Environment{}, s.URL)
	get := func(n int, attempt string) error {
		s.mu.Lock()
		s.data = random(n)
		s.mu.Unlock()
		_, err := fetch(t, c, reference(fmt.Sprint(s.URL, "/", n), random(n)), attempt)
		return err
	}
	there := func(n int) bool {
		_, err := os.Stat(filepath.Join(dir, "whole", reference("", random(n)).SHA256))
		return err == nil
	}
	if err := get(100_000, "1"); err != nil {
		t.Fatal(err)
	}
	if err := get(100_001, "2"); err != nil {
		t.Fatal(err)
	}
	if err := get(100_002, "3"); !errors.Is(err, blob.ErrFull) || blob.Blame(err) {
		t.Fatalf("both are in use: %v", err)
	}
	c.Release("1")
	c.Release("2")
	if err := get(100_000, "4"); err != nil { // used again: the other one goes
		t.Fatal(err)
	}
	if err := get(100_002, "5"); err != nil || !there(100_000) || there(100_001) || !there(100_002) {
		t.Errorf("%v: %t %t %t", err, there(100_000), there(100_001), there(100_002))
	}
	if err := get(250_001, "6"); !errors.Is(err, blob.ErrTooLarge) || !blob.Blame(err) {
		t.Errorf("%v", err)
	}
	// Without a sum it is for its attempt alone.
	ref := item.Reference{URL: s.URL + "/x"}
	c.Release("4")
	c.Release("5")
	if _, err := fetch(t, c, ref, "7"); err != nil && !errors.Is(err, blob.ErrTooLarge) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "part")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	// The links of attempts that died go at the next start.
	again := open(t, dir, 250_000, blob.Environment{}, s.URL)
	if held, _ := os.ReadDir(filepath.Join(again.Dir, "held")); len(held) != 0 {
		t.Errorf("held: %v", held)
	}
}

// A file of the cache that somebody wrote to is fetched again.
func TestSpoiled(t *testing.T) {
	data := random(5000)
	s := serve(t, data)
	c := open(t, t.TempDir(), 1<<20, blob.Environment{}, s.URL)
	ref := reference(s.URL+"/a", data)
	path, err := c.Fetch(t.Context(), ref, "1", func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("spoiled"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := fetch(t, c, ref, "2"); err != nil || got != string(data) || len(s.ranges) != 2 {
		t.Errorf("%d bytes, %v, %d requests", len(got), err, len(s.ranges))
	}
}

// Many who want the same fetch it once.
func TestTogether(t *testing.T) {
	data := random(200_000)
	s := serve(t, data)
	c := open(t, t.TempDir(), 1<<20, blob.Environment{}, s.URL)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if got, err := fetch(t, c, reference(s.URL+"/a", data), fmt.Sprint(i)); err != nil || got != string(data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if len(s.ranges) != 1 {
		t.Errorf("%d requests", len(s.ranges))
	}
}

// The same over S3, with keys that need escaping.
func TestS3(t *testing.T) {
	s := blobtest.Start(t)
	client := blob.NewClient(s.Environment(), nil)
	file := filepath.Join(t.TempDir(), "f")
	data := random(300_000)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	u := &url.URL{Scheme: "s3", Host: "b", Path: "/in/a b+ü%2F~.jpg"}
	size, sum, err := client.PutFile(t.Context(), u, file)
	if ref := reference("", data); err != nil || size != ref.Size || sum != ref.SHA256 {
		t.Fatalf("%d %s, %v", size, sum, err)
	}
	c := open(t, t.TempDir(), 1<<20, s.Environment(), "s3://b/in/")
	first := true
	s.Gate(func(w http.ResponseWriter, r *http.Request) bool {
		if first && r.Method == http.MethodGet {
			first = false
			w.Header().Set("Content-Length", "300000")
			_, _ = w.Write(data[:120_000])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		return false
	})
	if got, err := fetch(t, c, reference(u.String(), data), "1"); err != nil || got != string(data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := fetch(t, c, item.Reference{URL: "s3://b/in/none"}, "2"); !blob.Blame(err) || !strings.Contains(err.Error(), "NoSuchKey") {
		t.Errorf("%v", err)
	}
	// Create-if-absent, lists, deletes.
	at := func(i int) *url.URL { return &url.URL{Scheme: "s3", Host: "b", Path: fmt.Sprintf("/list/%04d", i)} }
	for i := range 5 {
		if err := client.Create(t.Context(), at(i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Create(t.Context(), at(3), []byte("y")); !errors.Is(err, blob.ErrExists) {
		t.Errorf("created twice: %v", err)
	}
	if err := client.Delete(t.Context(), at(1)); err != nil {
		t.Error(err)
	}
	if err := client.Delete(t.Context(), at(1)); err != nil {
		t.Errorf("deleted twice: %v", err)
	}
	var keys []string
	if err := client.Each(t.Context(), &url.URL{Scheme: "s3", Host: "b", Path: "/list/"}, func(key string) error { keys = append(keys, key); return nil }); err != nil || strings.Join(keys, " ") != "list/0000 list/0002 list/0003 list/0004" {
		t.Errorf("%q %v", keys, err)
	}
	if data, _, err := client.ReadAll(t.Context(), at(1), 10); data != nil || err != nil {
		t.Errorf("%q %v", data, err)
	}
	// A link, or a wrong key.
	link := filepath.Join(t.TempDir(), "l")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if _, _, err := client.PutFile(t.Context(), u, link); err == nil {
		t.Error("a link was uploaded")
	}
	if err := blob.NewClient(s2(s.URL), nil).Create(t.Context(), at(9), nil); err == nil || blob.Blame(err) {
		t.Errorf("without a key: %v", err)
	}
}

// Credentials come from a file that may change.
func TestCredentials(t *testing.T) {
	s := blobtest.Start(t)
	file := filepath.Join(t.TempDir(), "credentials")
	client := blob.NewClient(blob.ReadEnvironment(func(name string) string {
		return map[string]string{"AWS_ENDPOINT_URL_S3": s.URL + "/", "AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "queue"}[name]
	}), nil)
	u := &url.URL{Scheme: "s3", Host: "b", Path: "/x"}
	for _, c := range []struct{ text, want string }{
		{"", "is not there"},
		{"[default]\naws_access_key_id = a\naws_secret_access_key = b\n", "profile queue"},
		{"[queue]\naws_access_key_id=wrong\naws_secret_access_key=geheim\n", "InvalidAccessKeyId"},
		{"[default]\naws_access_key_id = a\n[queue]\n# ours\naws_access_key_id = " + blobtest.Key + "\naws_secret_access_key = geheim\naws_session_token = t\n", ""},
	} {
		if c.text != "" {
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := client.Put(t.Context(), u, []byte("x"))
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || blob.Blame(err) || strings.Contains(err.Error(), "geheim")) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

func FuzzAddress(f *testing.F) {
	f.Add("https://host/in/a", "https://host/in")
	f.Add("s3://b/in/%2e%2e/a", "s3://b/in/")
	f.Fuzz(func(t *testing.T, address, prefix string) {
		u, err := blob.Parse(address)
		if err != nil {
			return
		}
		p, err := blob.ParsePrefix(prefix)
		if err != nil || !p.Has(u) {
			return
		}
		if clean := u.JoinPath(); strings.Contains(clean.Path, "..") && !strings.Contains(u.Path, "..") || !p.Has(u) {
			t.Errorf("%s below %s", address, prefix)
		}
		for _, part := range strings.Split(u.Path, "/") {
			if part == ".." {
				t.Errorf("%s goes upwards", address)
			}
		}
	})
}
