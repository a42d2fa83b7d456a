// Command mutants shows that the tests can fail: it breaks the elector in one
// place at a time, in a copy of the repository, and runs the test that has to
// notice. It takes minutes and is no part of `make test`.
//
//	cd tests && go run ./mutants            all of them
//	cd tests && go run ./mutants lock       those whose name contains lock
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A mutant is one broken promise, and the test that holds it.
type mutant struct {
	name     string
	old, new string
	pkg, run string
}

var mutants = []mutant{
	{
		name: "lock: the key is written without a lock",
		old:  "add(i, kv(api.KVLock, key, b.Session, op.Value, 0), true)\n\t\tcase VerbUnlock",
		new:  "add(i, kv(api.KVSet, key, \"\", op.Value, 0), true)\n\t\tcase VerbUnlock",
		pkg:  "./faults", run: "TestResign",
	},
	{
		name: "lock: taken although another has it",
		old:  "add(i, kv(api.KVLock, key, b.Session, op.Value, 0), true)\n\t\tcase VerbUnlock",
		new:  "add(i, kv(api.KVDelete, key, \"\", nil, 0), false)\n\t\t\tadd(i, kv(api.KVLock, key, b.Session, op.Value, 0), true)\n\t\tcase VerbUnlock",
		pkg:  "./faults", run: "TestResign|TestPartition|TestElectorKilled",
	},
	{
		name: "fencing: the token is not the index of the lock",
		old:  "e.lock, e.token, e.key, e.term, e.blocked = lockHeld, key.Modify, key, e.record.Term, ReasonNone",
		new:  "e.lock, e.token, e.key, e.term, e.blocked = lockHeld, key.Create, key, e.record.Term, ReasonNone",
		pkg:  "./faults", run: "TestResign",
	},
	{
		name: "fencing: verify believes every token",
		old:  "if leader.Token != body.Token {",
		new:  "if leader.Token < body.Token {",
		pkg:  "./faults", run: "TestResign",
	},
	{
		name: "resign: the lock is kept",
		old:  "add(i, kv(api.KVUnlock, key, b.Session, op.Value, 0), true)",
		new:  "add(i, kv(api.KVCheckSession, key, b.Session, nil, 0), true)",
		pkg:  "./faults", run: "TestResign",
	},
	{
		name: "lease: the deadline is later than what Consul has confirmed",
		old:  "s.confirmed = sent\n\t\ts.until = sent.Add(m.cfg.Lease - m.cfg.guard())",
		new:  "s.confirmed = sent\n\t\ts.until = sent.Add(10 * m.cfg.Lease)",
		pkg:  "./faults", run: "TestPartition",
	},
	{
		name: "lease: a revoked lock is free at once",
		old:  "if c.Revocation == Fast {",
		new:  "if true {",
		pkg:  "./faults", run: "TestSessionInvalidated",
	},
	{
		name: "catalog: the tag is not moved with the lock",
		old:  "if b.Leads != nil && s.catalog.Load() {",
		new:  "if len(b.Leads) > 0 && s.catalog.Load() {",
		pkg:  "./leaderelection", run: "TestLeaderElection/raw_exec",
	},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	root, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	var problems []error
	for _, m := range mutants {
		if len(args) > 0 && !strings.Contains(m.name, args[0]) {
			continue
		}
		began := time.Now()
		killed, output, err := try(root, m)
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("%s: %w", m.name, err))
		case killed:
			fmt.Printf("red    %-60s %s %s, %.0fs\n", m.name, m.pkg, m.run, time.Since(began).Seconds())
		default:
			problems = append(problems, fmt.Errorf("%s: not noticed", m.name))
			fmt.Printf("GREEN  %-60s %s %s\n%s\n", m.name, m.pkg, m.run, output)
		}
	}
	return errors.Join(problems...)
}

// try makes the mutant and says whether the test failed. A mutant that does not
// apply or compile is an error: it shows nothing.
func try(root string, m mutant) (killed bool, output string, err error) {
	dir, err := os.MkdirTemp("", "retinue-mutant-")
	if err != nil {
		return false, "", err
	}
	defer os.RemoveAll(dir)
	if err := copyTree(root, dir); err != nil {
		return false, "", err
	}
	if err := m.apply(filepath.Join(dir, "elector")); err != nil {
		return false, "", err
	}
	build := exec.Command("go", "build", "-o", os.DevNull, "./cmd/retinue")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return false, "", fmt.Errorf("it does not compile: %w\n%s", err, out)
	}
	test := exec.Command("go", "test", "-count=1", "-timeout", "5m", "-run", m.run, m.pkg)
	test.Dir = filepath.Join(dir, "tests")
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "RETINUE_BIN=") { // it would be the healthy one
			test.Env = append(test.Env, kv)
		}
	}
	out, err := test.CombinedOutput()
	if bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("SKIP")) {
		return false, "", fmt.Errorf("the test did not run:\n%s", out)
	}
	return err != nil, string(out), nil
}

// apply breaks the one place of the elector that has the text, whatever file it is in.
func (m mutant) apply(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return err
	}
	found := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		n := bytes.Count(source, []byte(m.old))
		if found += n; n == 0 {
			continue
		}
		if err := os.WriteFile(file, bytes.ReplaceAll(source, []byte(m.old), []byte(m.new)), 0o644); err != nil {
			return err
		}
	}
	if found != 1 {
		return fmt.Errorf("the elector has the text to break %d times: the mutant has to follow the code", found)
	}
	return nil
}

// copyTree copies what git has and what is new, without what is ignored.
func copyTree(root, dir string) error {
	list := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for _, name := range strings.Split(strings.Trim(string(out), "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // deleted, not committed yet
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
