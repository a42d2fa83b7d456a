package partition

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
	"retinue/internal/hint"
)

// VirtualNode carries the sessions of all coordinators: a session must not end with the node of a Consul agent that has nothing to do with
// it.
const VirtualNode = "retinue-coordinators"

// watchWait bounds one blocking query; a watch over a silently dead connection is noticed after that at the latest.
const watchWait = 10 * time.Second

// errGone is the answer to the renewal of a session that is over.
var errGone = errors.New("the session is over")

// record is the value of a key: what people read in Consul's UI, and whether a vacant partition was given back.
type record struct {
	ID         string    `json:"id,omitempty"`    // of a member
	Owner      string    `json:"owner,omitempty"` // of a partition: who holds it, or held it last
	Since      time.Time `json:"since"`
	Clean      bool      `json:"clean"`
	Partitions int       `json:"partitions,omitempty"` // that a member counts
}

// entry is a key as it was seen.
type entry struct {
	session string // that locks it; "": none
	index   uint64 // of its last change
	record  record
}

// snapshot is everything at one moment.
type snapshot struct {
	index   uint64
	members map[string]entry // by ID
	owners  map[int]entry    // by partition
}

// store makes the requests to Consul. It keeps nothing but the names.
type store struct {
	client *consulkit.Client
	clock  clock.Clock
	prefix string // .../partitions/QUEUE/
	id     string
	n      int
	ttl    time.Duration
}

func (s *store) member(id string) string { return s.prefix + "member/" + id }
func (s *store) owner(p int) string      { return fmt.Sprintf("%sowner/%04d", s.prefix, p) }

func (s *store) write(ctx context.Context) (*api.WriteOptions, error) {
	token, err := s.client.Token()
	return (&api.WriteOptions{Token: token}).WithContext(ctx), err
}

func (s *store) query(ctx context.Context) (*api.QueryOptions, error) {
	token, err := s.client.Token()
	return (&api.QueryOptions{Token: token}).WithContext(ctx), err
}

func (s *store) advice(err error) error {
	if consulkit.Denied(err) {
		return hint.Wrap(err, "the Consul token lacks a permission: `retinue acl print coordinator` lists what a coordinator needs")
	}
	return s.client.Advice(err)
}

// watch returns what there is as soon as it differs from what there was at the index after, or after some seconds.
func (s *store) watch(ctx context.Context, after uint64) (snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, watchWait+watchWait/16+2*time.Second)
	defer cancel()
	opts, err := s.query(ctx)
	if err != nil {
		return snapshot{}, err
	}
	opts.WaitIndex, opts.WaitTime = after, watchWait
	pairs, meta, err := s.client.KV().List(s.prefix, opts)
	if err != nil {
		return snapshot{}, s.advice(fmt.Errorf("watch %s: %w", s.prefix, err))
	}
	snap := snapshot{index: meta.LastIndex, members: map[string]entry{}, owners: map[int]entry{}}
	for _, pair := range pairs {
		name := strings.TrimPrefix(pair.Key, s.prefix)
		if id, ok := strings.CutPrefix(name, "member/"); ok {
			snap.members[id] = entryOf(pair)
		} else if number, ok := strings.CutPrefix(name, "owner/"); ok {
			if p, err := strconv.Atoi(number); err == nil && s.owner(p) == pair.Key {
				snap.owners[p] = entryOf(pair)
			}
		}
	}
	return snap, nil
}

// entryOf reads a key. A value that is no record, somebody's edit, says nothing; least of all that a partition was given back.
func entryOf(pair *api.KVPair) entry {
	e := entry{session: pair.Session, index: pair.ModifyIndex}
	if json.Unmarshal(pair.Value, &e.record) != nil {
		e.record = record{}
	}
	return e
}

// open makes a session. first: this process has had none, so that one which its member key names is that of a process that has died.
func (s *store) open(ctx context.Context, first bool) (session string, sent clock.Instant, err error) {
	if first {
		if err := s.bury(ctx); err != nil {
			return "", 0, err
		}
	}
	opts, err := s.write(ctx)
	if err != nil {
		return "", 0, err
	}
	_, err = s.client.Catalog().Register(&api.CatalogRegistration{Node: VirtualNode, Address: "127.0.0.1",
		NodeMeta: map[string]string{"external-node": "true", "external-probe": "false", "retinue": "sessions of coordinators; no agent runs here"}}, opts)
	if err != nil {
		return "", 0, s.advice(fmt.Errorf("register the node of the sessions: %w", err))
	}
	// The API library leaves a LockDelay of 0 out, which means 15 s to the server, and cannot say that there are no checks: the request is
	// written by hand.
	body := map[string]any{"Name": "retinue coordinator " + s.id, "Node": VirtualNode, "TTL": s.ttl.String(), "LockDelay": "0s", "Behavior": api.SessionBehaviorRelease, "NodeChecks": []string{}}
	var out struct{ ID string }
	sent = s.clock.Now()
	if _, err := s.client.Raw().Write("/v1/session/create", body, &out, opts); err != nil {
		return "", 0, s.advice(fmt.Errorf("create a session: %w", err))
	}
	return out.ID, sent, nil
}

// bury ends the session of an earlier process of this coordinator.
func (s *store) bury(ctx context.Context) error {
	opts, err := s.query(ctx)
	if err != nil {
		return err
	}
	opts.RequireConsistent = true
	pair, _, err := s.client.KV().Get(s.member(s.id), opts)
	if err != nil {
		return s.advice(fmt.Errorf("read who was here before: %w", err))
	}
	if pair == nil || pair.Session == "" || entryOf(pair).record.ID != s.id {
		return nil
	}
	return s.destroy(ctx, pair.Session)
}

func (s *store) renew(ctx context.Context, session string) error {
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	_, err = s.client.Raw().Write("/v1/session/renew/"+session, nil, nil, opts)
	var status api.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return errGone
	}
	if err != nil {
		return s.advice(fmt.Errorf("renew the session: %w", err))
	}
	return nil
}

func (s *store) destroy(ctx context.Context, session string) error {
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	if _, err = s.client.Session().Destroy(session, opts); err != nil {
		return s.advice(fmt.Errorf("end a session: %w", err))
	}
	return nil
}

// answer is what became of a transaction that Consul has decided about.
type answer struct {
	done    bool
	index   uint64 // of the last operation's key
	refused string // why not done
}

// gone says that the session of the request is over.
func (a answer) gone() bool { return !a.done && strings.Contains(a.refused, "invalid session") }

// txn carries all of ops out, or none. With an error it is not known which.
func (s *store) txn(ctx context.Context, what string, ops ...*api.KVTxnOp) (answer, error) {
	opts, err := s.query(ctx)
	if err != nil {
		return answer{}, err
	}
	var all api.TxnOps
	for _, op := range ops {
		all = append(all, &api.TxnOp{KV: op})
	}
	ok, resp, _, err := s.client.Txn().Txn(all, opts)
	if err != nil {
		return answer{}, s.advice(fmt.Errorf("%s: %w", what, err))
	}
	if ok {
		a := answer{done: true}
		if n := len(resp.Results); n > 0 && resp.Results[n-1].KV != nil {
			a.index = resp.Results[n-1].KV.ModifyIndex
		}
		return a, nil
	}
	a := answer{refused: "no reason given"}
	for i, e := range resp.Errors {
		if consulkit.Denied(errors.New(e.What)) {
			return answer{}, s.advice(fmt.Errorf("%s: %s", what, e.What))
		}
		if i == 0 || strings.Contains(e.What, "invalid session") { // that the session is over says more
			a.refused = e.What
		}
	}
	return a, nil
}

func value(r record) []byte {
	data, err := json.Marshal(r)
	if err != nil {
		panic("partition: " + err.Error()) // text, a time and a truth value
	}
	return data
}

// join locks this coordinator's member key.
func (s *store) join(ctx context.Context, session string) (answer, error) {
	v := value(record{ID: s.id, Since: time.Now().UTC(), Clean: true, Partitions: s.n})
	return s.txn(ctx, "stand for partitions", &api.KVTxnOp{Verb: api.KVLock, Key: s.member(s.id), Session: session, Value: v})
}

// withdraw removes it.
func (s *store) withdraw(ctx context.Context, session string) (answer, error) {
	key := s.member(s.id)
	return s.txn(ctx, "withdraw", &api.KVTxnOp{Verb: api.KVCheckSession, Key: key, Session: session}, &api.KVTxnOp{Verb: api.KVDelete, Key: key})
}

// take locks a partition that is as it was seen: vacant at this index, or without a key (0). So it is certain what its last holder said.
func (s *store) take(ctx context.Context, session string, p int, index uint64) (answer, error) {
	key := s.owner(p)
	seen := &api.KVTxnOp{Verb: api.KVCheckIndex, Key: key, Index: index}
	if index == 0 {
		seen = &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: key}
	}
	v := value(record{Owner: s.id, Since: time.Now().UTC()})
	return s.txn(ctx, fmt.Sprintf("take partition %d", p), seen, &api.KVTxnOp{Verb: api.KVLock, Key: key, Session: session, Value: v})
}

// give sets a partition free and says that everything of it has ended. The index is that of our lock: a request that is late does not
// free a hold that came after.
func (s *store) give(ctx context.Context, session string, p int, index uint64) (answer, error) {
	key := s.owner(p)
	v := value(record{Owner: s.id, Since: time.Now().UTC(), Clean: true})
	return s.txn(ctx, fmt.Sprintf("give partition %d", p), &api.KVTxnOp{Verb: api.KVCheckIndex, Key: key, Index: index},
		&api.KVTxnOp{Verb: api.KVUnlock, Key: key, Session: session, Value: v})
}

// sweep removes the key of a member that is gone.
func (s *store) sweep(ctx context.Context, id string, index uint64) error {
	_, err := s.txn(ctx, "remove the key of "+id, &api.KVTxnOp{Verb: api.KVDeleteCAS, Key: s.member(id), Index: index})
	return err
}

// close leaves at once. What is still locked is free with the session's end, and not clean.
func (s *store) close(ctx context.Context, session string) error {
	_, err := s.withdraw(ctx, session)
	return errors.Join(err, s.destroy(ctx, session))
}
