package inner_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/helper/pluginutils/hclspecutils"
	"github.com/hashicorp/nomad/helper/pluginutils/hclutils"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/testutils"
	"github.com/zclconf/go-cty/cty/msgpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"retinue/plugins/driver"
	"retinue/plugins/inner"
	_ "retinue/plugins/sigpipe"
)

func TestDriversOfThisBuild(t *testing.T) {
	if got := inner.Names(); !slices.Equal(got, []string{"docker", "exec", "raw_exec"}) {
		t.Errorf("drivers %v; exec must be there in a cgo build, and in no other", got)
	}
	if _, err := inner.New(t.Context(), "podman", hclog.NewNullLogger()); err == nil {
		t.Error("there is no podman, and no error")
	}
}

// TestSIGPIPEIsHandledFirst looks at the order of initialisation: the executor and the
// docker_logger of a task are this program as well, and never return from theirs.
func TestSIGPIPEIsHandledFirst(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "executor", "{}")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, _ := cmd.CombinedOutput() // it ends with an error: nobody speaks its protocol
	order := string(out)
	first := strings.Index(order, "init retinue/plugins/sigpipe @")
	if first < 0 {
		t.Fatalf("it is not initialised before the executor runs:\n%s", order)
	}
	for _, later := range []string{"init github.com/hashicorp/nomad/drivers/docker/docklog", "init github.com/hashicorp/nomad/drivers/shared/executor"} {
		if at := strings.Index(order, later); at >= 0 && at < first {
			t.Errorf("%q comes before it", later)
		}
	}
}

// serve is a gRPC connection in memory.
func serve(t *testing.T, register func(*grpc.Server), opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer(opts...)
	register(s)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient("passthrough:inner", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// decorated is Nomad's own driver of that name behind the decorator, in Nomad's own
// test harness.
func decorated(t *testing.T, name string) *testutils.DriverHarness {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	d, err := inner.New(ctx, name, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	conn := serve(t, func(s *grpc.Server) {
		if err := (&base.PluginBase{Impl: d}).GRPCServer(nil, s); err != nil {
			t.Error(err)
		}
		if err := drivers.NewDriverPlugin(d, hclog.NewNullLogger()).GRPCServer(nil, s); err != nil {
			t.Error(err)
		}
	}, inner.ExactCapabilities(d))
	front, err := driver.New(ctx, conn, driver.Options{Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(front.Close)
	outer := serve(t, func(s *grpc.Server) { front.Register(s) }, front.ServerOptions()...)
	plugin, err := drivers.NewDriverPlugin(nil, hclog.NewNullLogger()).GRPCClient(ctx, nil, outer)
	if err != nil {
		t.Fatal(err)
	}
	h := testutils.NewDriverHarness(t, plugin.(drivers.DriverPlugin))
	t.Cleanup(h.Kill)
	return h
}

func TestSchemaOfEachDriverConverts(t *testing.T) {
	for _, name := range inner.Names() {
		spec, err := decorated(t, name).TaskConfigSchema()
		if err != nil {
			t.Fatal(err)
		}
		if _, diags := hclspecutils.Convert(spec); diags.HasErrors() {
			t.Errorf("%s: %v", name, diags)
		}
	}
}

func TestCapabilitiesAreThoseOfTheDriver(t *testing.T) {
	for _, name := range inner.Names() {
		plain, err := inner.New(t.Context(), name, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		want, err := plain.Capabilities()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decorated(t, name).Impl().Capabilities()
		if err != nil {
			t.Fatal(err)
		}
		if got.MountConfigs != want.MountConfigs || got.FSIsolation != want.FSIsolation || got.MustInitiateNetwork != want.MustInitiateNetwork ||
			got.Exec != want.Exec || got.SendSignals != want.SendSignals || !slices.Equal(got.NetIsolationModes, want.NetIsolationModes) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

// configure does what an agent does with the plugin's block.
func configure(t *testing.T, h *testutils.DriverHarness, name string) {
	t.Helper()
	block := map[string]any{lifecycleKey: []map[string]any{{"stop_budget": "1m", "state_dirs": []string{"/srv"}}}}
	if name == "docker" { // or it would remove containers of others
		block["gc"] = []map[string]any{{"dangling_containers": []map[string]any{{"enabled": false}}}}
	}
	schema, err := h.Impl().ConfigSchema()
	if err != nil {
		t.Fatal(err)
	}
	spec, diags := hclspecutils.Convert(schema)
	if diags.HasErrors() {
		t.Fatalf("%s: %v", name, diags)
	}
	value, diags, _ := hclutils.ParseHclInterface(block, spec, nil)
	if diags.HasErrors() {
		t.Fatalf("%s: %v", name, diags)
	}
	config, err := msgpack.Marshal(value, value.Type())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Impl().SetConfig(&base.Config{PluginConfig: config, ApiVersion: "v0.1.0"}); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

const lifecycleKey = "lifecycle"

// TestFingerprintsInNomadsHarness: whatever the machine has, each driver says so under its
// own name. The lives of tasks are played on real agents, in tests/driver: outside of one
// the control groups that exec and raw_exec need are not there.
func TestFingerprintsInNomadsHarness(t *testing.T) {
	for _, name := range inner.Names() {
		h := decorated(t, name)
		configure(t, h, name)
		info, err := h.Impl().PluginInfo()
		if err != nil || info.Name != name || info.PluginVersion != "0.1.0" {
			t.Errorf("%s: %+v, %v; a lower version would not take the place of the built-in driver", name, info, err)
		}
		prints, err := h.Fingerprint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		select {
		case f := <-prints:
			if f.Err != nil || (f.Attributes["driver."+name+".lifecycle"] != nil) != (f.Health != drivers.HealthStateUndetected) {
				t.Errorf("%s: %+v", name, f)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: no fingerprint", name)
		}
	}
}
