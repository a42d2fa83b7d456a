package sigpipe_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"testing"

	_ "retinue/plugins/sigpipe"
)

// TestWritingToNobody runs this test again as a process whose standard error nobody
// reads, as a plugin is after a crash of its agent.
func TestWritingToNobody(t *testing.T) {
	if os.Getenv("WRITE_TO_NOBODY") != "" {
		for range 3 {
			if _, err := os.Stderr.WriteString("a line of a log\n"); err == nil {
				fmt.Println("the pipe has a reader: this test tests nothing")
			}
		}
		fmt.Println("alive")
		os.Exit(0)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	var out bytes.Buffer
	cmd := exec.Command("/proc/self/exe", "-test.run=TestWritingToNobody")
	cmd.Env = append(os.Environ(), "WRITE_TO_NOBODY=1")
	cmd.Stdout, cmd.Stderr = &out, w
	if err := cmd.Run(); err != nil || out.String() != "alive\n" {
		t.Fatalf("%v, output %q", err, out.String())
	}
}
