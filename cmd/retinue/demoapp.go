package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"retinue"
	"retinue/internal/demo/leaderelection"
	"retinue/internal/demo/lifecycle"
	"retinue/internal/demo/scattergather"
	"retinue/internal/demo/workqueue"
	"retinue/internal/hint"
)

func newDemoAppCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo-app PATTERN",
		Short: "The application that the demonstrations run under a pattern",
		Example: `  retinue demo-app leader-election   what the jobspec runs as its main task
  retinue demo-app scatter-gather    what the jobspec runs as its leaf
  retinue demo-app work-queue        what the jobspec runs for each item
  retinue demo-app lifecycle         what the jobspec runs as its server`,
	}
	cmd.AddCommand(newDemoAppLeaderElectionCmd(), newDemoAppScatterGatherCmd(), newDemoAppWorkQueueCmd(), newDemoAppLifecycleCmd())
	return cmd
}

func newDemoAppLifecycleCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "lifecycle",
		Short: "A server that keeps a counter in its memory, and knows the lifecycle driver",
		Long: `Serves POST /increment?client=NAME&seq=N and GET /value for users, and hooks on
$RETINUE_SOCK. It is configured by the environment that Nomad and the driver set:
NOMAD_PORT_http, RETINUE_SOCK, RETINUE_STATE and NOTIFY_SOCKET.`,
		Example: `  NOMAD_PORT_http=8080 retinue demo-app lifecycle
  curl -X POST 'http://127.0.0.1:8080/increment?client=me&seq=1'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			port := os.Getenv("NOMAD_PORT_http")
			if port == "" {
				return usageError{hint.Wrap(errUnset("NOMAD_PORT_http"), "jobspecs/lifecycle sets it; see `retinue demo-app lifecycle --help`")}
			}
			app := lifecycle.App{Listen: net.JoinHostPort(demoHost(os.Getenv), port), Sock: os.Getenv("RETINUE_SOCK"), State: os.Getenv("RETINUE_STATE"),
				Notify: os.Getenv("NOTIFY_SOCKET"), Version: retinue.Version, Out: cmd.OutOrStdout()}
			return app.Run(cmd.Context())
		},
	}
}

// demoHost is the address to serve on. In bridge mode the network is the allocation's own; in host mode Nomad names the address to use.
func demoHost(getenv func(string) string) string {
	if ip := getenv("NOMAD_HOST_IP_http"); ip != "" && getenv("NOMAD_ALLOC_PORT_http") == getenv("NOMAD_HOST_PORT_http") {
		return ip
	}
	return "0.0.0.0"
}

func newDemoAppWorkQueueCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "work-queue [summary|words|count|top]",
		Short: "A worker that counts what is in an item",
		Long: `Reads one item from stdin. summary (the default) writes its bytes, lines, words
and SHA-256 as JSON; words, count and top are three stages that find its most
frequent words.`,
		Example: `  retinue demo-app work-queue < README.md
  retinue demo-app work-queue words < README.md | retinue demo-app work-queue count | retinue demo-app work-queue top`,
		ValidArgs: []string{"summary", "words", "count", "top"},
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			step := workqueue.Step(append(args, "summary")[0])
			return step(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

func newDemoAppScatterGatherCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "scatter-gather",
		Short: "A leaf that searches the lines of Retinue's job specifications",
		Long: `Serves GET /q?q=WORDS and GET /health for one shard. It is configured by the
environment that the jobspec sets: RETINUE_SHARD, RETINUE_SHARDS and
RETINUE_LISTEN.`,
		Example: `  RETINUE_SHARD=0 RETINUE_SHARDS=1 RETINUE_LISTEN=127.0.0.1:8080 retinue demo-app scatter-gather
  curl 'http://127.0.0.1:8080/q?q=restart'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			leaf, err := demoLeafFromEnv(os.Getenv)
			if err != nil {
				return err
			}
			return leaf.Run(cmd.Context())
		},
	}
}

func demoLeafFromEnv(getenv func(string) string) (scattergather.Leaf, error) {
	leaf := scattergather.Leaf{Listen: getenv("RETINUE_LISTEN")}
	advice := "jobspecs/scatter-gather sets it; see `retinue demo-app scatter-gather --help`"
	if leaf.Listen == "" {
		return leaf, usageError{hint.Wrap(errUnset("RETINUE_LISTEN"), "%s", advice)}
	}
	for name, to := range map[string]*int{"RETINUE_SHARD": &leaf.Shard, "RETINUE_SHARDS": &leaf.Shards} {
		n, err := strconv.Atoi(getenv(name))
		if err != nil {
			return leaf, usageError{hint.Wrap(fmt.Errorf("environment variable %s: %q is no number", name, getenv(name)), "%s", advice)}
		}
		*to = n
	}
	if leaf.Shard < 0 || leaf.Shard >= leaf.Shards {
		return leaf, usageError{hint.Wrap(fmt.Errorf("shard %d of %d", leaf.Shard, leaf.Shards), "shards are counted from 0")}
	}
	return leaf, nil
}

func newDemoAppLeaderElectionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "leader-election",
		Short: "An HTTP service of which only the leader writes",
		Long: `Serves GET /, POST /write and POST /step-down, and campaigns through the
elector with nothing but an HTTP client. It is configured by the environment
that the jobspec sets: RETINUE_ELECTOR_ADDR, RETINUE_ELECTIONS (the first
counts), NOMAD_PORT_http, NOMAD_ALLOC_ID and DEMO_STORE.`,
		Example: `  RETINUE_ELECTOR_ADDR=unix:///tmp/elector.sock NOMAD_PORT_http=8080 retinue demo-app leader-election
  curl -X POST -d '{"seq": 1}' http://127.0.0.1:8080/write`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			app, err := demoAppFromEnv(os.Getenv)
			if err != nil {
				return err
			}
			app.Log = hclog.New(&hclog.LoggerOptions{Name: "demo-app", Output: cmd.ErrOrStderr()})
			return app.Run(cmd.Context())
		},
	}
}

func demoAppFromEnv(getenv func(string) string) (leaderelection.App, error) {
	for _, name := range []string{"RETINUE_ELECTOR_ADDR", "NOMAD_PORT_http"} {
		if getenv(name) == "" {
			return leaderelection.App{}, usageError{hint.Wrap(errUnset(name), "jobspecs/leader-election sets it; see `retinue demo-app leader-election --help`")}
		}
	}
	election, _, _ := strings.Cut(getenv("RETINUE_ELECTIONS"), ",")
	if election == "" {
		election = "leader"
	}
	id := getenv("NOMAD_ALLOC_ID")
	if id == "" {
		id, _ = os.Hostname()
	}
	return leaderelection.App{
		ID:       id,
		Listen:   net.JoinHostPort(demoHost(getenv), getenv("NOMAD_PORT_http")),
		Elector:  getenv("RETINUE_ELECTOR_ADDR"),
		Election: election,
		Store:    getenv("DEMO_STORE"),
	}, nil
}

type errUnset string

func (e errUnset) Error() string { return "environment variable " + string(e) + " is not set" }
