package coordinator

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"retinue/coordinator/blob"
	"retinue/internal/hint"
)

// allowed are the folders, and the addresses, that inputs by reference may lie below.
func (s Settings) allowed() (dirs []string, prefixes []string) {
	for _, a := range s.Input.Allow {
		if strings.Contains(a, "://") {
			prefixes = append(prefixes, a)
		} else {
			dirs = append(dirs, a)
		}
	}
	return dirs, prefixes
}

// checkInput says what is wrong with inputs by reference.
func (s Settings) checkInput() error {
	_, prefixes := s.allowed()
	for _, p := range prefixes {
		if _, err := blob.ParsePrefix(p); err != nil {
			return fmt.Errorf("input allow: %w", err)
		}
	}
	p := &reader{}
	size := p.size("cache_size", s.Input.CacheSize)
	switch {
	case p.err != nil:
		return p.err
	case len(prefixes) > 0 && size == 0:
		return hint.Wrap(errors.New("inputs come from elsewhere and cache_size is 0"), "it bounds what is kept of them on this disk; the largest input must fit")
	case len(prefixes) > 0 && s.Input.Cache == "" && s.Worker.Work == "":
		return hint.Wrap(errors.New("inputs come from elsewhere and there is no folder for them"), "give --cache FOLDER, or --work FOLDER, in which it is cache/")
	}
	return nil
}

// checkOutput says what is wrong with where outputs go.
func (s Settings) checkOutput() error {
	if s.Output.Commit == CommitJournal {
		if _, err := parseJournal(s.Output.Journal); err != nil {
			return err
		}
	}
	if s.Output.Gather != "" && s.Output.Commit != CommitRename && s.Output.Commit != CommitJournal {
		return hint.Wrap(fmt.Errorf("gather with commit %s", s.Output.Commit), "the parts of a group are kept at the commit point; use commit rename or journal")
	}
	if s.Output.Keep != "" && s.Output.Commit != CommitRename && s.Output.Commit != CommitJournal {
		return hint.Wrap(fmt.Errorf("keep with commit %s", s.Output.Commit), "there are no records to keep; use commit rename or journal")
	}
	if s.Output.Artifacts != "" {
		if _, err := artifactsBase(s.Output.Artifacts); err != nil {
			return err
		}
		if s.Output.Commit != CommitJournal {
			return hint.Wrap(fmt.Errorf("artifacts with commit %s", s.Output.Commit), "use --commit journal: the record of an item says which upload counts")
		}
	}
	return nil
}

func artifactsBase(address string) (*url.URL, error) {
	u, err := blob.Parse(address)
	if err == nil && u.Scheme != "s3" {
		err = fmt.Errorf("artifacts %s: outputs go to s3://BUCKET/PREFIX", blob.Plain(u))
	}
	if err != nil {
		return nil, hint.Wrap(err, "write artifacts = \"s3://BUCKET/PREFIX\"; AWS_ENDPOINT_URL names a store that is not AWS")
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	return u, nil
}

// keep reads "7d", or a duration; "" is for ever.
func (p *reader) keep(text string) time.Duration {
	if text == "" {
		return 0
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err == nil && n > 0 && n < 36500 {
			return time.Duration(n * float64(24*time.Hour))
		}
	} else if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return d
	}
	p.fail(hint.Wrap(fmt.Errorf("keep %q is not a time", text), "write it like 7d or 36h; leave it out to keep them for ever"))
	return 0
}

// size reads "512MiB"; "" is 0.
func (p *reader) size(name, text string) int64 {
	if text == "" {
		return 0
	}
	digits := strings.TrimRight(text, "BGKMTi")
	unit, known := map[string]float64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[text[len(digits):]]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !known || !(n >= 0) || n*unit > 1<<60 {
		p.fail(hint.Wrap(fmt.Errorf("%s %q is not a size", name, text), "write it like 512MiB or 20GiB"))
		return 0
	}
	return int64(n * unit)
}
