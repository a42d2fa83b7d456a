package workqueue

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"retinue/internal/hint"
)

// Bounds of a file: what travels in messages, and what is worth a command.
const (
	minFile = 200
	maxFile = 64 << 10
	maxText = 200 << 10 // after gzip -dc
)

// file is an item of the demonstration and what must come out of it.
type file struct {
	path   string
	packed []byte // gzip
	sum    string // SHA-256 of the text, in hex
}

// findFiles reads count files below a folder; "" looks where documentation lies. What is not compressed yet is.
func findFiles(ctx context.Context, folder string, count int) ([]file, error) {
	folders := []string{folder}
	if folder == "" {
		folders = []string{"/usr/share/man", "/usr/share/doc", "/usr/lib/go", "/usr/local/go/src"}
	}
	var files []file
	for _, dir := range folders {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if len(files) == count {
				return fs.SkipAll
			}
			if err != nil || !d.Type().IsRegular() {
				return nil // what cannot be read is no item
			}
			if f, ok := read(path); ok {
				files = append(files, f)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(files) < count {
		return nil, hint.Wrap(fmt.Errorf("only %d of %d files found in %s", len(files), count, strings.Join(folders, ", ")), "name a folder with --corpus, or want less with --files")
	}
	return files, nil
}

func read(path string) (file, bool) {
	info, err := os.Stat(path)
	if err != nil || info.Size() < minFile || info.Size() > maxFile {
		return file{}, false
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return file{}, false
	}
	f := file{path: path, packed: data}
	text := data
	if strings.HasSuffix(path, ".gz") {
		r, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return file{}, false
		}
		if text, err = io.ReadAll(io.LimitReader(r, maxText+1)); err != nil || len(text) > maxText || len(text) == 0 {
			return file{}, false
		}
	} else {
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		_, _ = w.Write(data) // to memory
		_ = w.Close()
		f.packed = buf.Bytes()
	}
	sum := sha256.Sum256(text)
	f.sum = hex.EncodeToString(sum[:])
	return f, true
}
