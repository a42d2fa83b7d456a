package brokers

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	rabbitServer = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	activemqHome = "/usr/share/activemq"
)

// rabbitmq is a broker with no plugins, no shared name service and nothing outside its folder.
func (b *Broker) rabbitmq(port int) error {
	if err := b.program(rabbitServer); err != nil {
		return err
	}
	b.URL, b.Durability, b.Settle = "amqp://guest:guest@"+b.Addr+"/", "quorum queues", 12*time.Second
	b.Version = "rabbitmq-server " + debianVersion("rabbitmq-server")
	dir := b.cmd.Dir
	for name, text := range map[string]string{
		"rabbitmq.conf": "listeners.tcp.1 = " + b.Addr + "\nlog.console = true\nlog.console.level = warning\n", "plugins": "[].",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	// The broker would start its name service as a daemon that outlives us.
	names, err := freePort()
	if err != nil {
		return err
	}
	dist, err := freePort()
	if err != nil {
		return err
	}
	epmd, err := filepath.Glob("/usr/lib/erlang/erts-*/bin/epmd")
	if err != nil || len(epmd) == 0 {
		return fmt.Errorf("epmd of Erlang: %w", ErrMissing)
	}
	if _, err := b.spawn.Start(Command{Name: "epmd", Path: epmd[0], Args: []string{"-address", "127.0.0.1", "-port", strconv.Itoa(names)}, Dir: dir, Log: dir + "/epmd.log"}); err != nil {
		return err
	}
	if err := listening(net.JoinHostPort("127.0.0.1", strconv.Itoa(names))); err != nil {
		return err
	}
	b.cmd.Env = []string{
		"HOME=" + dir, "RABBITMQ_CONFIG_FILE=" + dir + "/rabbitmq.conf", "RABBITMQ_MNESIA_BASE=" + dir + "/db", "RABBITMQ_LOG_BASE=" + dir + "/log", "RABBITMQ_LOGS=-",
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + dir + "/plugins", "RABBITMQ_CONF_ENV_FILE=" + dir + "/none", "RABBITMQ_GENERATED_CONFIG_DIR=" + dir + "/generated", "RABBITMQ_PID_FILE=" + dir + "/pid",
		"RABBITMQ_NODENAME=retinue" + strconv.Itoa(port) + "@localhost", "RABBITMQ_DIST_PORT=" + strconv.Itoa(dist),
		"RUNNING_UNDER_SYSTEMD=true", // the script becomes the broker, so that the broker is our process
		"ERL_EPMD_PORT=" + strconv.Itoa(names), "ERL_EPMD_ADDRESS=127.0.0.1",
	}
	return nil
}

func listening(addr string) error {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(end) {
			return err
		}
	}
}

// activemq is a broker with delays and statistics.
func (b *Broker) activemq() error {
	if err := errors.Join(b.program("activemq"), b.program("java")); err != nil {
		return err
	}
	b.URL, b.Durability = "stomp://retinue:secret@"+b.Addr, "KahaDB as it comes"
	b.Version = "activemq " + debianVersion("activemq")
	dir := b.cmd.Dir
	lib := filepath.Join(dir, "lib", "optional")
	if err := os.MkdirAll(lib, 0o700); err != nil {
		return err
	}
	for _, jar := range []string{"/usr/share/java/xstream.jar", "/usr/share/java/jettison.jar"} { // Debian's package leaves them out; statistics need them
		if err := os.Symlink(jar, filepath.Join(lib, filepath.Base(jar))); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"activemq.xml":     fmt.Sprintf(activemqXML, dir, dir, b.Addr),
		"log4j.properties": "log4j.rootLogger=WARN, out\nlog4j.appender.out=org.apache.log4j.ConsoleAppender\nlog4j.appender.out.layout=org.apache.log4j.PatternLayout\nlog4j.appender.out.layout.ConversionPattern=%d %p %c: %m%n\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	b.cmd.Args = []string{
		"-Xms32m", "-Xmx512m", "-XX:+UseSerialGC", "-Djava.io.tmpdir=" + dir, "-Dlog4j.configuration=file:" + dir + "/log4j.properties",
		"-Dactivemq.home=" + activemqHome, "-Dactivemq.base=" + dir, "-Dactivemq.conf=" + dir, "-Dactivemq.data=" + dir + "/data",
		"-jar", activemqHome + "/bin/activemq.jar", "start", "xbean:file:" + dir + "/activemq.xml",
	}
	return nil
}

const activemqXML = `<beans xmlns="http://www.springframework.org/schema/beans" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans-2.0.xsd
  http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" brokerName="retinue" dataDirectory="%s/data" schedulerSupport="true">
    <persistenceAdapter><kahaDB directory="%s/data/kahadb"/></persistenceAdapter>
    <plugins>
      <simpleAuthenticationPlugin><users><authenticationUser username="retinue" password="secret" groups="users"/></users></simpleAuthenticationPlugin>
      <statisticsBrokerPlugin/>
    </plugins>
    <transportConnectors><transportConnector name="stomp" uri="stomp+nio://%s"/></transportConnectors>
  </broker>
</beans>
`

// debianVersion is the version of a package; "" where dpkg knows none.
func debianVersion(name string) string {
	out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
