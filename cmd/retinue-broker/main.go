// Command retinue-broker is the queue for those who run no broker: NATS
// JetStream in one process. It is a program of its own because the helpers
// beside every container must stay small, and a queue must not come and go
// with them.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"retinue/coordinator/broker"
	"retinue/internal/cli"
	"retinue/internal/hint"
	"retinue/internal/obs"
)

func main() { os.Exit(cli.Main(newCmd(), os.Args[1:], os.Stdout, os.Stderr)) }

// flags are the command line.
type flags struct {
	data, listen, durability, user, passwordFile, name, cluster, routesFile, advertise, health, logLevel string
	routes                                                                                               []string
}

func newCmd() *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "retinue-broker",
		Short: "The queue of a work queue, for those who run no broker",
		Long: `Serves NATS JetStream, which ` + "`retinue coordinator --broker nats://...`" + ` and any NATS
client can use. What a publisher got an answer for is on disk. On SIGTERM it
writes out what is left and ends; clients connect again when it is back.

Anything but loopback needs a password: --password-file names a file with it.`,
		Example: `  retinue-broker --data /tmp/queue
  retinue-broker --data /queue --listen 0.0.0.0:4222 --password-file /secrets/password`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	cmd.Flags().StringVar(&f.data, "data", "", "folder of the messages; it must live as long as the queues")
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:4222", "where clients connect, HOST:PORT")
	cmd.Flags().StringVar(&f.durability, "durability", string(broker.Always), "when a message reaches the disk: always (before the answer), interval (within 0.1s) or process (a kill loses nothing, a power failure does)")
	cmd.Flags().StringVar(&f.user, "user", "retinue", "user name that clients give with the password")
	cmd.Flags().StringVar(&f.passwordFile, "password-file", "", "file with the clients' password; without one only loopback is served")
	cmd.Flags().StringVar(&f.name, "name", "", "this broker's name among three")
	cmd.Flags().StringVar(&f.cluster, "cluster", "", "where the other brokers connect, HOST:PORT")
	cmd.Flags().StringSliceVar(&f.routes, "routes", nil, "the other brokers' --cluster addresses")
	cmd.Flags().StringVar(&f.routesFile, "routes-file", "", "file with the other brokers' --cluster addresses, one a line, in place of --routes; this broker's own may be among them. A broker that is new waits for two others")
	cmd.Flags().StringVar(&f.advertise, "cluster-advertise", "", "where the other brokers reach --cluster when that is not the address itself, HOST:PORT")
	cmd.Flags().StringVar(&f.health, "health", "", "where GET /health says whether this broker is whole, HOST:PORT: 200, or 503 and why; of three one that is new gets its copy first. It asks for no password")
	cmd.Flags().StringVar(&f.logLevel, "log-level", "info", "trace, debug, info, warn or error")
	return cmd
}

// config reads the flags; the password never stands on a command line.
func (f flags) config() (broker.Config, error) {
	c := broker.Config{Dir: f.data, Listen: f.listen, Durability: broker.Durability(f.durability), Name: f.name, Cluster: f.cluster, Routes: f.routes, RoutesFile: f.routesFile, Advertise: f.advertise, Health: f.health}
	if f.data == "" {
		return c, cli.Usage(hint.Wrap(errors.New("no folder for the messages"), "give --data FOLDER"))
	}
	if f.cluster == "" && (f.routesFile != "" || f.advertise != "" || len(f.routes) > 0) {
		return c, cli.Usage(hint.Wrap(errors.New("routes to other brokers, and no address for them"), "give --cluster HOST:PORT and --name NAME"))
	}
	if f.passwordFile == "" {
		if !loopback(f.listen) || f.cluster != "" && !loopback(f.cluster) {
			return c, cli.Usage(hint.Wrap(fmt.Errorf("%s is open to others, and there is no password", f.listen), "give --password-file FILE, or listen on 127.0.0.1"))
		}
		return c, nil
	}
	data, err := os.ReadFile(f.passwordFile)
	if err != nil {
		return c, cli.Usage(fmt.Errorf("read the password: %w", err))
	}
	c.User, c.Password = f.user, strings.TrimSpace(string(data))
	if len(c.Password) < 16 {
		return c, cli.Usage(hint.Wrap(fmt.Errorf("the password in %s has less than 16 characters", f.passwordFile), "make one: openssl rand -hex 16"))
	}
	return c, nil
}

// loopback says that an address is reached from this machine, or this network namespace, alone.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (f flags) run(cmd *cobra.Command) error {
	c, err := f.config()
	if err != nil {
		return err
	}
	log, err := obs.Logger(cmd.ErrOrStderr(), "broker", f.logLevel)
	if err != nil {
		return cli.Usage(err)
	}
	if c.RoutesFile != "" {
		log.Info("waiting for the other brokers", "file", c.RoutesFile, "name", c.Name)
	}
	b, err := broker.Start(cmd.Context(), c)
	if err != nil {
		return err
	}
	log.Info("broker started", "address", b.Addr(), "durability", f.durability, "password", c.Password != "")
	select {
	case <-cmd.Context().Done():
		b.Close()
		log.Info("broker stopped")
		return nil
	case <-b.Done():
		return errors.New("the broker ended by itself")
	}
}
