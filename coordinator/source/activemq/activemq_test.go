package activemq

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"retinue/coordinator/source"
	"retinue/coordinator/source/sourcetest"
)

const serverVariable = "RETINUE_ACTIVEMQ_TEST"

func TestMain(m *testing.M) {
	sourcetest.Main(m, map[string]func() error{
		"consumer": sourcetest.Consumer(func(ctx context.Context, o source.Options) (source.Source, error) {
			return Open(ctx, Config{URL: os.Getenv(serverVariable), Options: o})
		}),
	})
}

func TestContract(t *testing.T) {
	srv, addr := start(t, `schedulerSupport="true"`, "<statisticsBrokerPlugin/>", extras...)
	sourcetest.Run(t, sourcetest.Harness{
		Addr: addr, Server: srv, Child: []string{serverVariable + "=" + at(addr, "secret")},
		Open: func(ctx context.Context, via string, o source.Options) (source.Source, error) {
			if via == "" {
				via = addr
			}
			return open(ctx, via, "secret", o)
		},
		Denied: func(ctx context.Context, o source.Options) (source.Source, error) { return open(ctx, addr, "wrong", o) },
		Foreign: func(ctx context.Context, queue string, body []byte) error {
			cn := raw(t, addr, func(*frame) {})
			// As a producer of text would, without a length.
			cn.mu.Lock()
			cn.queue = append(cn.queue, "SEND\ndestination:/queue/queue."+queue+".0\npersistent:true\nreceipt:r\n\n"+string(body)+"\x00"...)
			answer := make(chan error, 1)
			cn.receipts["r"] = answer
			cn.mu.Unlock()
			cn.wake <- struct{}{}
			return cn.wait(ctx, answer)
		},
	})
	t.Run("a receive begins as what nobody asked for goes back", func(t *testing.T) { receiveBeginsAsItGoesBack(t, addr) })
}

// receiveBeginsAsItGoesBack: that nobody asks may be over by the time at which what was fetched would go back. The Receive would wait for ever.
func receiveBeginsAsItGoesBack(t *testing.T, addr string) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	src, err := open(ctx, addr, "secret", source.Options{Queue: "turning", Lease: time.Minute, Prefetch: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close(context.Background())
	s := src.(*Source)
	received := make(chan error, 1)
	go func() {
		ms, err := s.Receive(ctx, 1)
		if err == nil {
			err = s.Ack(ctx, ms...)
		}
		received <- err
	}()
	for asks := false; !asks && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		asks = s.receiving && s.in != nil && s.in.consuming
		s.mu.Unlock()
	}
	s.giveBackUnused()
	if err := errors.Join(s.Publish(ctx, source.Out{ID: "1"}), <-received); err != nil {
		t.Fatal(err)
	}
}

func at(addr, password string) string {
	return (&url.URL{Scheme: "stomp", User: url.UserPassword("retinue", password), Host: addr}).String()
}

func open(ctx context.Context, addr, password string, o source.Options) (source.Source, error) {
	s, err := Open(ctx, Config{URL: at(addr, password), Options: o})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// raw is a connection without a source.
func raw(t *testing.T, addr string, deliver func(*frame)) *conn {
	t.Helper()
	c := Config{URL: at(addr, "secret"), Options: source.Options{Queue: "raw"}}
	if err := c.complete(); err != nil {
		t.Fatal(err)
	}
	cn, err := dial(t.Context(), &c, deliver)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cn.fail(source.ErrClosed) })
	return cn
}

// extras are what Debian's package leaves out: the broker needs both to put statistics into text.
var extras = []string{"/usr/share/java/xstream.jar", "/usr/share/java/jettison.jar"}

// start runs a broker of its own, with nothing outside its folder.
func start(t *testing.T, attributes, plugins string, jars ...string) (*sourcetest.Server, string) {
	t.Helper()
	const home = "/usr/share/activemq"
	sourcetest.Need(t, "/usr/bin/activemq")
	java := sourcetest.Need(t, "java")
	dir, port := t.TempDir(), sourcetest.Port(t)
	lib := filepath.Join(dir, "lib", "optional")
	if err := os.MkdirAll(lib, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, jar := range jars {
		if _, err := os.Stat(jar); err != nil {
			sourcetest.Need(t, jar) // says so
		}
		if err := os.Symlink(jar, filepath.Join(lib, filepath.Base(jar))); err != nil {
			t.Fatal(err)
		}
	}
	addr := sourcetest.Loopback(port)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("activemq.xml", fmt.Sprintf(configuration, dir, attributes, dir, plugins, addr))
	write("log4j.properties", "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\nlog4j.appender.out.layout=org.apache.log4j.PatternLayout\nlog4j.appender.out.layout.ConversionPattern=%d %p %c: %m%n\n")
	return sourcetest.StartServer(t, sourcetest.Command{Name: "activemq", Path: java, Dir: dir, Args: []string{
		"-Xms32m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.io.tmpdir=" + dir, "-Dlog4j.configuration=file:" + dir + "/log4j.properties",
		"-Dactivemq.home=" + home, "-Dactivemq.base=" + dir, "-Dactivemq.conf=" + dir, "-Dactivemq.data=" + dir + "/data",
		"-jar", home + "/bin/activemq.jar", "start", "xbean:file:" + dir + "/activemq.xml",
	}}, sourcetest.Listens(addr)), addr
}

const configuration = `<beans xmlns="http://www.springframework.org/schema/beans" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans-2.0.xsd
  http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" brokerName="retinue" dataDirectory="%s/data" %s>
    <persistenceAdapter><kahaDB directory="%s/data/kahadb"/></persistenceAdapter>
    <plugins>
      <simpleAuthenticationPlugin><users><authenticationUser username="retinue" password="secret" groups="users"/></users></simpleAuthenticationPlugin>
      %s
    </plugins>
    <transportConnectors><transportConnector name="stomp" uri="stomp+nio://%s"/></transportConnectors>
  </broker>
</beans>
`
