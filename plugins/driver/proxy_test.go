package driver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	baseproto "github.com/hashicorp/nomad/plugins/base/proto"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	structsproto "github.com/hashicorp/nomad/plugins/shared/structs/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// laterService has calls that this driver knows nothing about.
func laterService(s *grpc.Server) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "hashicorp.nomad.plugins.drivers.proto.Later",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{method("Double", func(ctx context.Context, req *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
			if req.Value == "fail" {
				st, err := status.New(codes.FailedPrecondition, "no").WithDetails(&structsproto.RecoverableError{Recoverable: true})
				if err != nil {
					return nil, err
				}
				return nil, st.Err()
			}
			md, _ := metadata.FromIncomingContext(ctx)
			return wrapperspb.String(req.Value + req.Value + strings.Join(md.Get("extra"), "")), nil
		})},
		Streams: []grpc.StreamDesc{{StreamName: "Echo", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			for {
				m := new(wrapperspb.StringValue)
				if err := s.RecvMsg(m); err == io.EOF {
					return s.SendMsg(wrapperspb.String("end"))
				} else if err != nil {
					return err
				}
				if err := s.SendMsg(m); err != nil {
					return err
				}
			}
		}}},
	}, nil)
}

const later = "/hashicorp.nomad.plugins.drivers.proto.Later/"

func TestUnknownCallsPassThrough(t *testing.T) {
	agent := decorate(t, newFakeInner(), Options{}, laterService)
	ctx := metadata.AppendToOutgoingContext(testContext(t), "extra", "!")

	got := new(wrapperspb.StringValue)
	if err := agent.Invoke(ctx, later+"Double", wrapperspb.String("ab"), got); err != nil || got.Value != "abab!" {
		t.Fatalf("got %q, %v", got.Value, err)
	}
	err := agent.Invoke(ctx, later+"Double", wrapperspb.String("fail"), got)
	st := status.Convert(err)
	if st.Code() != codes.FailedPrecondition || len(st.Details()) != 1 {
		t.Fatalf("the error lost its code or its details: %v %v", err, st.Details())
	}
	if rec, ok := st.Details()[0].(*structsproto.RecoverableError); !ok || !rec.Recoverable {
		t.Fatalf("details: %v", st.Details())
	}
	if err := agent.Invoke(ctx, later+"Nothing", wrapperspb.String(""), got); status.Code(err) != codes.Unimplemented {
		t.Fatalf("a call that the inner driver does not have: %v", err)
	}
}

func TestUnknownStreamsPassThrough(t *testing.T) {
	agent := decorate(t, newFakeInner(), Options{}, laterService)
	s, err := agent.NewStream(testContext(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, later+"Echo")
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 100_000)
	for _, text := range []string{"a", big, ""} {
		if err := s.SendMsg(wrapperspb.String(text)); err != nil {
			t.Fatal(err)
		}
		got := new(wrapperspb.StringValue)
		if err := s.RecvMsg(got); err != nil || got.Value != text {
			t.Fatalf("sent %d bytes, got %d, %v", len(text), len(got.Value), err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	got := new(wrapperspb.StringValue)
	if err := s.RecvMsg(got); err != nil || got.Value != "end" {
		t.Fatalf("after the end of sending: %q, %v", got.Value, err)
	}
	if err := s.RecvMsg(got); !errors.Is(err, io.EOF) {
		t.Fatalf("the stream does not end: %v", err)
	}
}

func TestSchemasHaveOneMoreBlock(t *testing.T) {
	f := newFakeInner()
	agent := decorate(t, f, Options{})
	schema, err := proto.NewDriverClient(agent).TaskConfigSchema(testContext(t), &proto.TaskConfigSchemaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	attrs := schema.Spec.GetObject().Attributes
	if len(attrs) != 2 || attrs["command"] == nil || attrs[lifecycleKey].GetBlockValue() == nil {
		t.Fatalf("attributes %v", attrs)
	}
	config, err := baseproto.NewBasePluginClient(agent).ConfigSchema(testContext(t), &baseproto.ConfigSchemaRequest{})
	if err != nil || config.Spec.GetObject().Attributes[lifecycleKey] == nil {
		t.Fatalf("schema of the plugin: %v, %v", config, err)
	}
}

func TestRefusesADriverWithALifecycleOfItsOwn(t *testing.T) {
	f := newFakeInner()
	f.taskSchema = hclspec.NewObject(map[string]*hclspec.Spec{lifecycleKey: hclspec.NewAttr(lifecycleKey, "string", false)})
	inner := connect(t, func(s *grpc.Server) {
		proto.RegisterDriverServer(s, f)
		baseproto.RegisterBasePluginServer(s, f)
	})
	if _, err := New(testContext(t), inner, Options{Log: hclog.NewNullLogger()}); err == nil || !strings.Contains(err.Error(), `"lifecycle" of its own`) {
		t.Fatalf("error %v", err)
	}
}

func TestPluginConfigurationOfTheInnerDriverIsUntouched(t *testing.T) {
	f := newFakeInner()
	agent := decorate(t, f, Options{})
	want := encode(t, map[string]any{"endpoint": "x"})
	config := encode(t, map[string]any{"endpoint": "x", lifecycleKey: map[string]any{"stop_budget": "1m"}})
	if _, err := baseproto.NewBasePluginClient(agent).SetConfig(testContext(t), &baseproto.SetConfigRequest{MsgpackConfig: config}); err != nil {
		t.Fatal(err)
	}
	if got := <-f.config; !bytes.Equal(got, want) {
		t.Fatalf("the inner driver got %x, want %x", got, want)
	}
}

func TestNameAndAttributes(t *testing.T) {
	for _, c := range []struct{ as, want string }{{"", "fake"}, {"fake", "fake"}, {"other", "other"}} {
		agent := decorate(t, newFakeInner(), Options{As: c.as})
		info, err := baseproto.NewBasePluginClient(agent).PluginInfo(testContext(t), &baseproto.PluginInfoRequest{})
		if err != nil || info.Name != c.want || info.PluginVersion != "0.1.0" {
			t.Fatalf("-as %q: %v, %v", c.as, info, err)
		}
		s, err := proto.NewDriverClient(agent).Fingerprint(testContext(t), &proto.FingerprintRequest{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"", ".version", ".lifecycle"} {
			if got.Attributes["driver."+c.want+key] == nil {
				t.Errorf("-as %q: no attribute %q in %v", c.as, "driver."+c.want+key, got.Attributes)
			}
		}
		if len(got.Attributes) != 3 {
			t.Errorf("-as %q: %v", c.as, got.Attributes)
		}
		if _, err := s.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("-as %q: the stream ends with %v", c.as, err)
		}
	}
}

// TestLinksNothingOfNomadButProtocolAndClient: the program of this package is under this
// project's licence, so nothing of Nomad that is under another may be in it.
func TestLinksNothingOfNomadButProtocolAndClient(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "retinue/plugins/cmd/retinue-driver").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("go list printed only %d packages", len(deps))
	}
	const nomad = "github.com/hashicorp/nomad/plugins/"
	generated := map[string]bool{nomad + "base/proto": true, nomad + "drivers/proto": true, nomad + "shared/hclspec": true, nomad + "shared/structs/proto": true}
	for _, dep := range deps {
		if dep == "github.com/hashicorp/nomad/api" || strings.HasPrefix(dep, "github.com/hashicorp/nomad/api/") {
			continue // MPL, its client library
		}
		if strings.HasPrefix(dep, "github.com/hashicorp/nomad") && !generated[dep] {
			t.Errorf("links %s", dep)
		}
	}
}
