package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// tunnelCommand in the place of a program asks this driver and not the task:
// nomad alloc exec ALLOC @retinue GET /v1/health
const tunnelCommand = "@retinue"

func (d *Driver) execTaskStreaming(_ any, agent grpc.ServerStream) error {
	first := new(frame)
	if err := agent.RecvMsg(first); err != nil {
		return endOfStream(err)
	}
	req := new(proto.ExecTaskStreamingRequest)
	if err := d.codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(first.body)}, req); err != nil {
		return fmt.Errorf("first message of exec: %w", err)
	}
	command := req.GetSetup().GetCommand()
	if len(command) == 0 || command[0] != tunnelCommand {
		return d.relay(agent, "/hashicorp.nomad.plugins.drivers.proto.Driver/ExecTaskStreaming", first)
	}
	t := d.task(req.Setup.TaskId)
	if t == nil {
		return errors.New("no such task")
	}
	out := &tunnelWriter{stream: agent, header: http.Header{}}
	if err := t.answer(agent.Context(), command[1:], out); err != nil {
		out.code = http.StatusBadRequest
		fmt.Fprintln(out, "Error:", err)
		fmt.Fprintf(out, "Hint: %s GET /v1/lifecycle\n", tunnelCommand)
	}
	if out.err != nil {
		return out.err
	}
	exit := int32(0)
	if out.code >= 400 {
		exit = 1
	}
	return agent.SendMsg(&proto.ExecTaskStreamingResponse{Exited: true, Result: &proto.ExitResult{ExitCode: exit}})
}

// tunnelWriter is a response whose body goes to the standard output of the exec, or to
// its standard error when it says that the request failed.
type tunnelWriter struct {
	stream grpc.ServerStream
	header http.Header
	code   int
	err    error
}

func (w *tunnelWriter) Header() http.Header { return w.header }

func (w *tunnelWriter) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
}

func (w *tunnelWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	// The agent's side takes messages of up to 4 MiB.
	const most = 1 << 20
	for rest := p; len(rest) > 0 && w.err == nil; {
		n := min(len(rest), most)
		op := &proto.ExecTaskStreamingIOOperation{Data: rest[:n]}
		resp := &proto.ExecTaskStreamingResponse{Stdout: op}
		if w.code >= 400 {
			resp = &proto.ExecTaskStreamingResponse{Stderr: op}
		}
		w.err = w.stream.SendMsg(resp)
		rest = rest[n:]
	}
	return len(p), w.err
}

// Flush implements http.Flusher: what is written is on its way.
func (*tunnelWriter) Flush() {}

// answer makes the request that the words METHOD PATH [BODY] stand for.
func (t *task) answer(ctx context.Context, words []string, out http.ResponseWriter) error {
	if len(words) < 2 || len(words) > 3 || !strings.HasPrefix(words[1], "/") {
		return fmt.Errorf("want METHOD /path [body], not %q", words)
	}
	body := ""
	if len(words) == 3 {
		body = words[2]
	}
	req, err := http.NewRequestWithContext(ctx, words[0], "http://task"+words[1], strings.NewReader(body))
	if err != nil {
		return err
	}
	t.manage().ServeHTTP(out, req)
	return nil
}

// manage is the management API of the task.
func (t *task) manage() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/lifecycle", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(t.engine.Status()); err != nil {
			t.log.Warn("cannot answer", "error", err)
		}
	})
	mux.Handle("/", &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "task" },
		Transport: &http.Transport{DialContext: t.dialApp, DisableKeepAlives: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("the application does not answer on its socket: %v", err), http.StatusBadGateway)
		},
	})
	return mux
}
