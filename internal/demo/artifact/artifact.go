// Package artifact makes what the tasks of a demonstration run, as a build
// pipeline would: archives of files and of programs of this machine with all
// they load, and a place from which Nomad fetches them.
package artifact

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"retinue/internal/devcluster"
	"retinue/internal/hint"
)

// Archive is a .tar.gz under way.
type Archive struct {
	buf bytes.Buffer
	gz  *gzip.Writer
	tar *tar.Writer
	err error
}

// New begins an archive.
func New() *Archive {
	a := &Archive{}
	a.gz, _ = gzip.NewWriterLevel(&a.buf, gzip.BestSpeed) // the level is valid
	a.tar = tar.NewWriter(a.gz)
	return a
}

// Add puts a file in. The first error is that of Bytes.
func (a *Archive) Add(name string, mode int64, data []byte) {
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))})
	}
	if a.err == nil {
		_, a.err = a.tar.Write(data)
	}
}

// AddFile is Add for a file of this machine.
func (a *Archive) AddFile(name string, mode int64, source string) {
	data, err := os.ReadFile(source)
	if err != nil {
		a.err = err
		return
	}
	a.Add(name, mode, data)
}

// Bytes ends the archive.
func (a *Archive) Bytes() ([]byte, error) {
	for _, step := range []func() error{func() error { return a.err }, a.tar.Close, a.gz.Close} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("pack for the tasks: %w", err)
		}
	}
	return a.buf.Bytes(), nil
}

// AddPrograms puts command-line tools of this machine in, with their loader and
// libraries, so that they run in an image made from nothing, in a chroot and on
// the host alike: ld.so --library-path lib bin/NAME.
func (a *Archive) AddPrograms(names ...string) error {
	all := map[string]string{}
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err == nil {
			path, err = filepath.EvalSymlinks(path)
		}
		if err != nil {
			return hint.Wrap(fmt.Errorf("pack %s: %w", name, err), "the demonstration runs it as it is: install it")
		}
		loader, libraries, err := devcluster.Libraries(path)
		if err != nil || loader == "" {
			return fmt.Errorf("pack %s: %s is no dynamic program (%v)", name, path, err)
		}
		all["ld.so"], all["bin/"+name] = loader, path
		for lib, source := range libraries {
			all["lib/"+lib] = source
		}
	}
	for _, dest := range slices.Sorted(maps.Keys(all)) {
		a.AddFile(dest, 0o755, all[dest])
	}
	return nil
}

// Shelf is where Nomad fetches what the tasks run: artifacts, as a build pipeline would leave them.
type Shelf struct {
	mu    sync.Mutex
	files map[string][]byte
}

// Put lays a file on the shelf.
func (s *Shelf) Put(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string][]byte{}
	}
	s.files["/"+name] = data
}

// ServeHTTP implements http.Handler.
func (s *Shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	data, ok := s.files[r.URL.Path]
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, r.URL.Path, time.Time{}, bytes.NewReader(data))
}

// Serve answers on an address of this host that the cluster's nodes reach.
func (s *Shelf) Serve(host string) (base string, stop func(), err error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", nil, fmt.Errorf("listen for the artifacts: %w", err)
	}
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(ln) }()
	return "http://" + ln.Addr().String(), func() { _ = srv.Close() }, nil
}
