package recipes_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"retinue/tests/harness"
)

// candidates of one election write to one file, in the order in which they acted.
type candidates struct {
	t        *testing.T
	election string
	path     string
	n        int
}

func newCandidates(t *testing.T, election string) *candidates {
	return &candidates{t: t, election: election, path: filepath.Join(harness.Dir(t, "out"), "acts")}
}

// start runs one command as a person would, with its output added to the file.
func (c *candidates) start(addr, command string) *harness.Process {
	c.t.Helper()
	c.n++
	return harness.Start(c.t, harness.Spec{Name: fmt.Sprintf("%s-%d", c.election, c.n), Path: "/bin/sh", Dir: recipes(c.t),
		// exec: the process that is killed is the recipe itself. Each act is one short write, so lines do not mix.
		Args: []string{"-c", `exec >>"$ACTS"; exec ` + strings.TrimSpace(command)},
		Env:  []string{"RETINUE_ELECTOR_ADDR=" + addr, "ELECTION=" + c.election, "ACTS=" + c.path}})
}

// tokens are those of all acts so far, in order.
func (c *candidates) tokens() (all []uint64) {
	data, _ := os.ReadFile(c.path)
	for _, line := range bytes.SplitAfter(data, []byte("\n")) {
		value, found := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("working token="))
		if !found || !bytes.HasSuffix(line, []byte("\n")) {
			continue
		}
		token, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			c.t.Fatalf("act %q: %v", line, err)
		}
		all = append(all, token)
	}
	return all
}

// acts waits until somebody acts under a higher token than before, and says how long that took.
func (c *candidates) acts(after uint64, within time.Duration) (token uint64, took time.Duration) {
	c.t.Helper()
	began := time.Now()
	harness.Eventually(c.t, within, fmt.Sprintf("%s: somebody acts with a token above %d", c.election, after), func(context.Context) error {
		all := c.tokens()
		if len(all) == 0 || slices.Max(all) <= after {
			return fmt.Errorf("%d acts", len(all))
		}
		token = slices.Max(all)
		return nil
	})
	return token, time.Since(began)
}

// handOver is the bound for what is noticed: less than the application's lease, and far less than the session's end.
const handOver = 4500 * time.Millisecond

// languages are the sections of the page with a recipe each.
var languages = []struct {
	name, section string
	needs         []string
}{
	{"sh", "Shell", []string{"bash", "curl", "jq"}},
	{"py", "Python", []string{"python3"}},
	{"js", "Node", []string{"node"}},
}

func TestLeaderElectionRecipes(t *testing.T) {
	for _, r := range languages {
		for _, transport := range []string{"unix", "tcp"} {
			t.Run(r.name+"-"+transport, func(t *testing.T) {
				need(t, r.needs...)
				electors := theElectors.Get(t)
				c := newCandidates(t, r.name+"-"+transport)
				command := commands(t, "leader-election.md", r.section)
				a, b := transports(electors[0])[transport], transports(electors[1])[transport]

				first := c.start(a, command)
				token, _ := c.acts(0, 30*time.Second)
				second := c.start(b, command)
				waitForCandidate(t, electors[1], c.election)

				first.Kill()
				token, took := c.acts(token, handOver)
				t.Logf("killed: the next acts after %v", took.Round(time.Millisecond))

				third := c.start(a, command)
				waitForCandidate(t, electors[0], c.election)
				second.Signal(sigterm)
				token, took = c.acts(token, handOver)
				t.Logf("asked to end: the next acts after %v", took.Round(time.Millisecond))
				if err := second.WaitExit(5 * time.Second); err != nil {
					t.Errorf("after SIGTERM: %v", err)
				}

				// A standby ends at once, and an operator's step-down moves leadership.
				fourth := c.start(b, command)
				waitForCandidate(t, electors[1], c.election)
				fourth.Signal(sigterm)
				if err := fourth.WaitExit(5 * time.Second); err != nil {
					t.Errorf("a standby, after SIGTERM: %v", err)
				}
				fifth := c.start(b, command)
				waitForCandidate(t, electors[1], c.election)
				stepDown(t, electors[0], c.election)
				_, took = c.acts(token, handOver)
				t.Logf("step-down: the next acts after %v", took.Round(time.Millisecond))
				third.Stop(5 * time.Second)
				fifth.Stop(5 * time.Second)

				if all := c.tokens(); !slices.IsSorted(all) {
					t.Errorf("somebody acted with a token after a higher one: %d", all)
				}
			})
		}
	}
}

func waitForCandidate(t *testing.T, e *elector, election string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "the second candidate is in the race", func(ctx context.Context) error {
		state, err := electorState(ctx, e.unix, election)
		if err != nil {
			return err
		}
		if len(state.Waiting) == 0 && state.Role == "follower" {
			return fmt.Errorf("state %+v", state)
		}
		return nil
	})
}

// TestShellStepOutlivesItsShell: a step that is still running when its shell is killed keeps the tether tied, so that nobody else
// acts at the same time.
func TestShellStepOutlivesItsShell(t *testing.T) {
	need(t, "bash", "curl", "jq")
	electors := theElectors.Get(t)
	c := newCandidates(t, "leader")
	const step = `leader-election/lead.sh sh -c 'echo "working token=$TOKEN"; sleep 1.5; echo "done token=$TOKEN"'`
	first := c.start(electors[0].unix, step)
	token, _ := c.acts(0, 30*time.Second)
	second := c.start(electors[1].unix, step)
	waitForCandidate(t, electors[1], c.election)
	first.Kill()
	next, _ := c.acts(token, 8*time.Second)
	data, err := os.ReadFile(c.path)
	if err != nil {
		t.Fatal(err)
	}
	acts := string(data)
	end, begin := strings.LastIndex(acts, fmt.Sprintf("done token=%d", token)), strings.Index(acts, fmt.Sprintf("working token=%d", next))
	if begin < 0 || strings.Count(acts, fmt.Sprintf("working token=%d", token)) != strings.Count(acts, fmt.Sprintf("done token=%d", token)) || end > begin {
		t.Errorf("the second leader began before the first one's last step had ended:\n%s", acts)
	}
	second.Stop(5 * time.Second)
}

// TestRecipesOutliveTheirElector: without an elector a recipe stops to act before its lease is over, ends when asked to, and leads
// again once the elector is back.
func TestRecipesOutliveTheirElector(t *testing.T) {
	e := startElector(t, "fragile")
	running := map[*candidates]*harness.Process{}
	for _, r := range languages {
		need(t, r.needs...)
		c := newCandidates(t, r.name+"-unix")
		running[c] = c.start(e.unix, commands(t, "leader-election.md", r.section))
	}
	tokens := map[*candidates]uint64{}
	for c := range running {
		tokens[c], _ = c.acts(0, 30*time.Second)
	}
	e.Kill()
	sleep(t.Context(), lease)
	for c := range running {
		before := len(c.tokens())
		sleep(t.Context(), time.Second)
		if n := len(c.tokens()) - before; n > 0 {
			t.Errorf("%s acted %d times without a lease", c.election, n)
		}
	}
	e.Run()
	e.ready(t)
	for c := range running {
		c.acts(tokens[c], 30*time.Second)
	}
	e.Kill()
	for c, p := range running {
		p.Signal(sigterm)
		if err := p.WaitExit(8 * time.Second); err != nil {
			t.Errorf("%s: after SIGTERM without an elector: %v", c.election, err)
		}
	}
}
