package gather

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// A body has room for what it was asked for, and hardly more; what was given back is taken again.
func TestBuffers(t *testing.T) {
	var b buffers
	for n := int64(0); n < 40<<20; n += 1 + n/7 {
		for _, n := range []int64{n, n + 1} {
			body := b.get(n)
			if c := int64(cap(body)); c < n || c > n+n/bufferSteps+1 || len(body) != 0 {
				t.Fatalf("%d bytes: %d of %d", n, len(body), c)
			}
			b.put(body) // sizes that are no pool's too
		}
	}
	reused := false
	for range 100 { // the race detector makes a pool forget now and then
		body := append(b.get(98<<10), 'x')
		b.put(body)
		again := b.get(99 << 10)[:1]
		reused = reused || &again[0] == &body[0]
	}
	if !reused {
		t.Error("nothing is taken again")
	}
}

// A body is nobody else's while its answer is under way, whatever the merge makes of it.
func TestBodiesOfManyRequests(t *testing.T) {
	const size = 48 << 10
	leaf := func(shard string) *leafServer {
		return newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("chunked") {
				w.(http.Flusher).Flush()
			}
			io.WriteString(w, `"`+strings.Repeat(r.URL.Query().Get("n")+shard, size/3)+`"`)
		})
	}
	list := [][]*leafServer{{leaf("a")}, {leaf("b")}, {leaf("c")}}
	echo := newLeaf(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})
	for name, change := range map[string]func(*Settings){
		"concat":    func(*Settings) {},
		"stream":    func(s *Settings) { s.Stream = true },
		"array":     func(s *Settings) { s.Merge.URL = "json-array" },
		"first":     func(s *Settings) { s.Merge.URL, s.Partial.Policy = "first", "quorum(1)" },
		"container": func(s *Settings) { s.Merge.URL, s.Merge.Format = echo.URL, "batch" },
		"multipart": func(s *Settings) { s.Merge.URL, s.Merge.Format = echo.URL, "multipart" },
	} {
		t.Run(name, func(t *testing.T) {
			r := newTestRoot(t, func(s *Settings) {
				s.Leaf.Static = leaves(list...)
				change(s)
			})
			var clients sync.WaitGroup
			for i := range 4 {
				clients.Go(func() {
					for j := range 24 {
						n := fmt.Sprintf("%c%c", 'A'+i, 'A'+j)
						path := "/?n=" + n
						if j%3 == 0 {
							path += "&chunked"
						}
						a := r.get(t, path)
						if a.status != 200 {
							t.Errorf("%d %.200s", a.status, a.body)
							continue
						}
						whole := 0
						for _, shard := range []string{"a", "b", "c"} {
							if strings.Contains(a.body, strings.Repeat(n+shard, size/3)) {
								whole++
							}
						}
						if want := 3; whole != want && (name != "first" || whole != 1) {
							t.Errorf("%d of %d bodies are whole", whole, want)
						}
					}
				})
			}
			clients.Wait()
		})
	}
}
