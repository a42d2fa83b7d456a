package activemq

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/source"
)

// What a broker had confirmed as delayed is delivered after a kill -9 of it, and not early.
func TestDelaysSurviveTheBroker(t *testing.T) {
	srv, addr := start(t, `schedulerSupport="true"`, "")
	s := opened(t, Config{URL: at(addr, "secret"), Options: source.Options{Queue: "d", Lease: time.Minute, Prefetch: 100}})
	const each, delay = 50, 8 * time.Second
	var outs []source.Out
	for i := range each {
		outs = append(outs, source.Out{ID: fmt.Sprintf("released-%d", i)})
	}
	if err := s.Publish(t.Context(), outs...); err != nil {
		t.Fatal(err)
	}
	all := receive(t, s, each)
	start := time.Now()
	if err := s.Release(t.Context(), delay, all...); err != nil {
		t.Fatal(err)
	}
	for i := range outs {
		outs[i].ID, outs[i].Delay = fmt.Sprintf("published-%d", i), delay
	}
	if err := s.Publish(t.Context(), outs...); err != nil {
		t.Fatal(err)
	}
	srv.Kill()
	if time.Since(start) > delay/2 {
		t.Skip("this machine is too busy to kill the broker in time")
	}
	srv.Start()
	came := map[string]bool{}
	for _, m := range receive(t, s, 2*each) {
		came[m.ID] = true
	}
	if early := delay - time.Since(start); early > 0 {
		t.Errorf("all were there %v early", early)
	}
	if len(came) != 2*each {
		t.Errorf("%d of %d items came", len(came), 2*each)
	}
}

// A broker as Debian configures it: without scheduler and statistics.
func TestPlainBroker(t *testing.T) {
	_, addr := start(t, "", "")
	t.Run("delays are refused", func(t *testing.T) {
		s := opened(t, Config{URL: at(addr, "secret"), Options: source.Options{Queue: "delays"}})
		if err := s.Publish(t.Context(), source.Out{ID: "a", Delay: time.Second}); !errors.Is(err, source.ErrConfig) {
			t.Errorf("publish with a delay: %v", err)
		}
		if err := s.Publish(t.Context(), source.Out{ID: "b"}); err != nil {
			t.Fatal(err)
		}
		m := receive(t, s, 1)[0]
		if err := s.Release(t.Context(), time.Minute, m); !errors.Is(err, source.ErrConfig) {
			t.Errorf("release with a delay: %v", err)
		}
		// It is still ours.
		if err := s.Ack(t.Context(), m); err != nil {
			t.Error(err)
		}
	})
	t.Run("the depth is not told", func(t *testing.T) {
		s := opened(t, Config{URL: at(addr, "secret"), Options: source.Options{Queue: "depth"}})
		for range 2 {
			if d, err := s.Depth(t.Context()); err != nil || d.Ready != -1 || d.InFlight != -1 {
				t.Errorf("%+v, %v", d, err)
			}
		}
	})
	t.Run("headers that the broker has uses for", func(t *testing.T) {
		s := opened(t, Config{URL: at(addr, "secret"), Options: source.Options{Queue: "headers"}})
		out := source.Out{ID: "h", Headers: map[string]string{
			"type": "t", "priority": "x", "JMSXGroupID": "g", "AMQ_SCHEDULED_DELAY": "99999", "transformation": "jms-map-json", "expires": "1", "receipt": "r",
			"transaction": "t", "long": strings.Repeat("ü: \\", 2500) + "end",
		}}
		if err := s.Publish(t.Context(), out); err != nil {
			t.Fatal(err)
		}
		m := receive(t, s, 1)[0]
		if !maps.Equal(m.Headers, out.Headers) {
			t.Errorf("%.500q", m.Headers)
		}
		// As a copy too.
		if err := s.Release(t.Context(), 10*time.Millisecond, m); err != nil {
			t.Fatal(err)
		}
		again := receive(t, s, 1)[0]
		if !maps.Equal(again.Headers, out.Headers) || again.ID != "h" || again.Deliveries != 2 || !again.Published.Equal(m.Published) {
			t.Errorf("delivery %d of %s, %v: %.500q", again.Deliveries, again.ID, again.Published, again.Headers)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		front, roots := secured(t, addr)
		c := Config{URL: "stomps://retinue:secret@" + front, Options: source.Options{Queue: "tls"}}
		if _, err := Open(t.Context(), c); !errors.Is(err, source.ErrConfig) || strings.Contains(err.Error(), "secret") {
			t.Errorf("an unknown certificate: %v", err)
		}
		c.TLS = &tls.Config{RootCAs: roots}
		s := opened(t, c)
		if err := s.Publish(t.Context(), source.Out{ID: "a"}); err != nil {
			t.Fatal(err)
		}
		receive(t, s, 1)
	})
	t.Run("the password is read again", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "password")
		c := Config{URL: "stomp://retinue@" + addr, PasswordFile: file, Options: source.Options{Queue: "password"}}
		for text, want := range map[string]error{"": source.ErrConfig, "wrong\n": source.ErrAccess} {
			if text != "" {
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Open(t.Context(), c); text != "" && !errors.Is(err, want) {
				t.Errorf("%q: %v", text, err)
			}
		}
		if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		opened(t, c)
	})
}

func TestAddressesAreChecked(t *testing.T) {
	for _, address := range []string{"", "stomp://", "amqp://u:secret@host", "stomp://u:secret@host/vhost", "stomp://u:secret@host?x=1", "stomp://u:secret@[::1", "host:61613"} {
		_, err := Open(t.Context(), Config{URL: address, Options: source.Options{Queue: "q"}})
		if !errors.Is(err, source.ErrConfig) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func opened(t *testing.T, c Config) *Source {
	t.Helper()
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

// receive takes n messages, over times when the broker is away.
func receive(t *testing.T, s *Source, n int) []*source.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all []*source.Message
	for len(all) < n {
		ms, err := s.Receive(ctx, n-len(all))
		if err != nil && !errors.Is(err, source.ErrUnavailable) {
			t.Fatalf("received %d of %d: %v", len(all), n, err)
		}
		all = append(all, ms...)
	}
	return all
}

// secured is a port that takes TLS off what goes to an address.
func secured(t *testing.T, addr string) (string, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", addr)
			if err != nil {
				from.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
				go func() {
					io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				}()
			}
		}
	}()
	return l.Addr().String(), roots
}
