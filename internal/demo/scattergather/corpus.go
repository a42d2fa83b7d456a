package scattergather

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"retinue/internal/demo/artifact"
	"retinue/internal/hint"
)

// Bounds of a corpus: enough to be worth sharding, and indexed in seconds on a small machine.
const (
	minDocuments = 1000
	maxDocuments = 1200
	maxDocument  = 128 << 10 // bytes of a file
)

// corpus is a set of text files below one folder.
type corpus struct {
	folder    string
	documents []string // paths below the folder
}

// document is what counts as text by its name: manual pages, documentation, sources.
var document = regexp.MustCompile(`(^|/)([^/]+\.([1-8][a-z]*|txt|md|html|go)|README|copyright|changelog[^/]*)(\.gz)?$`)

// findCorpus takes the folder it is given, or the first one of this machine that holds enough text.
func findCorpus(ctx context.Context, folder string) (corpus, error) {
	if folder != "" {
		c, err := collect(folder, func(string) bool { return true })
		if err == nil && len(c.documents) < minDocuments {
			err = hint.Wrap(fmt.Errorf("%s has %d text files", folder, len(c.documents)), "the corpus needs %d at least", minDocuments)
		}
		return c, err
	}
	manual := regexp.MustCompile(`^man[2-8]/`)
	candidates := []struct {
		folder string
		wanted func(string) bool
	}{{"/usr/share/man", manual.MatchString}, {"/usr/share/doc", func(string) bool { return true }}}
	for _, candidate := range candidates {
		if c, err := collect(candidate.folder, candidate.wanted); err == nil && len(c.documents) >= minDocuments {
			return c, nil
		}
	}
	// A machine without documentation still has Go, which builds the leaf, and Go comes with its sources.
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err == nil {
		c, err := collect(filepath.Join(strings.TrimSpace(string(out)), "src"), func(string) bool { return true })
		if err == nil && len(c.documents) >= minDocuments {
			return c, nil
		}
	}
	return corpus{}, hint.Wrap(errors.New("there is no corpus on this machine"), "install manual pages (Debian: apt-get install manpages-dev), or name a folder of text files with --corpus")
}

// collect lists the text files of a folder; of too many a fixed selection.
func collect(folder string, wanted func(string) bool) (corpus, error) {
	c := corpus{folder: folder}
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(folder, path)
		if err != nil || !wanted(rel) || !document.MatchString(rel) {
			return err
		}
		if info, err := d.Info(); err == nil && info.Size() > 0 && info.Size() <= maxDocument {
			c.documents = append(c.documents, rel)
		}
		return nil
	})
	if err != nil {
		return corpus{}, fmt.Errorf("read the corpus: %w", err)
	}
	slices.SortFunc(c.documents, func(a, b string) int {
		return cmp.Or(cmp.Compare(hash(a), hash(b)), strings.Compare(a, b))
	})
	c.documents = c.documents[:min(len(c.documents), maxDocuments)]
	slices.Sort(c.documents)
	return c, nil
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

// shardOf is where a document belongs; the leaf and the root's --shard-by compute the same.
func shardOf(document string, shards int) int {
	return int(hash(strings.TrimSuffix(document, ".gz")) % uint64(shards))
}

// copyTo puts the corpus into an empty folder, for the single index over all of it.
func (c corpus) copyTo(folder string) error {
	for _, name := range c.documents {
		data, err := os.ReadFile(filepath.Join(c.folder, name))
		if err != nil {
			return fmt.Errorf("copy the corpus: %w", err)
		}
		dest := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
			return fmt.Errorf("copy the corpus: %w", err)
		}
		if err := os.WriteFile(dest, data, 0o644); err != nil {
			return fmt.Errorf("copy the corpus: %w", err)
		}
	}
	return nil
}

// pack makes the archive of one shard: its documents, and the statistics of all.
func (c corpus) pack(shard, shards int, stats []byte) ([]byte, error) {
	a := artifact.New()
	a.Add("stats.json", 0o644, stats)
	for _, name := range c.documents {
		if shardOf(name, shards) == shard {
			a.AddFile("text/"+name, 0o644, filepath.Join(c.folder, name))
		}
	}
	return a.Bytes()
}
