package activemq

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Bounds of what is read from a broker, which writes nothing larger unless it is broken or is no STOMP broker.
const (
	maxLine    = 256 << 10
	maxHeaders = 2000
	maxContent = 128 << 20
)

// frame is one frame of STOMP 1.2.
type frame struct {
	command string
	headers map[string]string // the first of a name, as the protocol wants it
	body    []byte
}

func newFrame(command string, headers ...string) *frame {
	f := &frame{command: command, headers: make(map[string]string, len(headers)/2+2)}
	for i := 0; i+1 < len(headers); i += 2 {
		f.headers[headers[i]] = headers[i+1]
	}
	return f
}

// plain says that a frame's headers are written as they are: those of the handshake, before both sides know each other.
func plain(command string) bool { return command == "CONNECT" || command == "CONNECTED" }

var escaper = strings.NewReplacer("\\", "\\\\", "\r", "\\r", "\n", "\\n", ":", "\\c")

// append writes the frame behind what is in buf. A body is always sent with its length: it may hold zeros, and ActiveMQ
// takes it for bytes then.
func (f *frame) append(buf []byte) []byte {
	buf = append(append(buf, f.command...), '\n')
	for name, value := range f.headers {
		if name == "content-length" {
			continue
		}
		if !plain(f.command) {
			name, value = escaper.Replace(name), escaper.Replace(value)
		}
		buf = append(append(append(append(buf, name...), ':'), value...), '\n')
	}
	if f.command == "SEND" || len(f.body) > 0 {
		buf = append(strconv.AppendInt(append(buf, "content-length:"...), int64(len(f.body)), 10), '\n')
	}
	return append(append(append(buf, '\n'), f.body...), 0)
}

var errFrame = errors.New("what the broker sends is not STOMP 1.2")

// readFrame reads the next frame; heart-beats before it are skipped.
func readFrame(r *bufio.Reader) (*frame, error) {
	command, err := readLine(r)
	for err == nil && command == "" {
		command, err = readLine(r)
	}
	if err != nil {
		return nil, err
	}
	f := newFrame(command)
	for {
		line, err := readLine(r)
		if err != nil {
			return nil, unexpected(err)
		}
		if line == "" {
			break
		}
		if err := f.header(line); err != nil {
			return nil, err
		}
	}
	if err := f.readBody(r); err != nil {
		return nil, unexpected(err)
	}
	return f, nil
}

// unexpected is the error of a frame that ends in its middle.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readLine reads a line without its end, which is \n or \r\n.
func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if err != bufio.ErrBufferFull {
			return "", err
		}
		if len(line) > maxLine {
			return "", fmt.Errorf("%w: a line of more than %d bytes", errFrame, maxLine)
		}
	}
	return string(bytes.TrimSuffix(line[:len(line)-1], []byte("\r"))), nil
}

func (f *frame) header(line string) error {
	name, value, ok := strings.Cut(line, ":")
	if !ok {
		if f.command == "ERROR" {
			return nil // a stack of Java in a header, which is not always escaped
		}
		return fmt.Errorf("%w: a header without a colon", errFrame)
	}
	if !plain(f.command) {
		// ActiveMQ escapes values alone; a name with a backslash in it is one.
		if n, err := unescape(name); err == nil {
			name = n
		}
		v, err := unescape(value)
		if err != nil && f.command != "ERROR" {
			return err
		}
		if err == nil {
			value = v
		}
	}
	if _, twice := f.headers[name]; twice {
		return nil
	}
	if len(f.headers) == maxHeaders {
		return fmt.Errorf("%w: more than %d headers", errFrame, maxHeaders)
	}
	f.headers[name] = value
	return nil
}

func unescape(s string) (string, error) {
	if !strings.Contains(s, "\\") {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", fmt.Errorf("%w: a header ends in a backslash", errFrame)
		}
		switch s[i] {
		case '\\':
			b.WriteByte('\\')
		case 'r':
			b.WriteByte('\r')
		case 'n':
			b.WriteByte('\n')
		case 'c':
			b.WriteByte(':')
		default:
			return "", fmt.Errorf("%w: \\%c in a header", errFrame, s[i])
		}
	}
	return b.String(), nil
}

func (f *frame) readBody(r *bufio.Reader) error {
	text, ok := f.headers["content-length"]
	if !ok {
		return f.readText(r)
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n > maxContent {
		return fmt.Errorf("%w: a content-length of %.20q", errFrame, text)
	}
	// Memory is taken as bytes arrive, not as they are announced.
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(n)); err != nil {
		return err
	}
	end, err := r.ReadByte()
	if err != nil {
		return err
	}
	if end != 0 {
		return fmt.Errorf("%w: the body is longer than its content-length", errFrame)
	}
	f.body = body.Bytes()
	return nil
}

// readText reads a body whose length nobody told: it ends at the first zero.
func (f *frame) readText(r *bufio.Reader) error {
	for {
		part, err := r.ReadSlice(0)
		f.body = append(f.body, part...)
		if err == nil {
			f.body = f.body[:len(f.body)-1]
			return nil
		}
		if err != bufio.ErrBufferFull {
			return err
		}
		if len(f.body) > maxContent {
			return fmt.Errorf("%w: a body of more than %d bytes", errFrame, maxContent)
		}
	}
}
