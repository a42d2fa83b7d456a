package gather

import (
	"fmt"
	"strconv"
	"strings"

	"retinue/internal/hint"
)

// MergeKind names a built-in merge, or the container.
type MergeKind string

// The merges.
const (
	MergeContainer MergeKind = "container"
	MergeConcat    MergeKind = "concat-ndjson"
	MergeArray     MergeKind = "json-array"
	MergeSum       MergeKind = "sum"
	MergeTopK      MergeKind = "top-k"
	MergeFirst     MergeKind = "first"
)

// Format is how a merge container gets the leaves' answers.
type Format string

// The formats.
const (
	FormatNDJSON    Format = "ndjson"
	FormatMultipart Format = "multipart"
	FormatBatch     Format = "batch"
)

// MergeSpec says what makes one answer of many.
type MergeSpec struct {
	Kind      MergeKind
	Field     string // of top-k; nested ones with dots
	Limit     int    // of top-k
	Ascending bool   // of top-k
	Format    Format // of the container
	endpoint  endpoint
}

const (
	defaultTopK = 10
	maxTopK     = 100000
)

// ParseMerge reads the name of a built-in merge (concat-ndjson, json-array, sum, first, top-k(FIELD[,LIMIT[,asc]])) or the address
// of a container, with the format it wants.
func ParseMerge(s, format string) (MergeSpec, error) {
	switch f := Format(format); f {
	case FormatNDJSON, FormatMultipart, FormatBatch:
	default:
		return MergeSpec{}, hint.Wrap(fmt.Errorf("format %q", format), "use ndjson, multipart or batch")
	}
	switch kind := MergeKind(s); kind {
	case MergeConcat, MergeArray, MergeSum, MergeFirst:
		return MergeSpec{Kind: kind}, nil
	}
	if args, ok := strings.CutPrefix(s, string(MergeTopK)+"("); ok && strings.HasSuffix(args, ")") {
		return parseTopK(strings.Split(strings.TrimSuffix(args, ")"), ","))
	}
	if !strings.Contains(s, "://") {
		return MergeSpec{}, hint.Wrap(fmt.Errorf("merge %q", s), "use concat-ndjson, json-array, sum, first, top-k(FIELD,LIMIT), http://127.0.0.1:PORT/ or unix:///path/to/socket")
	}
	e, err := parseEndpoint(s)
	if err != nil {
		return MergeSpec{}, err
	}
	return MergeSpec{Kind: MergeContainer, Format: Format(format), endpoint: e}, nil
}

func parseTopK(args []string) (MergeSpec, error) {
	spec := MergeSpec{Kind: MergeTopK, Field: strings.TrimSpace(args[0]), Limit: defaultTopK}
	wrong := hint.Wrap(fmt.Errorf("top-k(%s)", strings.Join(args, ",")), "write top-k(FIELD), top-k(FIELD,LIMIT) or top-k(FIELD,LIMIT,asc)")
	if spec.Field == "" || len(args) > 3 {
		return MergeSpec{}, wrong
	}
	if len(args) > 1 {
		n, err := strconv.Atoi(strings.TrimSpace(args[1]))
		if err != nil || n < 1 || n > maxTopK {
			return MergeSpec{}, wrong
		}
		spec.Limit = n
	}
	if len(args) > 2 {
		if strings.TrimSpace(args[2]) != "asc" {
			return MergeSpec{}, wrong
		}
		spec.Ascending = true
	}
	return spec, nil
}

// String writes m as ParseMerge reads it.
func (m MergeSpec) String() string {
	switch {
	case m.Kind == MergeContainer:
		return m.endpoint.String()
	case m.Kind == MergeTopK && m.Ascending:
		return fmt.Sprintf("top-k(%s,%d,asc)", m.Field, m.Limit)
	case m.Kind == MergeTopK:
		return fmt.Sprintf("top-k(%s,%d)", m.Field, m.Limit)
	}
	return string(m.Kind)
}
