package main

import (
	"compress/gzip"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"
)

// document is one file of the corpus.
type document struct {
	id    string // path below the corpus, without the .gz
	title string
	text  string
}

// shardOf places a document by its name alone, as the root places a key: FNV-1a, 64 bits.
func shardOf(id string, shards int) int {
	h := fnv.New64a()
	h.Write([]byte(id))
	return int(h.Sum64() % uint64(shards))
}

// walk hands over the documents of one shard in the order of their names, and
// counts those that cannot be read: they are missing in the answers.
func walk(folder string, shard, shards int, take func(document) error) (unreadable int, err error) {
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		id := strings.TrimSuffix(filepath.ToSlash(name), ".gz")
		if shardOf(id, shards) != shard {
			return nil
		}
		text, err := readText(path)
		if err != nil {
			unreadable++
			return nil
		}
		return take(document{id: id, title: title(text, id), text: text})
	})
	return unreadable, err
}

var (
	comment = regexp.MustCompile(`(?m)^[.']\\".*$`)
	request = regexp.MustCompile(`(?m)^[.'][A-Za-z]{1,3}\b[ \t]*`)
	escape  = regexp.MustCompile(`\\(f[BIRP]|f\([A-Z]{2}|&|-|\(..|s[+-]?\d)`)
	name    = regexp.MustCompile(`(?m)^"?NAME"?\s*$\n+(.+)$`)
)

// readText reads a file as text. Manual pages lose their markup.
func readText(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return "", err
		}
	}
	raw, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return "", err
	}
	text := string(raw)
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, " ")
	}
	text = comment.ReplaceAllString(text, "")
	text = request.ReplaceAllString(text, "")
	return escape.ReplaceAllStringFunc(text, func(s string) string {
		if s == `\-` {
			return "-"
		}
		return ""
	}), nil
}

// title is what a manual page says under NAME, or the first line with words.
func title(text, id string) string {
	line := id
	if found := name.FindStringSubmatch(text); found != nil {
		line = found[1]
	} else if fields := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }); len(fields) > 0 {
		line = fields[0]
	}
	if line = strings.TrimSpace(line); len(line) > 120 {
		line = strings.ToValidUTF8(line[:120], "") + "..."
	}
	return line
}
