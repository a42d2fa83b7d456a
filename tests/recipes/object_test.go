package recipes_test

import (
	"bytes"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"retinue/tests/harness"
)

// bucket answers GET and PUT the way S3 does: an ETag is the MD5 of the contents (whatever the metadata), If-None-Match: * creates only,
// If-Match replaces only that version, a condition that fails is 412, If-Match on nothing is 404.
type bucket struct {
	mu      sync.Mutex
	objects map[string]object
	history []int64  // fences of the writes it took
	before  []func() // one for each PUT to come, called before it
	status  []int    // one for each PUT to come: answered instead
}

type object struct {
	body []byte
	meta string
}

func (o object) etag() string { return fmt.Sprintf(`"%x"`, md5.Sum(o.body)) }

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b.mu.Lock()
	if r.Method == http.MethodPut && len(b.before) > 0 {
		before := b.before[0]
		b.before = b.before[1:]
		b.mu.Unlock()
		before()
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	old, exists := b.objects[r.URL.Path]
	switch r.Method {
	case http.MethodGet:
		if !exists {
			http.Error(w, "NoSuchKey", http.StatusNotFound)
			return
		}
		w.Header().Set("ETag", old.etag())
		w.Header().Set("x-amz-meta-fence", old.meta)
		w.Write(old.body)
	case http.MethodPut:
		match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
		switch {
		case len(b.status) > 0:
			w.WriteHeader(b.status[0])
			b.status = b.status[1:]
		case match != "" && !exists:
			http.Error(w, "NoSuchKey", http.StatusNotFound)
		case match != "" && match != old.etag(), none == "*" && exists:
			http.Error(w, "PreconditionFailed", http.StatusPreconditionFailed)
		default:
			b.put(r.URL.Path, object{body, r.Header.Get("x-amz-meta-fence")})
			w.Header().Set("ETag", b.objects[r.URL.Path].etag())
		}
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (b *bucket) put(path string, o object) {
	var content struct {
		Fence int64 `json:"fence"`
	}
	_ = json.Unmarshal(o.body, &content)
	b.history = append(b.history, content.Fence)
	b.objects[path] = o
}

func (b *bucket) next(status []int, before ...func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status, b.before = status, before
}

// objects is a bucket, with a file to put into it.
type objects struct {
	*bucket
	t         *testing.T
	url, file string
}

func newObjects(t *testing.T) *objects {
	need(t, "bash", "curl", "jq")
	b := &bucket{objects: map[string]object{}}
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	return &objects{b, t, srv.URL + "/bucket", filepath.Join(harness.Dir(t, "obj"), "state.json")}
}

// store runs the recipe.
func (o *objects) store(token int, value string) (status int) {
	o.t.Helper()
	file := fmt.Sprintf("%s.%d", o.file, token)
	if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
		o.t.Fatal(err)
	}
	out, status := script(o.t, fmt.Sprintf("fencing/put-object.sh %d %s %s/state.json", token, file, o.url))
	if status != 0 {
		o.t.Logf("token %d: %s", token, strings.TrimSpace(out))
	}
	return status
}

func (o *objects) want(fence int, value string) {
	o.t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	got := o.objects["/bucket/state.json"]
	var content struct {
		Fence int
		Value string
	}
	if err := json.Unmarshal(got.body, &content); err != nil || content.Fence != fence || content.Value != value || got.meta != fmt.Sprint(fence) {
		o.t.Errorf("the object is %s with fence %s in its metadata, want %q under %d", got.body, got.meta, value, fence)
	}
}

func TestObjectStorageCommands(t *testing.T) {
	o := newObjects(t)
	dir := filepath.Dir(o.file)
	if err := os.WriteFile(o.file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The page's commands name their files from the page's folder.
	text := strings.NewReplacer(" state.json ", " "+dir+"/state.json ").Replace(commands(t, "fencing.md", "Object storage"))
	if out := mustScript(t, text, "BUCKET="+o.url); strings.TrimSpace(out) != "42" {
		t.Errorf("the commands print %q", out)
	}
	o.want(42, "{}")
}

func TestObjectStorage(t *testing.T) {
	o := newObjects(t)
	newer := func(token int, value string) func() {
		return func() {
			if o.store(token, value) != 0 {
				t.Error("the newer leader could not write")
			}
		}
	}
	for _, step := range []struct {
		name       string
		token      int
		value      string
		status     []int
		before     func()
		want       int
		fence      int
		afterwards string
	}{
		{"creates", 10, "one", nil, nil, 0, 10, "one"},
		{"replaces its own", 10, "two", nil, nil, 0, 10, "two"},
		{"a former leader", 9, "late", nil, nil, 3, 10, "two"},
		{"a new leader", 12, "three", nil, nil, 0, 12, "three"},
		{"overtaken between read and write", 12, "late", nil, newer(13, "four"), 3, 13, "four"},
		{"overtaken by one that writes the same contents", 13, "late", nil, newer(14, "four"), 3, 14, "four"},
		{"overtaken by itself", 14, "six", nil, newer(14, "five"), 0, 14, "six"},
		{"the store is in conflict with itself", 14, "seven", []int{409, 412}, nil, 0, 14, "seven"},
		{"the store is down", 14, "eight", []int{503}, nil, 1, 14, "seven"},
		{"others are always faster", 14, "eight", []int{412, 412, 412, 412, 412}, nil, 1, 14, "seven"},
	} {
		t.Run(step.name, func(t *testing.T) {
			if step.before != nil {
				o.next(step.status, step.before)
			} else {
				o.next(step.status)
			}
			if got := o.store(step.token, step.value); got != step.want {
				t.Errorf("exit status %d, want %d", got, step.want)
			}
			o.want(step.fence, step.afterwards)
		})
	}
	if _, status := script(t, "fencing/put-object.sh 14 /dev/null http://127.0.0.1:1/nobody"); status == 0 || status == 3 {
		t.Errorf("exit status %d where nobody answers", status)
	}
}

func TestObjectStorageRace(t *testing.T) {
	o := newObjects(t)
	var all sync.WaitGroup
	for token := 21; token <= 26; token++ {
		all.Go(func() { o.store(token, fmt.Sprint("by ", token)) })
	}
	all.Wait()
	if len(o.history) == 0 {
		t.Fatal("nothing was stored")
	}
	for i := 1; i < len(o.history); i++ {
		if o.history[i] < o.history[i-1] {
			t.Errorf("fences %d: a former leader's write came through", o.history)
		}
	}
}

// TestMetadataIsNoFence shows the trap that the page warns of: with the fence in the metadata alone, an ETag of the contents lets a
// former leader's write through.
func TestMetadataIsNoFence(t *testing.T) {
	o := newObjects(t)
	put := func(fence, etag string) int {
		req, err := http.NewRequest(http.MethodPut, o.url+"/plain", bytes.NewReader([]byte("same contents")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("x-amz-meta-fence", fence)
		if etag != "" {
			req.Header.Set("If-Match", etag)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	put("41", "")
	seen := o.objects["/bucket/plain"].etag() // the former leader reads, and pauses
	put("42", seen)
	if status := put("41", seen); status != http.StatusOK || o.objects["/bucket/plain"].meta != "41" {
		t.Errorf("status %d: this store's ETags cover the metadata, so it cannot show the trap", status)
	}
}
