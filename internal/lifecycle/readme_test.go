package lifecycle

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The table of hooks in the room's README is the one that the code has, and its attributes are all described.
func TestREADME(t *testing.T) {
	data, err := os.ReadFile("../../plugins/README.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, spec := range Hooks() {
		kinds := make([]string, len(spec.Kinds))
		for i, k := range spec.Kinds {
			kinds[i] = string(k)
		}
		row := fmt.Sprintf("| `%s` | %s | %s | %s | %s | %s |", spec.Name, strings.Replace(spec.Called, `change_mode = "signal"`, "`change_mode = \"signal\"`", 1),
			map[bool]string{true: "yes", false: "no"}[spec.Blocking], spec.Timeout, spec.OnFailure, strings.Join(kinds, ", "))
		if !strings.Contains(text, row+"\n") {
			t.Errorf("the README has no row\n%s", row)
		}
	}
	for _, attr := range Schema().Attrs {
		if !strings.Contains(text, "| `"+attr.Name+"` |") {
			t.Errorf("the README says nothing of %s", attr.Name)
		}
	}
	for _, p := range []Phase{Created, Restoring, Starting, Warming, Running, Paused, Draining, Saving, Stopping, Stopped, Killed, Exited, Destroyed} {
		if !strings.Contains(text, string(p)) {
			t.Errorf("the README has no phase %s", p)
		}
	}
}
