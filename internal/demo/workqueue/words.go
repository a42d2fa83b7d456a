package workqueue

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
)

// Step is what the demo worker does by a name: one summary, or one of the three stages that find the most frequent words of a text.
// Nil for a name that is none.
func Step(name string) func(in io.Reader, out io.Writer) error {
	return map[string]func(in io.Reader, out io.Writer) error{"summary": Summarize, "words": Words, "count": Count, "top": Top}[name]
}

// top is how many words Top keeps.
const top = 10

// Words writes the words of a text, a lower-case word a line.
func Words(in io.Reader, out io.Writer) error {
	text, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read the item: %w", err)
	}
	words := strings.FieldsFunc(strings.ToLower(string(text)), func(r rune) bool { return !unicode.IsLetter(r) })
	_, err = io.WriteString(out, strings.Join(words, "\n")+"\n")
	return err
}

// Frequency is a word and how often it occurs.
type Frequency struct {
	Word  string `json:"word"`
	Count int    `json:"count"`
}

// Count writes each different line with how often it occurs, a JSON object a line.
func Count(in io.Reader, out io.Writer) error {
	counts := map[string]int{}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if word := lines.Text(); word != "" {
			counts[word]++
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the item: %w", err)
	}
	var all []Frequency
	for word, n := range counts {
		all = append(all, Frequency{word, n})
	}
	slices.SortFunc(all, byFrequency)
	enc := json.NewEncoder(out)
	for _, f := range all {
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

// Top writes the most frequent of what Count wrote, as one list.
func Top(in io.Reader, out io.Writer) error {
	all := []Frequency{}
	for dec := json.NewDecoder(in); ; {
		var f Frequency
		if err := dec.Decode(&f); err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("read the item: %w", err)
		}
		all = append(all, f)
	}
	slices.SortFunc(all, byFrequency)
	return json.NewEncoder(out).Encode(all[:min(top, len(all))])
}

func byFrequency(a, b Frequency) int {
	return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Word, b.Word))
}
