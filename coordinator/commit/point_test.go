package commit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue/coordinator/item"
	"retinue/internal/consulkit"
	"retinue/internal/consulkit/consultest"
)

// memory is a KV in this process. lose drops the next answers, after the deed.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	lose   int
}

func (m *memory) Create(_ context.Context, key string, value []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.values[key]; !ok {
		m.values[key] = value
	}
	if m.lose > 0 {
		m.lose--
		return nil, errors.New("no answer")
	}
	return m.values[key], nil
}

func (m *memory) Get(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.values[key], nil
}

func record(id, attempt string, state item.State) item.Record {
	return item.Record{ID: id, Stage: "s", State: state, Attempt: attempt, N: 1, Ended: time.Unix(1e9, 0).UTC(), Result: []byte("r " + attempt)}
}

// testPoint holds what every commit point promises.
func testPoint(t *testing.T, p Point) {
	ctx := t.Context()
	if rec, err := p.Read(ctx, "s", "a/b"); rec != nil || err != nil {
		t.Fatalf("before: %+v, %v", rec, err)
	}
	first, err := p.Commit(ctx, record("a/b", "one", item.Done), "")
	if err != nil || first.Attempt != "one" {
		t.Fatalf("%+v, %v", first, err)
	}
	// The same offer again, a later one, one of another kind.
	for _, rec := range []item.Record{record("a/b", "one", item.Done), record("a/b", "two", item.Done), record("a/b", "three", item.Cancelled)} {
		if won, err := p.Commit(ctx, rec, ""); err != nil || won.Attempt != "one" || won.State != item.Done {
			t.Errorf("%s: %+v, %v", rec.Attempt, won, err)
		}
	}
	rec, err := p.Read(ctx, "s", "a/b")
	if err != nil || rec == nil || rec.Attempt != "one" || string(rec.Result) != "r one" || !rec.Ended.Equal(first.Ended) {
		t.Errorf("%+v, %v", rec, err)
	}
	if rec, err := p.Read(ctx, "other", "a/b"); rec != nil || err != nil {
		t.Errorf("the same id in another stage: %+v, %v", rec, err)
	}
	// Of many at once one wins, and all are told the same.
	var wg sync.WaitGroup
	won := make([]string, 16)
	for i := range won {
		wg.Go(func() {
			r, err := p.Commit(ctx, record("race", fmt.Sprint("n", i), item.Done), "")
			if err != nil {
				t.Error(err)
			}
			won[i] = r.Attempt
		})
	}
	wg.Wait()
	for _, w := range won {
		if w == "" || w != won[0] {
			t.Fatalf("winners: %v", won)
		}
	}
}

func TestRename(t *testing.T) {
	testPoint(t, Rename{Dir: t.TempDir(), Sync: true})
	testForget(t, Rename{Dir: t.TempDir()})
	testKV(t, StoreOf(Rename{Dir: t.TempDir(), Sync: true}))
}
func TestJournal(t *testing.T) {
	kv := &memory{values: map[string][]byte{}}
	testPoint(t, Journal{kv})
	testForget(t, Journal{kv})
	testKV(t, kv)
}

func TestConsul(t *testing.T) {
	agent := consultest.Start(t)
	client, err := consulkit.New(consulkit.Config{Address: agent.Addr})
	if err != nil {
		t.Fatal(err)
	}
	testPoint(t, Journal{Consul{client, "retinue/queues/"}})
	testForget(t, Journal{Consul{client, "retinue/queues/"}})
	testKV(t, Consul{client, "retinue/queues/"})
	agent.Kill()
	if _, err := (Journal{Consul{client, "retinue/queues/"}}).Commit(t.Context(), record("x", "one", item.Done), ""); err == nil {
		t.Error("committed without Consul")
	}
}

func TestLostAnswer(t *testing.T) {
	kv := &memory{values: map[string][]byte{}, lose: 1}
	j := Journal{kv}
	if _, err := j.Commit(t.Context(), record("a", "one", item.Done), ""); err == nil {
		t.Fatal("no error")
	}
	if won, err := j.Commit(t.Context(), record("a", "one", item.Done), ""); err != nil || won.Attempt != "one" {
		t.Errorf("repeated: %+v, %v", won, err)
	}
}

func TestTooLarge(t *testing.T) {
	rec := record("a", "one", item.Done)
	rec.Result = make([]byte, MaxRecord)
	var large ErrTooLarge
	if _, err := (Journal{&memory{values: map[string][]byte{}}}).Commit(t.Context(), rec, ""); !errors.As(err, &large) {
		t.Errorf("%v", err)
	}
}

// An output of 256 KiB that goes on to the next stage fits, and is the result too.
func TestResultIsNext(t *testing.T) {
	rec := record("a", "one", item.Done)
	rec.Result = bytes.Repeat([]byte{0xff}, 256<<10)
	rec.Next = []item.Message{{Body: rec.Result}}
	j := Journal{&memory{values: map[string][]byte{}}}
	if _, err := j.Commit(t.Context(), rec, ""); err != nil {
		t.Fatal(err)
	}
	got, err := j.Read(t.Context(), "s", "a")
	if err != nil || !bytes.Equal(got.Result, rec.Result) || !bytes.Equal(got.Next[0].Body, rec.Result) {
		t.Errorf("%v", err)
	}
}

func outputs(t *testing.T, text string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	if err := os.MkdirAll(filepath.Join(out, "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "sub", "file"), []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	return out
}

// The files of the winner, all of them, and none of the loser's.
func TestRenameFiles(t *testing.T) {
	r := Rename{Dir: t.TempDir(), Sync: true}
	one, two := outputs(t, "one"), outputs(t, "two")
	won, err := r.Commit(t.Context(), record("a", "one", item.Done), one)
	if err != nil || won.Output != r.Path("s", "a") {
		t.Fatalf("%+v, %v", won, err)
	}
	if won, err := r.Commit(t.Context(), record("a", "two", item.Done), two); err != nil || won.Attempt != "one" {
		t.Errorf("%+v, %v", won, err)
	}
	if text, err := os.ReadFile(filepath.Join(r.Path("s", "a"), "sub", "file")); err != nil || string(text) != "one" {
		t.Errorf("%s, %v", text, err)
	}
	// The offer again, although the outputs have moved: its answer may have been lost.
	if won, err := r.Commit(t.Context(), record("a", "one", item.Done), one); err != nil || won.Attempt != "one" {
		t.Errorf("again: %+v, %v", won, err)
	}
}

// A plain rename, for file systems without RENAME_NOREPLACE, cannot replace a committed folder either.
func TestPlainRenameDoesNotReplace(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"committed", "late"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, recordName), []byte(name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(dir, "late"), filepath.Join(dir, "committed")); err == nil {
		t.Error("replaced")
	}
}

func TestOtherFileSystem(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "retinue-commit-*")
	if err != nil {
		t.Skip("skip: no second file system")
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	r := Rename{Dir: shm}
	out := outputs(t, "far")
	if sameDevice(out, shm) {
		t.Skip("skip: no second file system")
	}
	if _, err := r.Commit(t.Context(), record("a", "one", item.Done), out); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(r.Path("s", "a"), "sub", "file")); err != nil || string(text) != "far" {
		t.Errorf("%s, %v", text, err)
	}
	if left, _ := filepath.Glob(filepath.Join(shm, "s", ".tmp-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A disk that is full is an error that can be repeated, and leaves nothing that looks committed.
func TestDiskFull(t *testing.T) {
	full := filepath.Join(t.TempDir(), "done")
	if err := os.WriteFile(full, nil, 0o666); err != nil { // no folder can be made here, as on a full disk
		t.Fatal(err)
	}
	r := Rename{Dir: full}
	out := outputs(t, "x")
	if _, err := r.Commit(t.Context(), record("a", "one", item.Done), out); err == nil {
		t.Fatal("committed")
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if won, err := r.Commit(t.Context(), record("a", "one", item.Done), out); err != nil || won.Attempt != "one" {
		t.Errorf("%+v, %v", won, err)
	}
}

func TestFileNames(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{"a", "a/b", "a%2Fb", "..", ".", ".tmp-x", "ä", "", strings.Repeat("x", 300), strings.Repeat("x", 301), "a b"} {
		name := item.FileName(id)
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") || len(name) > 200 {
			t.Errorf("%q becomes %q", id, name)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("%q and %q are both %q", id, other, name)
		}
		seen[name] = id
	}
}

func FuzzRecord(f *testing.F) {
	data, _ := json.Marshal(record("a", "one", item.Done))
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := decode("x", data)
		if err != nil {
			return
		}
		if _, err := json.Marshal(rec); err != nil {
			t.Errorf("%s was read and cannot be written: %v", data, err)
		}
	})
}

func (m *memory) Each(_ context.Context, prefix string, see func(key string) error) error {
	m.mu.Lock()
	keys := slices.Sorted(maps.Keys(m.values))
	m.mu.Unlock()
	for _, key := range keys {
		if strings.HasPrefix(key, prefix) {
			if err := see(key); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *memory) Delete(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if bytes.Equal(m.values[key], value) {
		delete(m.values, key)
	}
	return nil
}
