// Package workqueue demonstrates the work queue pattern: thousands of files
// through a pipeline of unmodified command-line tools, while workers,
// coordinators and the broker are killed. See coordinator/README.md for the
// promises that it checks.
package workqueue

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"unicode"
)

// Summary is what the demo worker says of a file.
type Summary struct {
	Bytes  int64  `json:"bytes"`
	Lines  int64  `json:"lines"`
	Words  int64  `json:"words"`
	SHA256 string `json:"sha256"`
}

// Summarize is the worker that the job specification runs when it is given
// none: it reads an item and writes a summary of it as JSON.
func Summarize(in io.Reader, out io.Writer) error {
	sum := sha256.New()
	r := bufio.NewReader(io.TeeReader(in, sum))
	var s Summary
	for inWord := false; ; {
		c, size, err := r.ReadRune()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the item: %w", err)
		}
		s.Bytes += int64(size)
		if c == '\n' {
			s.Lines++
		}
		space := unicode.IsSpace(c)
		if !space && !inWord {
			s.Words++
		}
		inWord = !space
	}
	s.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return json.NewEncoder(out).Encode(s)
}
