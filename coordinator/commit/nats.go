package commit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATS is a KV in a bucket of JetStream; `nats kv` reads it. The bucket is made when it is used first, and a server that is away then is
// asked again at the next use.
type NATS struct {
	Connect  func(ctx context.Context) (*nats.Conn, error)
	Bucket   string
	Replicas int

	mu     sync.Mutex
	js     jetstream.JetStream
	stream jetstream.Stream
}

const hexDigits = "0123456789ABCDEF"

// subject is where a key lies. A bucket takes fewer characters than names of items have, and a dot would part it.
func (n *NATS) subject(key string) string {
	var b strings.Builder
	for i := range len(key) {
		c := key[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '/':
			b.WriteByte(c)
		default:
			b.WriteByte('=')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return "$KV." + n.Bucket + "." + strings.ReplaceAll(b.String(), "/", ".")
}

// key is what a subject was made of.
func (n *NATS) key(subject string) (string, bool) {
	text, ok := strings.CutPrefix(subject, "$KV."+n.Bucket+".")
	if !ok {
		return "", false
	}
	text = strings.ReplaceAll(text, ".", "/")
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '=' {
			b.WriteByte(text[i])
			continue
		}
		if i+2 >= len(text) {
			return "", false
		}
		high, low := strings.IndexByte(hexDigits, text[i+1]), strings.IndexByte(hexDigits, text[i+2])
		if high < 0 || low < 0 {
			return "", false
		}
		b.WriteByte(byte(high<<4 | low))
		i += 2
	}
	return b.String(), true
}

// open connects, and makes the bucket where it is not: a stream as jetstream makes one for a bucket, but whose messages are read from its leader alone. A
// replica that is behind would show too little.
func (n *NATS) open(ctx context.Context) (jetstream.Stream, jetstream.JetStream, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stream != nil {
		return n.stream, n.js, nil
	}
	nc, err := n.Connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	stream, err := js.Stream(ctx, "KV_"+n.Bucket)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "KV_" + n.Bucket, Description: "records of work queues", Subjects: []string{"$KV." + n.Bucket + ".>"},
			Storage: jetstream.FileStorage, Replicas: max(1, n.Replicas), MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, AllowRollup: true})
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // by another one, just now
			stream, err = js.Stream(ctx, "KV_"+n.Bucket)
		}
	}
	if err != nil {
		nc.Close()
		return nil, nil, fmt.Errorf("bucket %s: %w", n.Bucket, err)
	}
	n.stream, n.js = stream, js
	return stream, js, nil
}

// Create implements KV.
func (n *NATS) Create(ctx context.Context, key string, value []byte) ([]byte, error) {
	_, js, err := n.open(ctx)
	if err != nil {
		return nil, err
	}
	_, err = js.PublishMsg(ctx, &nats.Msg{Subject: n.subject(key), Data: value}, jetstream.WithExpectLastSequencePerSubject(0))
	var answer *jetstream.APIError
	if errors.As(err, &answer) && answer.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		current, err := n.Get(ctx, key)
		if err == nil && current == nil {
			err = fmt.Errorf("key %s was deleted while it was read", key)
		}
		return current, err
	}
	return value, err
}

// Get implements KV.
func (n *NATS) Get(ctx context.Context, key string) ([]byte, error) {
	value, _, err := n.get(ctx, key)
	return value, err
}

func (n *NATS) get(ctx context.Context, key string) ([]byte, uint64, error) {
	stream, _, err := n.open(ctx)
	if err != nil {
		return nil, 0, err
	}
	msg, err := stream.GetLastMsgForSubject(ctx, n.subject(key))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return msg.Data, msg.Sequence, nil
}

// Each implements KV.
func (n *NATS) Each(ctx context.Context, prefix string, see func(key string) error) error {
	stream, _, err := n.open(ctx)
	if err != nil {
		return err
	}
	filter := strings.TrimSuffix(n.subject(strings.TrimSuffix(prefix, "/")), ".") + ".>"
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return err
	}
	for subject := range info.State.Subjects {
		if key, ok := n.key(subject); ok {
			if err := see(key); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete implements KV.
func (n *NATS) Delete(ctx context.Context, key string, value []byte) error {
	current, sequence, err := n.get(ctx, key)
	if err != nil || current == nil || !bytes.Equal(current, value) {
		return err
	}
	stream, _, err := n.open(ctx)
	if err != nil {
		return err
	}
	err = stream.DeleteMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) { // somebody else has
		return nil
	}
	return err
}
