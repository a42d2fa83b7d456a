package cli

import (
	"fmt"
	"io/fs"
	"net"
	"strings"

	"github.com/hashicorp/go-hclog"

	"retinue/internal/hint"
	"retinue/internal/listen"
)

// Listen opens the local addresses of --listen; a Unix socket gets the octal mode of --socket-mode. None is allowed: a helper works without
// being asked.
func Listen(addrs []string, socketMode string, log hclog.Logger) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
		}
	}()
	var mode fs.FileMode
	if _, err := fmt.Sscanf(socketMode, "%o", &mode); err != nil || mode > 0o777 {
		return nil, Usage(hint.Wrap(fmt.Errorf("--socket-mode %q is not an octal file mode", socketMode), "use 0666 or 0660"))
	}
	for _, s := range addrs {
		addr, err := listen.Parse(strings.TrimSpace(s))
		if err != nil {
			return listeners, Usage(err)
		}
		l, err := listen.Listen(addr, mode)
		if err != nil {
			return listeners, err
		}
		listeners = append(listeners, l)
		if addr.Network == "tcp" {
			addr.Host = l.Addr().String() // with the port that was given for 0
		}
		log.Info("listening", "address", addr.String())
	}
	return listeners, nil
}
