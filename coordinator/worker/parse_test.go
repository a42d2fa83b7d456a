package worker

import (
	"strings"
	"testing"
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
