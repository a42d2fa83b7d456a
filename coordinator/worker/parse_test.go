package worker

import (
	"strings"
	"testing"
	"time"
)

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(`{"verdict":"retry","reason":"x","retry_after":"30s"}`))
	f.Add([]byte(`{"verdict":"dead","retry_after":1e300}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := ParseStatus(data)
		if err == nil && (v.Kind == "" || v.RetryAfter < 0 || v.RetryAfter > maxRetryAfter || len(v.Reason) > maxReason) {
			t.Errorf("%s: %+v", data, v)
		}
	})
}

// A message may be delayed for as long as the broker takes; what is too much for a number is refused and not cut.
func TestDelaysOfMessages(t *testing.T) {
	for text, want := range map[string]time.Duration{`"72h"`: 72 * time.Hour, `172800`: 48 * time.Hour, `"1.5"`: 1500 * time.Millisecond, `null`: 0, `"-1s"`: -1, `"NaN"`: -1, `1e300`: -1, `"soon"`: -1} {
		m, err := ParseNext([]byte(`{"body":"x","delay":` + text + `}`))
		if want < 0 && err == nil || want >= 0 && (err != nil || m.Delay != want) {
			t.Errorf("%s: %v, %v", text, m.Delay, err)
		}
	}
}

func FuzzParseNext(f *testing.F) {
	f.Add([]byte(`{"body":"x","key":"k","priority":3,"delay":"5s"}`))
	f.Add([]byte(`{"file":"a/b","delay":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseNext(data)
		if err == nil && (m.Delay < 0 || m.Priority < 0 || m.Priority > 9) {
			t.Errorf("%s: %+v", data, m)
		}
	})
}

func FuzzParseParts(f *testing.F) {
	f.Add([]byte("--b\r\nContent-Type: image/png\r\nRetinue-Priority: 3\r\nRetinue-Delay: 5s\r\n\r\nPNG\r\n--b--\r\n"), "b")
	f.Add([]byte("--b\n\nx\n--b--"), "b")
	f.Fuzz(func(t *testing.T, data []byte, boundary string) {
		messages, err := ParseParts(data, boundary)
		total := 0
		for _, m := range messages {
			if total += len(m.Body); m.Delay < 0 || m.Priority < 0 || m.Priority > 9 {
				t.Errorf("%q: %+v", data, m)
			}
		}
		if err != nil && messages != nil || total > len(data) {
			t.Errorf("%q: %d messages of %d bytes, and %v", data, len(messages), total, err)
		}
	})
}

func FuzzParseVerdicts(f *testing.F) {
	f.Add(`{"id":"a","verdict":"ack","output":{"n":1},"next":[{"body":"x"}]}` + "\n" + `{"id":"b","verdict":"retry"}`)
	f.Add("{\"id\":\"a\"}\n\n nonsense")
	f.Fuzz(func(t *testing.T, text string) {
		verdicts, _ := ParseVerdicts(strings.NewReader(text)) // those before an error count
		for id, v := range verdicts {
			if id == "" || v.Kind == "" || v.Kind == Ack && v.Output == nil || v.RetryAfter < 0 {
				t.Errorf("%s: %q %+v", text, id, v)
			}
		}
	})
}
