package state

import (
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
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"retinue/internal/consulkit/consultest"
	"retinue/internal/hint"
)

func TestSealAndOpen(t *testing.T) {
	for _, data := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("line\n\x00"), 1000)} {
		record, err := Seal(Meta{Task: "t", AppVersion: "7\n"}, data)
		if err != nil {
			t.Fatal(err)
		}
		meta, got, err := Open(record)
		if err != nil || !bytes.Equal(got, data) || meta.AppVersion != "7\n" || meta.Size != int64(len(data)) {
			t.Errorf("%+v %v", meta, err)
		}
		for at := range min(len(record), 400) { // one flipped bit is seen, or changes nothing of the state
			bad := bytes.Clone(record)
			bad[at] ^= 1
			var damaged *Damaged
			if _, got, err := Open(bad); err == nil && !bytes.Equal(got, data) || err != nil && !errors.As(err, &damaged) {
				t.Fatalf("byte %d: %v", at, err)
			}
		}
		if _, _, err := Open(record[:len(record)-1]); err == nil {
			t.Error("a record that was cut off is taken")
		}
	}
	if _, err := Seal(Meta{AppVersion: strings.Repeat("x", maxMeta)}, nil); err == nil {
		t.Error("a huge description was taken")
	}
}

func FuzzOpen(f *testing.F) {
	record, _ := Seal(Meta{Task: "t", SavedAt: time.Unix(1, 0).UTC()}, []byte("data"))
	f.Add(record)
	f.Add([]byte(magic + "{}\n"))
	f.Fuzz(func(t *testing.T, record []byte) {
		meta, data, err := Open(record)
		if err != nil {
			return
		}
		again, err := Seal(meta, data)
		if err != nil {
			return // a description that only grew too long by being written anew
		}
		if _, got, err := Open(again); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%v", err)
		}
	})
}

// Every store keeps what it is given, sets it aside, and begins anew.
func TestStores(t *testing.T) {
	stores := map[string]Store{"alloc": Alloc(t.TempDir(), "we/ird task"), "nomad-var": fakeNomad(t)}
	if c := realConsul(t); c != nil {
		stores["consul-kv"] = &Consul{Client: c, Key: ConsulKey(Identity{Job: fmt.Sprintf("test-%d", os.Getpid()), Group: "g", Task: "t"})}
	}
	for name, store := range stores {
		t.Run(name, func(t *testing.T) {
			k := &Keeper{Store: store, Meta: Meta{AppVersion: "7"}}
			ctx := t.Context()
			if _, found, err := k.Load(ctx); found || err != nil {
				t.Fatalf("%v %v", found, err)
			}
			if err := k.Reject(ctx, "nothing there"); err != nil {
				t.Errorf("nothing to reject: %v", err)
			}
			for _, data := range []string{"one", "two"} {
				if err := k.Save(ctx, []byte(data)); err != nil {
					t.Fatal(err)
				}
				if got, found, err := k.Load(ctx); !found || err != nil || string(got.Data) != data || got.AppVersion != "7" {
					t.Fatalf("%+v %v %v", got, found, err)
				}
			}
			if err := k.Reject(ctx, "why"); err != nil {
				t.Fatal(err)
			}
			if _, found, err := k.Load(ctx); found || err != nil {
				t.Errorf("a rejected state was given back: %v", err)
			}
			if _, err := k.Show(ctx); !errors.Is(err, ErrNone) {
				t.Error(err)
			}
			if err := k.Save(ctx, []byte("three")); err != nil {
				t.Fatal(err)
			}
			k.MaxSize = 1 << 30
			if store.Limit() < 1<<20 {
				if err := k.Save(ctx, make([]byte, store.Limit())); err == nil || hint.Of(err) == "" {
					t.Errorf("more than the store takes: %v", err)
				}
				record, _ := Seal(k.Meta, make([]byte, store.Limit()-1000))
				if err := store.Write(ctx, record); err != nil {
					t.Errorf("as much as the store takes: %v", err)
				}
			}
		})
	}
}

func TestLimit(t *testing.T) {
	k := &Keeper{Store: Alloc(t.TempDir(), "t"), MaxSize: 3}
	if err := k.Save(t.Context(), []byte("four")); err == nil || !strings.Contains(hint.Of(err), "max_size") {
		t.Errorf("%v", err)
	}
}

func TestRejectedIsKept(t *testing.T) {
	root := t.TempDir()
	k := &Keeper{Store: Alloc(root, "t")}
	if err := k.Save(t.Context(), []byte("precious")); err != nil {
		t.Fatal(err)
	}
	if err := k.Reject(t.Context(), "the application refused it"); err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(filepath.Join(root, "data/retinue/t/state.rejected"))
	if err != nil || !strings.HasSuffix(string(kept), "precious") {
		t.Errorf("%s %v", kept, err)
	}
	if why, _ := os.ReadFile(filepath.Join(root, "data/retinue/t/state.rejected.why")); string(why) != "the application refused it\n" {
		t.Errorf("%s", why)
	}
}

// What a task can put into its own folder leads nowhere else, and does not hang.
func TestTraps(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "state")
	record, _ := Seal(Meta{}, []byte("of another"))
	if err := os.WriteFile(secret, record, 0o600); err != nil {
		t.Fatal(err)
	}
	store := Alloc(root, "t")
	if err := os.MkdirAll(filepath.Join(root, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "data/retinue")); err != nil {
		t.Fatal(err)
	}
	if err := store.Write(t.Context(), record); err == nil {
		t.Error("wrote through a link")
	}
	if _, err := store.Read(t.Context()); err == nil {
		t.Error("read through a link")
	}
	if err := os.Remove(filepath.Join(root, "data/retinue")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "data/retinue/t")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Read(t.Context()); err == nil {
		t.Error("read a link")
	}
	if err := store.Write(t.Context(), record); err != nil {
		t.Errorf("a link in the place of the state: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "state"), 0o600); err != nil {
		t.Fatal(err)
	}
	var damaged *Damaged
	if _, err := store.Read(t.Context()); !errors.As(err, &damaged) {
		t.Errorf("a pipe: %v", err)
	}
}

// A full disk leaves the older state whole. A limit on the size of files stands for the disk.
func TestDiskFull(t *testing.T) {
	if root := os.Getenv("STATE_TEST_ROOT"); root != "" {
		signal.Ignore(syscall.SIGXFSZ)
		k := &Keeper{Store: Alloc(root, "t")}
		if err := k.Save(t.Context(), bytes.Repeat([]byte("x"), 1<<20)); err == nil {
			t.Error("no error")
		} else {
			fmt.Println("failed:", err)
		}
		return
	}
	root := t.TempDir()
	k := &Keeper{Store: Alloc(root, "t")}
	if err := k.Save(t.Context(), []byte("old")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `ulimit -f 64; exec "$0" -test.run '^TestDiskFull$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "STATE_TEST_ROOT="+root, "GOCOVERDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "failed: save the state") {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, found, err := k.Load(t.Context()); !found || err != nil || string(got.Data) != "old" {
		t.Errorf("%+v %v %v", got, found, err)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "data/retinue/t/*.tmp")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A store that does not answer holds nothing up for longer than the hook's own time.
func TestStoreAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it accepts and says nothing
	c, err := consul.NewClient(&consul.Config{Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	n, err := nomad.NewClient(&nomad.Config{Address: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]Store{"consul-kv": &Consul{Client: c, Key: "k"}, "nomad-var": &NomadVar{Client: n, Path: "p"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		k := &Keeper{Store: store}
		if err := k.Save(ctx, []byte("x")); err == nil || ctx.Err() == nil {
			t.Errorf("%s: saved: %v", name, err)
		}
		var damaged *Damaged
		if _, found, err := k.Load(ctx); found || err == nil || errors.As(err, &damaged) {
			t.Errorf("%s: loaded: %v", name, err)
		}
		cancel()
	}
}

func TestHost(t *testing.T) {
	dir := t.TempDir()
	id := Identity{Job: "../j", Group: "g", Task: "..", Index: 2}
	for _, allowed := range [][]string{nil, {"/srv/state"}, {dir + "x"}, {""}} {
		if _, err := Host(dir, allowed, id); err == nil || !strings.Contains(hint.Of(err), "state_dirs") {
			t.Errorf("%q: %v", allowed, err)
		}
	}
	for _, allowed := range [][]string{{dir}, {filepath.Dir(dir)}, {"/"}} {
		store, err := Host(dir, allowed, id)
		if err != nil || store.Path != "retinue/default/%2E./j/g/%2E./2" && store.Path != "retinue/default/%2E.%2Fj/g/%2E./2" {
			t.Errorf("%q: %+v %v", allowed, store, err)
			continue
		}
		if err := store.Write(t.Context(), []byte("x")); err != nil {
			t.Error(err)
		}
	}
	if _, err := Host(dir+"/../"+filepath.Base(dir)+"y", []string{dir}, id); err == nil {
		t.Error("a folder beside the open one was taken")
	}
}

func FuzzSegment(f *testing.F) {
	f.Add("..")
	f.Add("a/b")
	f.Fuzz(func(t *testing.T, name string) {
		s := segment(name)
		if s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/\x00") {
			t.Errorf("%q becomes %q", name, s)
		}
	})
}

// realConsul is a Consul agent; nil where there is no program of it.
func realConsul(t *testing.T) *consul.Client {
	if consultest.Binary() == "" {
		return nil
	}
	client, err := consul.NewClient(&consul.Config{Address: consultest.Start(t).Addr})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// fakeNomad answers what the store asks of Nomad's variables, and once with a conflict.
func fakeNomad(t *testing.T) *NomadVar {
	var mu sync.Mutex
	var held *nomad.Variable
	conflicts := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		switch r.Method {
		case http.MethodGet:
			if held == nil {
				w.WriteHeader(404)
				return
			}
			json.NewEncoder(w).Encode(held)
		case http.MethodPut:
			var v nomad.Variable
			body, _ := io.ReadAll(r.Body)
			if err := json.Unmarshal(body, &v); err != nil {
				t.Error(err)
			}
			size := 0
			for k, item := range v.Items {
				size += len(k) + len(item)
			}
			if size > 64<<10 {
				w.WriteHeader(400)
				return
			}
			if conflicts++; conflicts == 2 {
				w.WriteHeader(409)
				json.NewEncoder(w).Encode(held)
				return
			}
			v.ModifyIndex++
			held = &v
			json.NewEncoder(w).Encode(held)
		}
	}))
	t.Cleanup(srv.Close)
	client, err := nomad.NewClient(&nomad.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return &NomadVar{Client: client, Path: NomadPath(Identity{Job: "j", Group: "g", Task: "t"})}
}
