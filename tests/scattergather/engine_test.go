package scattergather_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"retinue/internal/demo/scattergather"
	"retinue/internal/toolchain"
	"retinue/tests/harness"
)

// hits is an answer of the example's leaf and of its merge.
type hits struct {
	Hits []struct {
		ID    string
		Score float64
	}
}

func decode(t *testing.T, a answer) (h hits) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), &h); a.status != http.StatusOK || err != nil {
		t.Fatalf("%d, %v: %s", a.status, err, a.body)
	}
	return h
}

// The example of gather/example, a search engine in Go with a merge in Python,
// answers on every driver as one index over the whole corpus does.
func TestSearchEngine(t *testing.T) {
	harness.Need(t, harness.Program("python3", true))
	example := filepath.Join(harness.RepoRoot(t), "gather", "example")
	leaf, err := toolchain.BuildModule(t.Context(), example, "./leaf")
	if err != nil {
		t.Fatal(err)
	}
	dir := harness.Dir(t, "engine")
	corpus := filepath.Join(dir, "text")
	words := writeCorpus(t, corpus)
	whole := startLeaf(t, leaf, "--corpus", corpus, "--stats", filepath.Join(dir, "stats.json"), "--index", dir)
	artifacts := map[string][]byte{"/leaf.tar.gz": pack(t, dir, leaf)}
	if artifacts["/merge.tar.gz"], err = scattergather.PackPython(t.Context(), filepath.Join(example, "merge", "merge.py")); err != nil {
		t.Fatal(err)
	}
	for driver, on := range drivers {
		t.Run(driver, func(t *testing.T) {
			harness.Need(t, on.needs...)
			c := cluster.Get(t)
			base := serveFiles(t, c.TaskGateway(), artifacts)
			id := "engine-" + strings.ReplaceAll(driver, "_", "-")
			vars := with(on.vars(c), map[string]string{
				"shards": "3", "replicas": "1", "deadline": "2s",
				"leaf_command": "$${NOMAD_TASK_DIR}/leaf", "leaf_artifacts": `["` + base + `/leaf.tar.gz"]`,
				"leaf_args": `["--corpus", "$${NOMAD_TASK_DIR}/text", "--stats", "$${NOMAD_TASK_DIR}/stats.json", "--index", "$${NOMAD_TASK_DIR}",` +
					` "--shard", "$${RETINUE_SHARD}", "--shards", "$${RETINUE_SHARDS}", "--listen", "$${RETINUE_LISTEN}"]`,
				"merge_command": "$${NOMAD_TASK_DIR}/python/ld.so", "merge_artifacts": `["` + base + `/merge.tar.gz"]`,
				"merge_args": `["--library-path", "$${NOMAD_TASK_DIR}/python/lib", "$${NOMAD_TASK_DIR}/python/bin/python3", "-S", "$${NOMAD_TASK_DIR}/merge.py"]`,
				"merge_env":  `{PYTHONHOME="$${NOMAD_TASK_DIR}/python"}`,
			})
			for _, name := range []string{"leaf_command", "merge_command"} { // a string is taken as it is, a list is an expression
				vars[name] = strings.ReplaceAll(vars[name], "$$", "$")
			}
			s := run(t, "scatter-gather", id, 4, []string{id + "-leaf"}, vars)
			s.until(http.StatusOK, "1")
			for n := range 40 {
				query := fmt.Sprintf("%s %s", words[n%len(words)], words[(n*7+3)%len(words)])
				got, want := decode(t, s.ask(query)), decode(t, whole.ask(query))
				if len(want.Hits) == 0 || !reflect.DeepEqual(got, want) {
					t.Fatalf("%q:\ngathered %+v\nwhole    %+v", query, got, want)
				}
			}
			if a := s.ask("nowhere-to-be-found"); len(decode(t, a).Hits) != 0 || !strings.Contains(a.header.Get("Retinue-Shards"), "empty=3") {
				t.Errorf("nothing to find: %v %s", a.header, a.body)
			}
		})
	}
}

// writeCorpus writes documents of a small vocabulary, which it returns.
func writeCorpus(t *testing.T, dir string) (words []string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		words = append(words, fmt.Sprintf("word%c%c", 'a'+i/26, 'a'+i%26))
	}
	choice := rand.New(rand.NewPCG(3, 5))
	for i := range 200 {
		var text []string
		for range 30 + choice.IntN(60) {
			text = append(text, words[min(choice.IntN(60), choice.IntN(60))])
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("doc-%d.txt", i)), []byte(strings.Join(text, " ")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return words
}

var listening = regexp.MustCompile(`listening on http://(\S+)`)

// startLeaf runs the leaf as a process of the machine.
func startLeaf(t *testing.T, path string, args ...string) *search {
	t.Helper()
	p := harness.Start(t, harness.Spec{Name: "whole-index", Path: path, Args: args})
	harness.Eventually(t, time.Minute, "the whole corpus is indexed", func(context.Context) error {
		if !listening.MatchString(p.Log()) {
			return fmt.Errorf("log: %s", p.Log())
		}
		return nil
	})
	return &search{t: t, root: listening.FindStringSubmatch(p.Log())[1]}
}

// pack makes the leaf's artifact: the program, the statistics and the corpus.
func pack(t *testing.T, dir, leaf string) []byte {
	t.Helper()
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	w := tar.NewWriter(gz)
	add := func(name, source string, mode int64) {
		data, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	add("leaf", leaf, 0o755)
	add("stats.json", filepath.Join(dir, "stats.json"), 0o644)
	texts, err := filepath.Glob(filepath.Join(dir, "text", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		add("text/"+filepath.Base(text), text, 0o644)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// serveFiles answers on an address of this machine that the nodes reach.
func serveFiles(t *testing.T, host string, files map[string][]byte) string {
	t.Helper()
	ln, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, r.URL.Path, time.Time{}, bytes.NewReader(files[r.URL.Path]))
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close() })
	return "http://" + ln.Addr().String()
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// The merge gives up a request whose body ends without its end line, and goes on with the next.
func TestMergeInPython(t *testing.T) {
	harness.Need(t, harness.Program("python3", true), harness.Program("curl", true))
	listen := "127.0.0.1:" + freePort(t)
	harness.Start(t, harness.Spec{Name: "merge", Path: "python3", Args: []string{filepath.Join(harness.RepoRoot(t), "gather", "example", "merge", "merge.py"), listen}})
	const request = `{"request":{"query":"q=x&k=2"}}` + "\n"
	const a = `{"shard":0,"status":200,"body":{"hits":[{"id":"b","score":2},{"id":"d","score":1}]}}` + "\n"
	const b = `{"shard":1,"status":200,"body":{"hits":[{"id":"a","score":2},{"id":"c","score":0.5}]}}` + "\n"
	const end = `{"end":true,"reason":"complete","coverage":{"fraction":1}}` + "\n"
	send := func(body string) (string, error) {
		cmd := exec.Command("curl", "-s", "--retry-connrefused", "--retry", "50", "--retry-delay", "1", "-H", "Transfer-Encoding: chunked", "--data-binary", "@-", "http://"+listen+"/")
		cmd.Stdin = strings.NewReader(body)
		out, err := cmd.Output()
		return string(out), err
	}
	const best = `{"hits": [{"id": "a", "score": 2}, {"id": "b", "score": 2}], "reason": "complete", "coverage": 1}`
	for what, c := range map[string]struct{ body, want string }{
		"two shards":           {request + a + b + end, best},
		"in another order":     {request + b + a + end, best},
		"one answer twice":     {request + a + b + a + end, best},
		"no leaf at all":       {request + end, `{"hits": [], "reason": "complete", "coverage": 1}`},
		"an empty one":         {request + `{"shard":1,"status":204}` + "\n" + end, `{"hits": [], "reason": "complete", "coverage": 1}`},
		"an abandoned request": {request + a, ""},
	} {
		got, err := send(c.body)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
}
