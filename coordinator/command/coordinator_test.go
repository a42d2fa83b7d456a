package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"retinue/coordinator"
	"retinue/coordinator/source"
	"retinue/internal/cli"
	"retinue/internal/hint"
)

func TestCoordinatorFlags(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "q.hcl")
	if err := os.WriteFile(file, []byte("work_queue \"fromfile\" {\n  worker {\n    slots = 9\n    batch = 1\n  }\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := New(Brokers{})
	var f coordinatorFlags
	fresh := *cmd
	fresh.ResetFlags()
	f.add(&fresh)
	if err := fresh.Flags().Parse([]string{"--config", file, "--slots", "3", "--queue", "flag"}); err != nil {
		t.Fatal(err)
	}
	s, err := f.settings([]string{"work", "hard"}, func(name string) string { return map[string]string{"NOMAD_ALLOC_DIR": "/alloc"}[name] })
	if err != nil || s.Worker.Slots != 3 || s.Queue != "flag" || s.Worker.Work != "/alloc/data/wq" || s.Listen[0] != "unix:///alloc/tmp/coordinator.sock" || len(s.Worker.Command) != 2 || s.Retry.Attempts != coordinator.DefaultSettings().Retry.Attempts {
		t.Errorf("%v %+v", err, s)
	}
}

// Only what is behind -- is the worker's command.
func TestCommandBehindDash(t *testing.T) {
	for line, want := range map[string]string{"": "", "--queue q": "", "-- cat": "", "--queue q -- cat -- x": "", "cat": `unexpected argument "cat"`, "coordinator -- cat": `unexpected argument "coordinator"`, "--queue q cat": `unexpected argument "cat"`} {
		cmd := New(Brokers{})
		cmd.RunE = func(*cobra.Command, []string) error { return nil }
		cmd.SetArgs(strings.Fields(line))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		got := ""
		if err := cmd.Execute(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// A coordinator that is up before its broker waits for it; what waiting does not heal, and a broker that goes away later, are told at once.
func TestPatient(t *testing.T) {
	tried := 0
	open := patient(t.Context(), hclog.NewNullLogger(), func(source.Options) (source.Source, error) {
		if tried++; tried < 3 {
			return nil, fmt.Errorf("dial: %w", source.ErrUnavailable)
		}
		return nil, source.ErrAccess
	})
	if _, err := open(source.Options{}); !errors.Is(err, source.ErrAccess) || tried != 3 {
		t.Errorf("%d tries, %v", tried, err)
	}
	tried = 0
	if _, err := open(source.Options{}); !errors.Is(err, source.ErrUnavailable) || tried != 1 {
		t.Errorf("later: %d tries, %v", tried, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tried = -100
	if _, err := patient(ctx, hclog.NewNullLogger(), func(source.Options) (source.Source, error) { return nil, source.ErrUnavailable })(source.Options{}); err == nil {
		t.Error("it waits when it should stop")
	}
}

// A broker that another program has is named together with that program; one that nobody has, with those that there are.
func TestBrokersElsewhere(t *testing.T) {
	b := Brokers{Schemes: "nats, redis", Elsewhere: func(scheme string) string { return map[string]string{"kafka": "use the other program"}[scheme] }}
	for address, want := range map[string]string{"kafka://h:1": "use the other program", "ftp://h": "nats, redis", "": "--broker", "h:1": "nats, redis"} {
		_, err := b.open(address)
		if code, said := cli.Code(err); code != cli.ExitUsage || said || !strings.Contains(hint.Of(err), want) {
			t.Errorf("%q: code %d, %v, hint %q", address, code, err, hint.Of(err))
		}
	}
}
