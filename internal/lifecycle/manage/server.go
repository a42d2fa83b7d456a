package manage

import (
	"context"
	"net/http"
	"time"

	"retinue/internal/lifecycle/allocfs"
)

// Serve answers on a socket until ctx ends, and removes it. Everybody in the allocation may use it.
func Serve(ctx context.Context, socket allocfs.Socket, h http.Handler) error {
	l, err := socket.Listen(0o666)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	<-done
	return socket.Remove()
}
