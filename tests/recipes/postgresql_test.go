package recipes_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue/tests/harness"
)

// postgresBin is the folder of the newest PostgreSQL server programs, which Debian keeps off PATH.
func postgresBin() (string, error) {
	if path, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(path), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return "", errors.New("no postgres on PATH or in /usr/lib/postgresql")
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1]), nil
}

func missingPostgres() error {
	if _, err := exec.LookPath("psql"); err != nil {
		return err
	}
	_, err := postgresBin()
	return err
}

// database is a PostgreSQL server in a folder of its own, reached through a socket there.
type database struct{ env []string }

var theDatabase = harness.Share(func(t harness.T) *database {
	bin, err := postgresBin()
	if err != nil {
		t.Fatalf("%v", err)
	}
	dir := harness.Dir(t, "pg")
	data := filepath.Join(dir, "data")
	as := []string{} // the server refuses to run as root
	if os.Geteuid() == 0 {
		owner, err := user.Lookup("postgres")
		if err != nil {
			t.Fatalf("%v", err)
		}
		if out, err := exec.Command("chown", owner.Uid, dir).CombinedOutput(); err != nil {
			t.Fatalf("chown: %v: %s", err, out)
		}
		// Changing the user clears the parent-death signal, so it is set again.
		as = []string{"setpriv", "--reuid", owner.Uid, "--regid", owner.Gid, "--clear-groups", "--pdeathsig", "KILL"}
	}
	initdb := append(slices.Clone(as), filepath.Join(bin, "initdb"), "--pgdata", data, "--username", "test", "--auth", "trust", "--no-sync", "--encoding", "UTF8", "--locale", "C")
	cmd := exec.Command(initdb[0], initdb[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	serve := append(slices.Clone(as), filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off")
	path, err := exec.LookPath(serve[0])
	if err != nil {
		t.Fatalf("%v", err)
	}
	harness.Start(t, harness.Spec{Name: "postgres", Path: path, Args: serve[1:], Dir: dir})
	db := &database{env: []string{"PGHOST=" + dir, "PGUSER=test", "PGDATABASE=postgres", "PGOPTIONS=", "PSQLRC=/dev/null"}}
	harness.Eventually(t, 30*time.Second, "PostgreSQL answers", func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, "psql", "-c", "SELECT 1")
		cmd.Env = append(os.Environ(), db.env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return db
})

// psql runs a recipe, or a command of the test, and returns bare rows.
func (db *database) psql(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("psql", append([]string{"--quiet", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1"}, args...)...)
	cmd.Dir, cmd.Env = recipes(t), append(os.Environ(), db.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("psql %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (db *database) recipe(t *testing.T, name string, vars ...string) string {
	t.Helper()
	args := []string{}
	for _, v := range vars {
		args = append(args, "--set", v)
	}
	return db.psql(t, append(args, "--file", "fencing/postgresql-"+name+".sql")...)
}

func TestPostgreSQL(t *testing.T) {
	need(t, "bash")
	harness.Need(t, harness.NewFeature("postgresql", true, missingPostgres))
	db := theDatabase.Get(t)
	out := mustScript(t, commands(t, "fencing.md", "PostgreSQL"), db.env...)
	for _, want := range []string{"alice |      10 |    42", "alice |      20 |    42", "(0 rows)", "alice +20 |    42"} {
		if strings.Count(out, want) != 1 {
			t.Errorf("the page's commands do not print %q once:\n%s", want, out)
		}
	}
	t.Run("tokens", func(t *testing.T) {
		for _, step := range []struct {
			recipe, token, balance, want string
		}{
			{"update", "10", "1", ""}, // no such row yet
			{"upsert", "10", "1", "bob|1|10"},
			{"upsert", "9", "2", ""},
			{"update", "9", "2", ""},
			{"update", "10", "3", "bob|3|10"},
			{"update", "11", "4", "bob|4|11"},
			{"upsert", "10", "5", ""},
			{"upsert", "12", "6", "bob|6|12"},
		} {
			if got := db.recipe(t, step.recipe, "id=bob", "token="+step.token, "balance="+step.balance); got != step.want {
				t.Errorf("%s with token %s: %q, want %q", step.recipe, step.token, got, step.want)
			}
		}
		if got := db.recipe(t, "append", "token=41", "what=late"); got != "" {
			t.Errorf("the ledger took a former leader's entry: %s", got)
		}
	})
	t.Run("race", func(t *testing.T) { raceForRows(t, db) })
	t.Run("lock", func(t *testing.T) { lateBehindALock(t, db) })
}

// raceForRows lets many leaders of the past write at once: the newest wins, and nothing follows it.
func raceForRows(t *testing.T, db *database) {
	var all sync.WaitGroup
	for token := 101; token <= 112; token++ {
		all.Go(func() {
			db.recipe(t, "upsert", "id=carol", fmt.Sprintf("token=%d", token), fmt.Sprintf("balance=%d", token))
			db.recipe(t, "append", fmt.Sprintf("token=%d", token), fmt.Sprintf("what=by %d", token))
		})
	}
	all.Wait()
	if got := db.psql(t, "--command", "SELECT balance, fence FROM account WHERE id = 'carol'"); got != "112|112" {
		t.Errorf("the row is %q", got)
	}
	disorder := db.psql(t, "--command", "SELECT count(*) FROM ledger a JOIN ledger b ON a.entry < b.entry AND a.fence > b.fence")
	if last := db.psql(t, "--command", "SELECT max(fence) FROM ledger"); disorder != "0" || last != "112" {
		t.Errorf("%s pairs of entries in the wrong order, the last token is %s", disorder, last)
	}
}

// lateBehindALock: the former leader's statement began when its token was still good, and waits for the new leader's row lock.
func lateBehindALock(t *testing.T, db *database) {
	db.recipe(t, "upsert", "id=dave", "token=201", "balance=1")
	leader := exec.Command("psql", "--quiet", "--set", "ON_ERROR_STOP=1")
	leader.Env = append(os.Environ(), db.env...)
	in, err := leader.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "BEGIN; UPDATE account SET balance = 2, fence = 202 WHERE id = 'dave' AND fence <= 202; UPDATE fence SET token = 202;")
	waiting := func(n int) {
		harness.Eventually(t, 10*time.Second, fmt.Sprintf("%d locks", n), func(context.Context) error {
			if got := db.psql(t, "--command", "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' OR wait_event_type = 'Lock'"); got != fmt.Sprint(n) {
				return errors.New(got)
			}
			return nil
		})
	}
	waiting(1)
	late := make(chan string, 2)
	go func() { late <- db.recipe(t, "update", "id=dave", "token=201", "balance=99") }()
	go func() { late <- db.recipe(t, "append", "token=201", "what=late") }()
	waiting(3)
	fmt.Fprintln(in, "COMMIT;")
	in.Close()
	if err := leader.Wait(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := <-late; got != "" {
			t.Errorf("a late write came through: %s", got)
		}
	}
	if got := db.psql(t, "--command", "SELECT balance, fence FROM account WHERE id = 'dave'"); got != "2|202" {
		t.Errorf("the row is %q", got)
	}
}
