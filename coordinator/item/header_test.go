package item

import (
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestEnvelope(t *testing.T) {
	at := time.Unix(1e9, 0).UTC()
	e := Envelope{ID: "a", Replay: 2, Fence: 77, ContentType: "text/plain", Headers: map[string]string{"Tenant": "x"}, DeadClass: Crash, DeadReason: "because", Queue: "q",
		Input:   &Reference{URL: "file:///x", Size: 5, SHA256: "00ff"},
		History: []Attempt{{N: 1, Class: Error, Reason: "exit 1", Stderr: "trace\nback", Node: "n", Started: at, Ended: at.Add(time.Second)}}}
	got, err := Open("message", e.Seal("message"))
	if err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := Open("message", nil); err != nil || got.ID != "message" || len(got.History) != 0 {
		t.Errorf("a message of somebody else: %+v, %v", got, err)
	}
	for _, bad := range []map[string]string{{"coordinator-history": "%"}, {"Coordinator-Replay": "-1"}, {"Coordinator-Fence": "x"}, {"Input-Url": "x", "Input-Size": "-3"}, {"Coordinator-Item": ""}} {
		if e, err := Open("m", bad); err == nil || e.ID == "" {
			t.Errorf("%v was read: %+v", bad, e)
		}
	}
}

// However often an item fails and whatever it writes, its history fits into a header and its last attempt is in it.
func TestHistoryFits(t *testing.T) {
	var e Envelope
	for n := 1; n <= 200; n++ {
		e.History = append(e.History, Attempt{N: n, Class: Error, Reason: strings.Repeat("\x00\"é", 500), Stderr: strings.Repeat("\\\n\x01", 3000), Node: "n"})
		h := e.Seal("m")[HeaderHistory]
		if len(h) > maxHistory+100 {
			t.Fatalf("%d attempts take %d bytes", n, len(h))
		}
		history, err := decodeHistory(h)
		if err != nil || len(history) == 0 || history[len(history)-1].N != n {
			t.Fatalf("after %d attempts: %d are left, %v", n, len(history), err)
		}
		e.History = history
	}
}

func FuzzOpen(f *testing.F) {
	f.Add("id", HeaderHistory, "W10", HeaderReplay, "1")
	f.Add("id", HeaderItem, "x", HeaderInputSize, "9")
	f.Fuzz(func(t *testing.T, id, name1, value1, name2, value2 string) {
		e, err := Open(id, map[string]string{name1: value1, name2: value2})
		if err != nil {
			return
		}
		again, err := Open(id, e.Seal(id))
		if err != nil || again.ID != e.ID && e.ID != id || again.Replay != e.Replay || len(again.History) > len(e.History) {
			t.Errorf("%+v becomes %+v, %v", e, again, err)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add("a/b~1")
	f.Fuzz(func(t *testing.T, id string) {
		if s := Short(id); len(s) == 0 || len(s) > maxShort || !plain(s) {
			t.Errorf("Short(%q) = %q", id, s)
		}
		if s := FileName(id); s == "" || len(s) > maxName+2 || strings.ContainsAny(s, "/\x00") || s[0] == '.' {
			t.Errorf("FileName(%q) = %q", id, s)
		}
		if s := Printable(id, 50); len(s) > 50 || !utf8.ValidString(s) || strings.ContainsAny(s, "\n\r\x00") {
			t.Errorf("Printable(%q) = %q", id, s)
		}
	})
}
