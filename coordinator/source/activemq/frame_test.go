package activemq

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"
)

func TestFramesArriveAsTheyWereWritten(t *testing.T) {
	for _, f := range []*frame{
		newFrame("SEND", "destination", "/queue/a", "odd", "a:b\\c\r\nd\\n", "empty", "", "a:b", "ü"),
		{command: "MESSAGE", headers: map[string]string{"x": "y"}, body: []byte("\x00\n\r\n\x00")},
		newFrame("CONNECT", "passcode", "a\\b:c"),
		{command: "ACK", headers: map[string]string{"long": strings.Repeat(":", 20<<10)}},
		{command: "MESSAGE", headers: map[string]string{}, body: bytes.Repeat([]byte("b"), 100<<10)},
	} {
		in := append([]byte("\n\r\n\n"), f.append(nil)...)
		r := bufio.NewReader(bytes.NewReader(append(in, "\nRECEIPT\nreceipt-id:1\n\n\x00"...)))
		got, err := readFrame(r)
		if err != nil {
			t.Errorf("%s: %v", f.command, err)
			continue
		}
		delete(got.headers, "content-length")
		if got.command != f.command || !maps.Equal(got.headers, f.headers) || !bytes.Equal(got.body, f.body) {
			t.Errorf("wrote %.200q, read %.200q", f, got)
		}
		if next, err := readFrame(r); err != nil || next.headers["receipt-id"] != "1" {
			t.Errorf("the frame behind %s: %v, %v", f.command, next, err)
		}
	}
}

func TestFramesOfOthers(t *testing.T) {
	for in, want := range map[string]string{
		"MESSAGE\r\na:1\r\na:2\r\n\r\ntext\x00":           "1/text", // the first of a name counts, lines may end in \r\n
		"MESSAGE\na:1\ncontent-length:2\n\nx\x00\x00":     "1/x\x00",
		"ERROR\na:1\nat java.lang.Thread\nb:\\q\n\nb\x00": "1/b", // stacks in headers
		"CONNECTED\na:\\c\n\n\x00":                        "\\c/",
	} {
		f, err := readFrame(bufio.NewReader(strings.NewReader(in)))
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got := f.headers["a"] + "/" + string(f.body); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestBrokenFramesAreRefused(t *testing.T) {
	for in, want := range map[string]error{
		"":                                    io.EOF,
		"\n\n":                                io.EOF,
		"MESSAGE\na:1\n":                      io.ErrUnexpectedEOF,
		"MESSAGE\n\nbody":                     io.ErrUnexpectedEOF,
		"MESSAGE\ncontent-length:9\n\nx\x00":  io.ErrUnexpectedEOF,
		"MESSAGE\ncontent-length:1\n\nxy\x00": errFrame,
		"MESSAGE\ncontent-length:-1\n\n\x00":  errFrame,
		"MESSAGE\ncontent-length:99999999999\n\n\x00": errFrame,
		"MESSAGE\na\n\n\x00":                          errFrame,
		"MESSAGE\na:\\t\n\n\x00":                      errFrame,
		"MESSAGE\na:\\\n\n\x00":                       errFrame,
		"MESSAGE\na:" + strings.Repeat("x", 300<<10):  errFrame,
	} {
		if f, err := readFrame(bufio.NewReader(strings.NewReader(in))); !errors.Is(err, want) {
			t.Errorf("%.40q: %v, %v, want %v", in, f, err, want)
		}
	}
}

// Whatever arrives, the reader ends, and what it accepts is written and read again as the same.
func FuzzFrame(f *testing.F) {
	for _, in := range []string{
		"MESSAGE\nsubscription:1\nack:x\\cy\ncontent-length:3\n\na\x00b\x00", "\n\nRECEIPT\r\nreceipt-id:1\r\n\r\n\x00", "ERROR\nmessage:no\nat x\n\nstack\x00",
		"CONNECTED\nversion:1.2\nheart-beat:0,0\n\n\x00", "MESSAGE\na\\b:\\\\\n\ntext\x00\n",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		for {
			first, err := readFrame(r)
			if err != nil {
				return
			}
			if plain(first.command) || strings.HasSuffix(first.command, "\r") {
				continue // nothing is escaped in them, so not all that is read can be written
			}
			delete(first.headers, "content-length")
			again, err := readFrame(bufio.NewReader(bytes.NewReader(first.append(nil))))
			if err != nil {
				t.Fatalf("%q was read and not read again: %v", first, err)
			}
			delete(again.headers, "content-length")
			if again.command != first.command || !maps.Equal(again.headers, first.headers) || !bytes.Equal(again.body, first.body) {
				t.Fatalf("%q was read again as %q", first, again)
			}
		}
	})
}
