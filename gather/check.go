package gather

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"time"
)

// Finding is one thing that the contract test kit tried.
type Finding struct {
	Subject string `json:"subject"` // leaf or merge
	Check   string `json:"check"`
	Result  string `json:"result"` // pass, fail or info
	Detail  string `json:"detail,omitempty"`
	Advice  string `json:"advice,omitempty"`
}

// The results of a check.
const (
	CheckPass = "pass"
	CheckFail = "fail"
	CheckInfo = "info" // nothing is broken, but it is good to know
)

// checkPatience is how long a container may take for a request of the kit.
const checkPatience = 5 * time.Second

// findings collects what a kit finds out about one subject.
type findings struct {
	subject string
	list    []Finding
}

func (f *findings) add(check, result, detail, advice string) {
	if result == CheckPass {
		advice = ""
	}
	f.list = append(f.list, Finding{f.subject, check, result, detail, advice})
}

// want adds a pass, or a fail with its advice.
func (f *findings) want(ok bool, check, detail, advice string) {
	result := CheckFail
	if ok {
		result = CheckPass
	}
	f.add(check, result, detail, advice)
}

// sameBody compares two answers: as JSON where they are, otherwise as they are.
func sameBody(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// brief shows the beginning of a body.
func brief(b []byte) string {
	if len(b) > 120 {
		return fmt.Sprintf("%.120q... (%d bytes)", b, len(b))
	}
	return fmt.Sprintf("%q", b)
}
