package devcluster

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue/internal/hint"
)

// fakeEngine serves handler on a Unix socket.
func fakeEngine(t *testing.T, handler http.Handler) *Engine {
	t.Helper()
	// Not t.TempDir: a socket's path must be short.
	dir, err := os.MkdirTemp("", "rt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	srv.Start()
	t.Cleanup(srv.Close)
	return NewEngine(l.Addr().String())
}

// TestImagesAreBuiltOnChange plays an engine that keeps labels as Docker does.
func TestImagesAreBuiltOnChange(t *testing.T) {
	images, imports := map[string]map[string]string{}, 0
	replaced, removed := []map[string]any{}, 0
	mux := http.NewServeMux()
	mux.HandleFunc("GET /images/{name}/json", func(w http.ResponseWriter, r *http.Request) {
		labels, ok := images[r.PathValue("name")]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"message": "No such image"}`)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"Config": map[string]any{"Labels": labels}})
	})
	mux.HandleFunc("POST /images/create", func(w http.ResponseWriter, r *http.Request) {
		imports++
		q := r.URL.Query()
		labels := map[string]string{}
		for _, c := range q["changes"] {
			if kv, ok := strings.CutPrefix(c, "LABEL "); ok {
				k, v, _ := strings.Cut(kv, "=")
				labels[k] = v
			}
			if strings.HasPrefix(c, "ENTRYPOINT") {
				t.Error("an entry point would swallow a jobspec's command")
			}
		}
		name := q.Get("repo") + ":" + q.Get("tag")
		if images[name] != nil {
			replaced = append(replaced, map[string]any{"Id": fmt.Sprintf("sha256:%d", imports), "Created": time.Now().Unix()})
		}
		images[name] = labels
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, `{"status":"sha256:abc"}`)
	})
	mux.HandleFunc("POST /images/{name}/tag", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		images[q.Get("repo")+":"+q.Get("tag")] = images[r.PathValue("name")]
		w.WriteHeader(http.StatusCreated)
	})
	mux.HandleFunc("GET /images/json", func(w http.ResponseWriter, r *http.Request) {
		if f := r.URL.Query().Get("filters"); !strings.Contains(f, labelContent) {
			t.Errorf("asks for images of others: %s", f)
		}
		json.NewEncoder(w).Encode(append(slices.Clone(replaced),
			map[string]any{"Id": "current", "RepoTags": []string{Image(), Image() + "-0123456789ab"}, "Created": 1},
			map[string]any{"Id": "yesterday", "RepoTags": []string{Image() + "-ba9876543210"}, "Created": 1},
			map[string]any{"Id": "today", "RepoTags": []string{Image() + "-aaaaaaaaaaaa"}, "Created": time.Now().Unix()}))
	})
	mux.HandleFunc("DELETE /images/{id}", func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("id") {
		case "current", "today":
			t.Errorf("removes the image of %s", r.PathValue("id"))
		}
		if removed++; removed == 1 {
			w.WriteHeader(http.StatusConflict) // a container still uses it
			io.WriteString(w, `{"message": "image is being used"}`)
		}
	})
	e := fakeEngine(t, mux)
	bin := filepath.Join(t.TempDir(), "retinue")
	write := func(text string) {
		if err := os.WriteFile(bin, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	names := map[string]string{}
	for i, step := range []struct {
		content string
		built   bool
		total   int
	}{{"one", true, 2}, {"one", false, 2}, {"two", true, 4}, {"two", false, 4}} {
		write(step.content)
		name, built, err := buildImages(t.Context(), e, bin)
		if err != nil || built != step.built || imports != step.total {
			t.Errorf("step %d: built %v, %d imports, %v", i, built, imports, err)
		}
		if old := names[step.content]; old != "" && old != name {
			t.Errorf("step %d: the same content is %s, and was %s", i, name, old)
		}
		names[step.content] = name
	}
	// The pause image without a name, and twice the one of yesterday: the first time it was in use.
	if removed != 3 {
		t.Errorf("%d replaced images were removed, want 3", removed)
	}
	one, two := images[names["one"]], images[names["two"]]
	if names["one"] == names["two"] || one == nil || two == nil || images[Image()][labelContent] != two[labelContent] {
		t.Errorf("builds share a name, or the version's is not the newest: %v, %v", names, images)
	}
	if images[Image()] == nil || images[PauseImage()] == nil {
		t.Errorf("images: %v", images)
	}
}

func TestEngineErrors(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /images/create", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"status":"working"}`+"\n"+`{"error":"no space left on device"}`)
	})
	mux.HandleFunc("DELETE /containers/gone", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) })
	mux.HandleFunc("DELETE /containers/stuck", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	e := fakeEngine(t, mux)
	if err := e.importImage(t.Context(), "a:b", nil); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("an error inside the stream: %v", err)
	}
	if err := e.removeContainer(t.Context(), "gone"); err != nil {
		t.Errorf("a container that is gone: %v", err)
	}
	if err := e.removeContainer(t.Context(), "stuck"); err == nil {
		t.Error("a container that stays is no error")
	}
	_, err := NewEngine("/nowhere/docker.sock").Version(t.Context())
	if err == nil || !strings.Contains(hint.Of(err), "--docker=off") {
		t.Errorf("%v (%s)", err, hint.Of(err))
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("stop"))
	if _, err := e.containers(ctx); err == nil {
		t.Error("a cancelled request succeeds")
	}
}

// TestContainersOfTheCluster removes by allocation and by mount, the pause
// container with them, and leaves everybody else's alone.
func TestContainersOfTheCluster(t *testing.T) {
	list := `[
	 {"Id":"by-alloc","Labels":{"com.hashicorp.nomad.alloc_id":"A"},"Mounts":[]},
	 {"Id":"by-mount","Labels":{"com.hashicorp.nomad.alloc_id":"B"},"Mounts":[{"Source":"/tmp/d/c1/B/alloc"}]},
	 {"Id":"pause-of-b","Labels":{"com.hashicorp.nomad.alloc_id":"B"},"Mounts":[]},
	 {"Id":"foreign","Labels":{"com.hashicorp.nomad.alloc_id":"C"},"Mounts":[{"Source":"/tmp/d2/c1/C/alloc"}]}
	]`
	removed := map[string]bool{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containers/json", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, list) })
	mux.HandleFunc("DELETE /containers/{id}", func(w http.ResponseWriter, r *http.Request) { removed[r.PathValue("id")] = true })
	e := fakeEngine(t, mux)
	found, err := removeContainers(t.Context(), "/tmp/d", []string{"A"}, &Plan{DockerSocket: e.Socket})
	if err != nil || !slices.Equal(found, []string{"B"}) {
		t.Fatalf("found %q, %v", found, err)
	}
	if len(removed) != 3 || removed["foreign"] {
		t.Errorf("removed %v", removed)
	}
}

func TestImageLayer(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "retinue")
	if err := os.WriteFile(bin, []byte("binary"), 0o755); err != nil {
		t.Fatal(err)
	}
	one, err := imageLayer(bin)
	if err != nil {
		t.Fatal(err)
	}
	two, err := imageLayer(bin)
	if err != nil || !bytes.Equal(one, two) {
		t.Errorf("the same input gives another layer (%v)", err)
	}
	// Its companions go where retinue goes.
	for _, c := range companions {
		if err := os.WriteFile(filepath.Join(filepath.Dir(bin), c.name), []byte(c.name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if one, err = imageLayer(bin); err != nil || bytes.Equal(one, two) {
		t.Errorf("the companions are not in the image (%v)", err)
	}
	files := map[string]int64{}
	for r := tar.NewReader(bytes.NewReader(one)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = h.Mode
	}
	if files["usr/local/bin/retinue"] != 0o755 || files["usr/local/bin/retinue-broker"] != 0o755 || files["usr/local/bin/retinue-elector"] != 0o755 || files["usr/local/bin/retinue-coordinator"] != 0o755 || files["tmp/"] != 0o1777 || files["etc/passwd"] != 0o644 {
		t.Errorf("%v", files)
	}
}

// TestBinaryMustBeStatic refuses what cannot run without libraries.
func TestBinaryMustBeStatic(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh")
	}
	dest := filepath.Join(t.TempDir(), "bin", "retinue")
	if static, err := isStatic(sh); err != nil || static {
		t.Skipf("sh is static here (%v)", err)
	}
	err = installBinary(sh, dest)
	if err == nil || !strings.Contains(hint.Of(err), "CGO_ENABLED=0") || exists(dest) {
		t.Errorf("%v (%s)", err, hint.Of(err))
	}
	if err := installBinary(filepath.Join(t.TempDir(), "none"), dest); err == nil {
		t.Error("a missing binary is no error")
	}
}

// TestChrootIsComplete runs the chroot's shell with only the chroot's loader and
// libraries.
func TestChrootIsComplete(t *testing.T) {
	files := chrootFiles("/x/bin/retinue")
	if files["/x/bin/retinue"] != taskBinary {
		t.Errorf("retinue is at %q", files["/x/bin/retinue"])
	}
	dests := map[string]bool{}
	for source, dest := range files {
		if dests[dest] {
			t.Errorf("%s twice", dest)
		}
		dests[dest] = true
		if info, err := os.Lstat(source); source != "/x/bin/retinue" && (err != nil || !info.Mode().IsRegular()) {
			t.Errorf("%s is no regular file (%v): a link would point to nothing", source, err)
		}
	}
	if !dests["/bin/sh"] {
		t.Fatal("no shell")
	}
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root")
	}
	root := t.TempDir()
	for source, dest := range files {
		data, err := os.ReadFile(source)
		if err != nil {
			continue // retinue itself
		}
		to := filepath.Join(root, dest)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/bin/sh", "-c", "for t in cat env ls date id mkdir rm head tail sleep; do out=$($t --version) || exit 1; done; cat /etc/passwd | head -n 1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "root:") {
		t.Errorf("%v: %s", err, out)
	}
}
