package commit

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"retinue/coordinator/item"
)

// powered is a file system on a disk whose power can be lost: what nobody had brought to the disk is gone then.
type powered struct {
	*testing.T
	image, at string
}

// newPowered mounts a new one. Its journal is written once a minute, and what is in files half a minute after it was written at the soonest: a test is
// over before either happens by itself.
func newPowered(t *testing.T) *powered {
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	p := &powered{T: t, image: filepath.Join(t.TempDir(), "disk"), at: t.TempDir()}
	if err := os.WriteFile(p.image, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p.image, 64<<20); err != nil {
		t.Fatal(err)
	}
	p.run("mkfs.ext4", "-q", p.image)
	p.run("mount", "-o", "loop,commit=60", p.image, p.at)
	t.Cleanup(func() { p.run("umount", p.at) })
	return p
}

func (p *powered) run(name string, args ...string) {
	p.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		p.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// lost is the file system as it is after a loss of power now.
func (p *powered) lost() string {
	p.Helper()
	image, at := filepath.Join(p.TempDir(), "disk"), p.TempDir()
	p.run("cp", "--sparse=always", p.image, image)
	p.run("mount", "-o", "loop", image, at)
	p.Cleanup(func() { p.run("umount", at) })
	return at
}

// attempt makes the outputs of an attempt.
func attempt(t *testing.T, dir string) string {
	t.Helper()
	for name, body := range map[string]string{"stdout": "1", "pages/2": "22", "pages/empty": ""} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// whole says what is missing of an item.
func whole(t *testing.T, dir string) (missing []string) {
	t.Helper()
	r := Rename{Dir: dir}
	if rec, err := r.Read(t.Context(), "s", "a/b"); err != nil || rec == nil || rec.Attempt != "one" {
		missing = append(missing, "the record")
	}
	for name, body := range map[string]string{"stdout": "1", "pages/2": "22", "pages/empty": ""} {
		if got, err := os.ReadFile(filepath.Join(r.Path("s", "a/b"), name)); err != nil || string(got) != body {
			missing = append(missing, name)
		}
	}
	return missing
}

// What a commit has answered survives the loss of power, whole; without Sync it does not, which shows that this test can see it.
func TestCommitSurvivesLossOfPower(t *testing.T) {
	for name, c := range map[string]struct {
		sync, elsewhere, killed bool
		lost                    bool
	}{
		"on the same file system":               {sync: true},
		"from another":                          {sync: true, elsewhere: true},
		"without sync":                          {lost: true},
		"without sync, from another":            {elsewhere: true, lost: true},
		"named by one who was killed, and read": {sync: true, killed: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPowered(t)
			r := Rename{Dir: filepath.Join(p.at, "done"), Sync: c.sync}
			if err := os.Mkdir(r.Dir, 0o777); err != nil {
				t.Fatal(err)
			}
			p.run("sync", "-f", p.at)
			out := filepath.Join(p.at, "run", "one")
			if c.elsewhere {
				out = t.TempDir()
			}
			attempt(t, out)
			rec := record("a/b", "one", item.Done)
			rec.Ended = time.Now()
			if c.killed {
				folder, err := r.prepare(rec, out)
				if err == nil {
					if err = r.makeStage("s"); err == nil {
						err = rename(folder, r.Path("s", "a/b"))
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				if rec, err := r.Read(t.Context(), "s", "a/b"); err != nil || rec == nil {
					t.Fatal(rec, err)
				}
			} else if _, err := r.Commit(t.Context(), rec, out); err != nil {
				t.Fatal(err)
			}
			missing := whole(t, filepath.Join(p.lost(), "done"))
			if lost := len(missing) > 0; lost != c.lost {
				t.Errorf("after the loss of power: missing %q", missing)
			}
		})
	}
}

// A folder is complete on the disk before it gets its name: a file system may bring the name there first.
func TestPreparedSurvivesLossOfPower(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		p := newPowered(t)
		r := Rename{Dir: filepath.Join(p.at, "done"), Sync: true}
		if err := os.MkdirAll(r.Path("s", ""), 0o777); err != nil {
			t.Fatal(err)
		}
		p.run("sync", "-f", p.at)
		out := filepath.Join(p.at, "run", "one")
		if elsewhere {
			out = t.TempDir()
		}
		folder, err := r.prepare(record("a/b", "one", item.Done), attempt(t, out))
		if err != nil {
			t.Fatal(err)
		}
		at, _ := filepath.Rel(p.at, folder)
		lost := p.lost()
		done := filepath.Join(lost, "done")
		if err := os.MkdirAll(filepath.Join(done, "s"), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(lost, at), Rename{Dir: done}.Path("s", "a/b")); err != nil {
			t.Fatal(err)
		}
		if missing := whole(t, done); len(missing) > 0 {
			t.Errorf("from elsewhere %v: missing %q", elsewhere, missing)
		}
	}
}

// So does what a store has answered, to whoever came second too.
func TestStoreSurvivesLossOfPower(t *testing.T) {
	for name, c := range map[string]struct{ sync, second, lost bool }{
		"created": {sync: true}, "created by one who was killed": {sync: true, second: true}, "without sync": {lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPowered(t)
			f := Files{Dir: filepath.Join(p.at, "store"), Sync: c.sync}
			if c.second { // the first one brought the file to the disk, and then no more
				if err := os.MkdirAll(filepath.Join(f.Dir, "x"), 0o777); err != nil {
					t.Fatal(err)
				}
				tmp := filepath.Join(f.Dir, "x/.tmp-1")
				if err := os.WriteFile(tmp, []byte("1"), 0o666); err != nil {
					t.Fatal(err)
				}
				p.run("sync", "-f", p.at)
				if err := os.Link(tmp, filepath.Join(f.Dir, "x/a")); err != nil {
					t.Fatal(err)
				}
			}
			if value, err := f.Create(t.Context(), "x/a", []byte("1")); err != nil || string(value) != "1" {
				t.Fatalf("%q, %v", value, err)
			}
			value, err := Files{Dir: filepath.Join(p.lost(), "store")}.Get(t.Context(), "x/a")
			if lost := string(value) != "1"; lost != c.lost || err != nil {
				t.Errorf("after the loss of power: %q, %v", value, err)
			}
		})
	}
}
