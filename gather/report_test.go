package gather

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// reportFile is where the big tests write what they found, for docs/reports; "" as a rule. Nobody types such numbers.
var reportFile = os.Getenv("RETINUE_GATHER_REPORT")

// report adds a test's findings to the report: rows of a name and a value.
func report(t *testing.T, began time.Time, title, what string, rows ...[2]string) {
	t.Helper()
	if reportFile == "" {
		return
	}
	verdict := "Passed."
	if t.Failed() {
		verdict = "**Not passed.**"
	}
	rows = append([][2]string{{"date", began.UTC().Format(time.RFC3339)}, {"commit", tool("git", "rev-parse", "--short", "HEAD") + uncommitted()}, {"took", time.Since(began).Round(time.Second).String()},
		{"go, linux, cpus", fmt.Sprintf("%s, %s, %d", runtime.Version(), tool("uname", "-r"), runtime.NumCPU())}, {"load at the end", loads()}}, rows...)
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n%s %s\n\n| | |\n|---|---|\n", title, verdict, what)
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s | %s |\n", row[0], row[1])
	}
	f, err := os.OpenFile(reportFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() == 0 {
		f.WriteString(reportHead)
	}
	if _, err := f.WriteString(b.String()); err != nil {
		t.Fatal(err)
	}
}

const reportHead = `# Scatter/gather: long runs

Written by the tests themselves, in gather/:

` + "```sh" + `
RETINUE_GATHER_REPORT=$PWD/../docs/reports/scatter-gather-runs.md RETINUE_GATHER_REQUESTS=100000 RETINUE_GATHER_SEED=20261129 RETINUE_GATHER_LEAK_REQUESTS=1000000 RETINUE_GATHER_FREEZES=200 \
  go test -count=1 -timeout 3h -run '^(TestModel|TestNothingLeaks|TestFrozenReplicaIsFoundOutSoon)$' .
` + "```" + `
`

// tool is the first line that a program prints; "unknown" without it.
func tool(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if first, _, _ := strings.Cut(string(out), "\n"); err == nil {
		return first
	}
	return "unknown"
}

// uncommitted says that the commit is not all of what ran.
func uncommitted() string {
	if tool("git", "status", "--porcelain", ".") == "" {
		return ""
	}
	return " and changes to gather/"
}

func loads() string {
	data, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(data)); err == nil && len(fields) >= 3 {
		return strings.Join(fields[:3], " ")
	}
	return "unknown"
}
