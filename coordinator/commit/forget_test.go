package commit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"retinue/coordinator/item"
)

// testForget holds what every commit point that can forget promises.
func testForget(t *testing.T, p interface {
	Point
	Forgetter
}) {
	t.Helper()
	ctx, now := t.Context(), time.Now()
	commit := func(id string, ended time.Time) {
		t.Helper()
		rec := record(id, "one", item.Done)
		rec.Stage, rec.Ended = "f", ended
		rec.Files = []item.File{{Name: "sub/file", Size: 3}}
		if won, err := p.Commit(ctx, rec, outputs(t, "one")); err != nil || won.Attempt != "one" {
			t.Fatalf("%+v, %v", won, err)
		}
	}
	there := func(id string) bool {
		t.Helper()
		rec, err := p.Read(ctx, "f", id)
		if err != nil {
			t.Fatal(err)
		}
		return rec != nil
	}
	commit("old", now.Add(-time.Hour))
	commit("old/too", now.Add(-time.Hour))
	commit("held", now.Add(-time.Hour))
	commit("young", now.Add(3*time.Hour))
	before := now.Add(2 * time.Hour) // what was written just now is old on the disk too
	stop := errors.New("stop")
	if _, err := p.Forget(ctx, "f", before, func(item.Record) (bool, error) { return false, stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	may := func(rec item.Record) (bool, error) { return rec.ID != "held", nil }
	var wg sync.WaitGroup
	var removed atomic.Int64
	for range 4 { // at once: each goes, and errors are none
		wg.Go(func() {
			n, err := p.Forget(ctx, "f", before, may)
			removed.Add(int64(n))
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if removed.Load() < 2 || there("old") || there("old/too") || !there("held") || !there("young") {
		t.Errorf("%d removed, left: %t %t, %t %t", removed.Load(), there("old"), there("old/too"), there("held"), there("young"))
	}
	if n, err := p.Forget(ctx, "f", before, may); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	if n, err := p.Forget(ctx, "none", before, may); n != 0 || err != nil {
		t.Errorf("a stage without records: %d, %v", n, err)
	}
	// What was forgotten can be committed again, with its files.
	commit("old", now)
	for slot := range 3 {
		var firsts atomic.Int64
		for range 5 {
			wg.Go(func() {
				first, err := p.Turn(ctx, "f", fmt.Sprint("t", slot))
				if err != nil {
					t.Error(err)
				}
				if first {
					firsts.Add(1)
				}
			})
		}
		wg.Wait()
		if firsts.Load() != 1 {
			t.Errorf("slot %d: %d were first", slot, firsts.Load())
		}
		for s, want := range map[string]bool{fmt.Sprint("t", slot): true, fmt.Sprint("t", slot+1): false, fmt.Sprint("t", slot-1): false} {
			if turned, err := p.Turned(ctx, "f", s); err != nil || turned != want {
				t.Errorf("%s turned: %t, %v", s, turned, err)
			}
		}
	}
}

// A crash in the middle of the removal of a folder leaves nothing that looks like an item, and the next one ends it.
func TestForgetAfterCrash(t *testing.T) {
	r := Rename{Dir: t.TempDir()}
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{goneName + "x", ".tmp-attempt", turnName + "7"} {
		dir := filepath.Join(r.Dir, "s", name)
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(dir, old, old); err != nil {
			t.Fatal(err)
		}
	}
	young := filepath.Join(r.Dir, "s", ".tmp-young") // of an attempt that is being committed
	if err := os.Mkdir(young, 0o777); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Forget(t.Context(), "s", time.Now().Add(-time.Minute), func(item.Record) (bool, error) { return true, nil }); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	left, err := os.ReadDir(filepath.Join(r.Dir, "s"))
	if err != nil || len(left) != 1 || !strings.HasPrefix(left[0].Name(), ".tmp-young") {
		t.Errorf("%v, %v", left, err)
	}
}
