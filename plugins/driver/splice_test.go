package driver

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// innerState has the shape of the state of Nomad's drivers.
type innerState struct {
	ReattachConfig map[string]any
	TaskConfig     struct{ ID string }
	Pid            int
	Started        int64
}

// encode is how Nomad's drivers encode their state (plugins/base.MsgPackEncode).
func encode(t testing.TB, v any) []byte {
	t.Helper()
	h := &codec.MsgpackHandle{}
	h.RawToString = true
	var out []byte
	if err := codec.NewEncoderBytes(&out, h).Encode(v); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSpliceIsInvisibleToTheInnerDriver(t *testing.T) {
	in := innerState{ReattachConfig: map[string]any{"Addr": "/tmp/x", "Pid": 7}, Pid: 42, Started: 1 << 40}
	in.TaskConfig.ID = "alloc/task/1"
	plain := encode(t, in)
	for _, value := range []string{"", `{"v":1}`, strings.Repeat("x", 31), strings.Repeat("x", 32), strings.Repeat("x", 1<<16)} {
		spliced, err := splice(plain, []byte(value))
		if err != nil {
			t.Fatal(err)
		}
		h := &codec.MsgpackHandle{}
		h.RawToString = true
		var out innerState
		if err := codec.NewDecoderBytes(spliced, h).Decode(&out); err != nil {
			t.Fatalf("a driver cannot decode state with the key in it: %v", err)
		}
		if out.Pid != in.Pid || out.TaskConfig != in.TaskConfig || out.Started != in.Started {
			t.Fatalf("decoded %+v, want %+v", out, in)
		}
		back, got, err := unsplice(spliced)
		if err != nil || !bytes.Equal(back, plain) || string(got) != value {
			t.Fatalf("value of %d bytes came back as %d bytes, state equal: %v, %v", len(value), len(got), bytes.Equal(back, plain), err)
		}
	}
}

func TestSpliceCountsAcrossHeaderSizes(t *testing.T) {
	for _, n := range []int{0, 1, 14, 15, 16, 65534, 65535, 65536} {
		plain := append(appendMapHeader(nil, uint32(n)), bytes.Repeat([]byte{1, 2}, n)...)
		spliced, err := splice(plain, []byte("v"))
		if err != nil {
			t.Fatalf("%d keys: %v", n, err)
		}
		back, value, err := unsplice(spliced)
		if err != nil || string(value) != "v" {
			t.Fatalf("%d keys: value %q, %v", n, value, err)
		}
		if !bytes.Equal(back, plain) {
			t.Fatalf("%d keys: the inner state changed", n)
		}
	}
}

func TestSpliceOfWhatIsNotAMap(t *testing.T) {
	for _, state := range []string{"\xc0", "x", "\x91\x01", "\x81\x01", "\x81\xa1", "\x80\x00", "\xdf\xff\xff\xff\xff", "\x81\x01\xdd\xff\xff\xff\xff", "\x81\x01\xc6\xff\xff\xff\xff"} {
		if _, err := splice([]byte(state), nil); !errors.Is(err, errNotAMap) {
			t.Errorf("%q: %v, want %v", state, err, errNotAMap)
		}
	}
}

func FuzzSplice(f *testing.F) {
	f.Add(encode(f, innerState{Pid: 1}), []byte("{}"))
	f.Add([]byte{}, []byte("x"))
	f.Add([]byte("\x81\xa1a\xc7\x01\x05x"), []byte("x"))
	f.Add([]byte("\x82\xb0RetinueLifecycle\xa1x\x01\x02"), []byte("y"))
	f.Add(bytes.Repeat([]byte("\x81\x01"), 1000), []byte("x"))
	f.Fuzz(func(t *testing.T, state, value []byte) {
		before, _, err := unsplice(state)
		spliced, err2 := splice(state, value)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("unsplice: %v, splice: %v", err, err2)
		}
		if err != nil {
			return
		}
		after, got, err := unsplice(spliced)
		if err != nil || !bytes.Equal(got, value) {
			t.Fatalf("value %q came back as %q, %v", value, got, err)
		}
		// The header of the map is written anew in its shortest form, so compare what follows.
		if len(before) == 0 {
			before = []byte{0x80}
		}
		n1, at1, _ := mapHeader(before)
		n2, at2, err := mapHeader(after)
		if err != nil || n1 != n2 || !bytes.Equal(before[at1:], after[at2:]) {
			t.Fatalf("state %x became %x, %v", before, after, err)
		}
	})
}
