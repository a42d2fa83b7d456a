package activemq

import (
	"bufio"
	"errors"
	"net"
	"testing"
	"time"

	"retinue/coordinator/source"
)

// speaker is a broker that reads one frame and says what it is told to, then nothing.
func speaker(t *testing.T, says string) Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			if _, err := readFrame(bufio.NewReader(c)); err == nil {
				c.Write([]byte(says))
			}
		}
	}()
	return Config{URL: "stomp://" + l.Addr().String(), Options: source.Options{Queue: "q", Lease: time.Second}}
}

const connected = "CONNECTED\nversion:1.2\nheart-beat:750,3000\n\n\x00\n"

// A broker that hangs without closing anything is noticed.
func TestSilenceEndsAConnection(t *testing.T) {
	s := opened(t, speaker(t, connected))
	start := time.Now()
	_, err := s.Receive(t.Context(), 1)
	if !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

// A refusal that belongs to no question ends the connection, and its cause is told.
func TestARefusalIsTold(t *testing.T) {
	refusal := "ERROR\nmessage:User retinue is not authorized to read from\\c queue\\c//queue.q.0\n\nat java.lang\n\x00"
	s := opened(t, speaker(t, connected+refusal))
	if _, err := s.Receive(t.Context(), 1); !errors.Is(err, source.ErrAccess) {
		t.Errorf("receive: %v", err)
	}
}

func TestHandshakes(t *testing.T) {
	for says, want := range map[string]error{
		"ERROR\nmessage:User name [retinue] or password is invalid.\n\n\x00":              source.ErrAccess,
		"ERROR\nmessage:Exceeded the maximum number of allowed connections\n\n\x00":       source.ErrUnavailable,
		"CONNECTED\nversion:1.0\n\n\x00":                                                  source.ErrConfig,
		"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n400 Bad Request\x00": source.ErrConfig,
		"AMQP\x00\x00\x09\x01\nx\n\n":                                                     source.ErrConfig,
	} {
		if _, err := Open(t.Context(), speaker(t, says)); !errors.Is(err, want) {
			t.Errorf("%.40q: %v", says, err)
		}
	}
}
