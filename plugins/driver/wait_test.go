package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins/drivers/proto"
)

// An end that the inner driver has only guessed is asked of the engine, when that is back.
func TestEndOfAContainerThatWasLostSightOf(t *testing.T) {
	guess := &proto.WaitTaskResponse{Err: "unexpected EOF", Result: &proto.ExitResult{}}
	for _, c := range []struct {
		name      string
		inner     string
		resp      *proto.WaitTaskResponse
		code      int
		says      string
		wantCode  int32
		asIs      bool // the answer of the inner driver
		recovered bool // the driver has to be started anew
	}{
		{name: "it runs", inner: "docker", resp: guess, code: 200, says: `{"State": {"Running": true}}`, recovered: true},
		{name: "it has ended", inner: "docker", resp: guess, code: 200, says: `{"State": {"Running": false, "ExitCode": 3}}`, wantCode: 3},
		{name: "it is gone", inner: "docker", resp: guess, code: 404, asIs: true},
		{name: "the engine is ill", inner: "docker", resp: guess, code: 500, asIs: true},
		{name: "an end with a code", inner: "docker", resp: &proto.WaitTaskResponse{Err: "Docker container exited with non-zero exit code: 7", Result: &proto.ExitResult{ExitCode: 7}}, asIs: true},
		{name: "out of memory", inner: "docker", resp: &proto.WaitTaskResponse{Err: "OOM Killed", Result: &proto.ExitResult{OomKilled: true}}, asIs: true},
		{name: "another driver", inner: "podman", resp: guess, asIs: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "engine.sock")
			d := &Driver{name: c.inner, end: make(chan struct{}), settings: settings{engine: engineAt("unix://" + path)}}
			task := &task{d: d, container: "c1", log: hclog.NewNullLogger()}
			if c.code != 0 { // it comes back after a while
				timer := time.AfterFunc(100*time.Millisecond, func() {
					l, err := net.Listen("unix", path)
					if err != nil {
						t.Error(err)
						return
					}
					server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						w.WriteHeader(c.code)
						fmt.Fprint(w, c.says)
					})}
					go server.Serve(l)
					t.Cleanup(func() { server.Close() })
				})
				defer timer.Stop()
			}
			got, err := task.trueEnd(testContext(t), c.resp)
			ended := false
			select {
			case <-d.end:
				ended = true
			default:
			}
			switch {
			case ended != c.recovered:
				t.Errorf("the driver ends: %t", ended)
			case c.recovered:
				if !lost(err) {
					t.Errorf("the agent gets %v, which is no crash", err)
				}
			case err != nil:
				t.Error(err)
			case c.asIs && got != c.resp, !c.asIs && (got.Err != "" || got.Result.ExitCode != c.wantCode):
				t.Errorf("it has ended with %v", got)
			}
		})
	}
	t.Run("who waits goes away", func(t *testing.T) {
		d := &Driver{name: "docker", end: make(chan struct{}), settings: settings{engine: engineAt("unix:///nowhere/engine.sock")}}
		ctx, cancel := context.WithCancel(testContext(t))
		time.AfterFunc(50*time.Millisecond, cancel)
		if _, err := (&task{d: d, container: "c1", log: hclog.NewNullLogger()}).trueEnd(ctx, guess); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}
