package coordinator

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"retinue/coordinator/blob"
	"retinue/internal/hint"
)

// journals is where all journals of Consul lie.
const journals = "retinue/queues/"

var journalName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// journal is the store of the records: Consul, the broker's own, or an object store.
type journal struct {
	store string // consul, broker, s3
	name  string // "" for the one of all who name none
	base  *url.URL
}

const journalHint = "use consul:NAME, broker:NAME (NATS and Redis) or s3://BUCKET/PREFIX, the same for all coordinators of a queue"

func parseJournal(text string) (journal, error) {
	if strings.HasPrefix(text, "s3://") {
		u, err := blob.Parse(text)
		if err != nil {
			return journal{}, hint.Wrap(fmt.Errorf("journal: %w", err), journalHint)
		}
		u.Path = strings.TrimSuffix(u.Path, "/")
		return journal{store: "s3", base: u}, nil
	}
	store, name, named := strings.Cut(text, ":")
	valid := journalName.MatchString(name)
	if store == "broker" {
		valid = len(name) < 64 && queueName.MatchString(name)
	}
	if store != "consul" && store != "broker" || named && !valid {
		return journal{}, hint.Wrap(fmt.Errorf("journal %q", text), journalHint)
	}
	if store == "broker" && !named {
		name = "records"
	}
	return journal{store: store, name: name}, nil
}

// prefix is where in Consul's key-value store the records lie.
func (j journal) prefix() string {
	if j.name == "" {
		return journals
	}
	return journals + j.name + "/"
}

// JournalPrefix is where in Consul's key-value store the records of a journal lie, below it as commit/STAGE/ITEM. "consul" is the journal of
// all who name none, "consul:NAME" one of its own, which a token can be given the right to alone.
func JournalPrefix(text string) (string, error) {
	j, err := parseJournal(text)
	if err == nil && j.store != "consul" {
		err = hint.Wrap(fmt.Errorf("journal %q is not in Consul", text), journalHint)
	}
	if err != nil {
		return "", err
	}
	return j.prefix(), nil
}

// LoadPrefix is where in Consul's key-value store the coordinators and the scalers of a job meet.
func LoadPrefix(load string) (string, error) {
	store, name, _ := strings.Cut(load, ":")
	if store != "consul" || !journalName.MatchString(name) {
		return "", hint.Wrap(fmt.Errorf("load %q", load), "use consul:NAME, the same for the scalers and all coordinators of a job")
	}
	return journals + name + "/", nil
}
