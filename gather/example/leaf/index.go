package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/analysis/lang/en"
	"github.com/blevesearch/bleve/v2/mapping"
	bleveindex "github.com/blevesearch/bleve_index_api"
)

// index is one shard. Bleve analyses the text and keeps the posting lists; the
// score is computed here, from the statistics of the whole corpus. With those of
// the shard alone, as search libraries take them, the same document would score
// differently in every shard and a merge by score would be wrong.
type index struct {
	bleve      bleve.Index
	mapping    *mapping.IndexMappingImpl
	documents  int
	unreadable int
	stats      stats
}

// stats is what BM25 needs to know of the whole corpus.
type stats struct {
	Documents int            `json:"documents"`
	Terms     int            `json:"terms"`   // length of all documents together
	Holding   map[string]int `json:"holding"` // documents that hold a term; 1 is left out
}

type hit struct {
	ID    string  `json:"id"`
	Score float64 `json:"score"`
	Title string  `json:"title"`
}

func build(corpus, folder string, shard, shards int) (*index, error) {
	text, title := bleve.NewTextFieldMapping(), bleve.NewTextFieldMapping()
	text.Analyzer, text.Store, text.IncludeTermVectors, text.DocValues, text.IncludeInAll = en.AnalyzerName, false, false, false, false
	title.Index, title.Store, title.DocValues, title.IncludeInAll = false, true, false, false
	ix := &index{mapping: bleve.NewIndexMapping()}
	ix.mapping.DefaultMapping.Dynamic = false
	ix.mapping.DefaultMapping.AddFieldMappingsAt("text", text)
	ix.mapping.DefaultMapping.AddFieldMappingsAt("title", title)

	path := filepath.Join(folder, fmt.Sprintf("shard-%d-of-%d", shard, shards))
	if err := os.RemoveAll(path); err != nil { // of an earlier start that may not have ended its work
		return nil, err
	}
	builder, err := bleve.NewBuilder(path, ix.mapping, map[string]interface{}{"buildPathPrefix": folder})
	if err != nil {
		return nil, err
	}
	ix.unreadable, err = walk(corpus, shard, shards, func(d document) error {
		ix.documents++
		return builder.Index(d.id, map[string]any{"text": d.text, "title": d.title})
	})
	if err := errors.Join(err, builder.Close()); err != nil {
		return nil, err
	}
	ix.bleve, err = bleve.OpenUsing(path, map[string]interface{}{"read_only": true})
	return ix, err
}

// global takes the statistics of the whole corpus: from the file, or, when this
// shard is the whole corpus, from the index itself and into the file.
func (ix *index) global(file string, shards int) error {
	if shards > 1 {
		raw, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("%w: `leaf --shards 1 --stats FILE` makes the statistics", err)
		}
		return json.Unmarshal(raw, &ix.stats)
	}
	reader, err := ix.reader()
	if err != nil {
		return err
	}
	defer reader.Close()
	ix.stats = stats{Documents: ix.documents, Holding: map[string]int{}}
	terms, err := reader.FieldDict("text")
	if err != nil {
		return err
	}
	defer terms.Close()
	for {
		term, err := terms.Next()
		if err != nil {
			return err
		}
		if term == nil {
			break
		}
		holding := 0
		err = ix.postings(context.Background(), reader, term.Term, func(p *bleveindex.TermFieldDoc) {
			holding++
			ix.stats.Terms += int(p.Freq)
		})
		if err != nil {
			return err
		}
		if holding > 1 {
			ix.stats.Holding[term.Term] = holding
		}
	}
	if file == "" {
		return nil
	}
	raw, err := json.Marshal(ix.stats)
	if err != nil {
		return err
	}
	return os.WriteFile(file, raw, 0o644)
}

func (ix *index) reader() (bleveindex.IndexReader, error) {
	low, err := ix.bleve.Advanced()
	if err != nil {
		return nil, err
	}
	return low.Reader()
}

// search returns the k best documents of this shard by BM25, the best first.
func (ix *index) search(ctx context.Context, query string, k int) ([]hit, error) {
	reader, err := ix.reader()
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	tokens, err := ix.mapping.AnalyzeText(en.AnalyzerName, []byte(query))
	if err != nil {
		return nil, err
	}
	var terms []string
	for _, token := range tokens {
		terms = append(terms, string(token.Term))
	}
	slices.Sort(terms) // sums of floats depend on their order
	scores := map[uint64]float64{}
	for _, term := range slices.Compact(terms) {
		if err := ix.score(ctx, reader, term, scores); err != nil {
			return nil, err
		}
	}
	hits := make([]hit, 0, len(scores))
	for number, score := range scores {
		id, err := reader.ExternalID(binary.BigEndian.AppendUint64(nil, number))
		if err != nil {
			return nil, err
		}
		hits = append(hits, hit{ID: id, Score: score})
	}
	slices.SortFunc(hits, better)
	hits = hits[:min(k, len(hits))]
	for i := range hits {
		doc, err := reader.Document(hits[i].ID)
		if err != nil {
			return nil, err
		}
		doc.VisitFields(func(f bleveindex.Field) { hits[i].Title = string(f.Value()) })
	}
	return hits, ctx.Err()
}

// better orders hits: by score, and equal ones by name, so that every shard and the merge agree.
func better(a, b hit) int {
	if a.Score != b.Score {
		if a.Score > b.Score {
			return -1
		}
		return 1
	}
	return strings.Compare(a.ID, b.ID)
}

// score adds what one term says of each document that holds it: BM25 with k1 = 1.2 and b = 0.75.
func (ix *index) score(ctx context.Context, reader bleveindex.IndexReader, term string, scores map[uint64]float64) error {
	holding := float64(max(ix.stats.Holding[term], 1))
	rare := math.Log(1 + (float64(ix.stats.Documents)-holding+0.5)/(holding+0.5))
	average := float64(ix.stats.Terms) / float64(ix.stats.Documents)
	return ix.postings(ctx, reader, term, func(p *bleveindex.TermFieldDoc) {
		length := 1 / (p.Norm * p.Norm) // as bleve keeps it
		often := float64(p.Freq)
		scores[binary.BigEndian.Uint64(p.ID)] += rare * often * 2.2 / (often + 1.2*(0.25+0.75*length/average))
	})
}

// postings visits every document of this shard that holds a term, until nobody waits for the answer any more.
func (ix *index) postings(ctx context.Context, reader bleveindex.IndexReader, term string, visit func(*bleveindex.TermFieldDoc)) error {
	list, err := reader.TermFieldReader(ctx, []byte(term), "text", true, true, false)
	if err != nil {
		return err
	}
	defer list.Close()
	var posting bleveindex.TermFieldDoc
	for n := 0; ; n++ {
		next, err := list.Next(posting.Reset())
		if err != nil || next == nil {
			return err
		}
		if n%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		visit(next)
	}
}
