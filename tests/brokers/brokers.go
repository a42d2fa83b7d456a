// Package brokers runs the brokers of the work queue as processes of the
// caller: each in a folder and on ports of its own, ready to be killed and
// started again with what it has on its disk. They end with the caller.
package brokers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/dial/every"
)

// Kinds are the brokers that can be run.
func Kinds() []string {
	return []string{"nats", "redis", "rabbitmq", "activemq", "kafka", "kafka-share"}
}

// ErrMissing: the machine lacks the broker's program.
var ErrMissing = errors.New("not installed")

// Broker is one that runs.
type Broker struct {
	Kind    string
	URL     string // for --broker
	Addr    string
	Version string
	// Durability is what it does before it answers a producer.
	Durability string
	// Settle is how old a queue must be to survive a kill.
	Settle time.Duration

	spawn *Spawner
	cmd   Command
	proc  *Process
}

// Start brings up a broker in a folder. retinueBroker is the path of that program, for kind nats.
func Start(ctx context.Context, spawn *Spawner, kind, dir, retinueBroker string) (*Broker, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	b := &Broker{Kind: kind, spawn: spawn, cmd: Command{Name: kind, Dir: dir, Log: filepath.Join(dir, kind+".log")}}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	b.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	switch kind {
	case "nats":
		b.URL, b.Durability = "nats://"+b.Addr, "fsync before each answer"
		b.Version = "retinue-broker"
		b.cmd.Path, b.cmd.Args = retinueBroker, []string{"--data", dir + "/data", "--listen", b.Addr}
	case "redis":
		b.URL, b.Durability = "redis://"+b.Addr+"/0", "appendfsync always"
		err = b.program("redis-server", "--version")
		b.cmd.Args = []string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always"}
	case "rabbitmq":
		err = b.rabbitmq(port)
	case "activemq":
		err = b.activemq()
	case "kafka", "kafka-share":
		groups := map[string]string{"kafka": "classic", "kafka-share": "share"}[kind]
		b.URL, b.Durability = "kafka://"+b.Addr+"/queue?partitions=4&session=1s&groups="+groups, "fsync before each answer"
		b.Version = "kfake of franz-go, not Kafka, " + groups + " groups"
		b.cmd.Path, err = os.Executable()
		b.cmd.Env = []string{fmt.Sprintf("%s=%d %s", kafkaRole, port, dir+"/data")}
	default:
		return nil, fmt.Errorf("no broker %q: there are %s", kind, strings.Join(Kinds(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return b, b.Up(ctx)
}

// program finds the broker's program and asks for its version.
func (b *Broker) program(name string, ask ...string) error {
	path, err := find(name)
	if err != nil {
		return err
	}
	b.cmd.Path = path
	if len(ask) > 0 {
		out, err := exec.Command(path, ask...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		b.Version, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	}
	return nil
}

// find looks where Debian puts servers, too.
func find(name string) (string, error) {
	for _, candidate := range []string{name, filepath.Join("/usr/sbin", filepath.Base(name))} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, ErrMissing)
}

// Installed says why a kind cannot be run here; nil when it can.
func Installed(kind string) error {
	for _, name := range map[string][]string{"redis": {"redis-server"}, "rabbitmq": {rabbitServer}, "activemq": {"activemq", "java"}}[kind] {
		if _, err := find(name); err != nil {
			return err
		}
	}
	return nil
}

// Up starts the broker, also after Kill, and waits until it serves.
func (b *Broker) Up(ctx context.Context) error {
	proc, err := b.spawn.Start(b.cmd)
	if err != nil {
		return err
	}
	b.proc = proc
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, 10*time.Second)
		err := b.probe(try)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-proc.Done():
			return fmt.Errorf("%s ended: %w\n%s", b.Kind, err, proc.Tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", b.Kind, err, proc.Tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (b *Broker) probe(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.Addr)
	if err != nil {
		return err
	}
	conn.Close()
	s, err := every.Open(ctx, b.URL, source.Options{Queue: "probe"})
	if err != nil {
		return err
	}
	return s.Close(ctx)
}

// Process is the running one.
func (b *Broker) Process() *Process { return b.proc }

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
