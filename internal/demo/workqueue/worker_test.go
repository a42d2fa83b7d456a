package workqueue

import (
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	for in, want := range map[string]string{
		"":               `{"bytes":0,"lines":0,"words":0,"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`,
		"one  two\nthré": `{"bytes":14,"lines":1,"words":3,"sha256":"`,
	} {
		var out strings.Builder
		if err := Summarize(strings.NewReader(in), &out); err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("%q: %s, %v", in, out.String(), err)
		}
	}
}

func TestStages(t *testing.T) {
	in := strings.NewReader("To be, or not to be: that is the question.")
	var words, counts, best strings.Builder
	if err := Words(in, &words); err != nil {
		t.Fatal(err)
	}
	if err := Count(strings.NewReader(words.String()), &counts); err != nil {
		t.Fatal(err)
	}
	if err := Top(strings.NewReader(counts.String()), &best); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(best.String(), `[{"word":"be","count":2},{"word":"to","count":2},{"word":"is","count":1}`) {
		t.Errorf("%s", best.String())
	}
	if Top(strings.NewReader("{"), &best) == nil {
		t.Error("half an object is no error")
	}
}
