package elector

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"retinue/internal/clock"
	"retinue/internal/consulkit"
)

// ConsulStore keeps elections in Consul: locks in the KV store, the elector's instance on a catalog node of its own.
type ConsulStore struct {
	client *consulkit.Client
	clock  clock.Clock
	app    string
	prefix string // retinue/elections/<app>/
	id     string

	service ServiceRecord
	catalog atomic.Bool // the token may write to the catalog
}

const (
	// kvRoot is above every application's keys.
	kvRoot = "retinue/elections/"
	// candidateFolder is below an application's prefix. No election can have such a name.
	candidateFolder = ".candidates/"
	// watchWait bounds one blocking query; a watch over a silently dead connection is noticed after that at the latest.
	watchWait = 10 * time.Second
)

// Key is the KV key of an election.
func Key(app, election string) string { return kvRoot + app + "/" + election }

// candidateKey is where an elector writes about itself. Each session has a key of its own: that of an elector's last session may be
// locked for as long as that session lives.
func candidateKey(id, session string) string { return candidateFolder + id + "/" + session }

// NewConsulStore returns the store of one elector.
func NewConsulStore(client *consulkit.Client, cfg Config, clk clock.Clock) *ConsulStore {
	return &ConsulStore{client: client, clock: clk, app: cfg.App, prefix: kvRoot + cfg.App + "/", id: cfg.ID, service: serviceRecord(cfg)}
}

func (s *ConsulStore) write(ctx context.Context) (*api.WriteOptions, error) {
	token, err := s.client.Token()
	return (&api.WriteOptions{Token: token}).WithContext(ctx), err
}

func (s *ConsulStore) query(ctx context.Context) (*api.QueryOptions, error) {
	token, err := s.client.Token()
	return (&api.QueryOptions{Token: token}).WithContext(ctx), err
}

// Open implements Store. What the servers refuse is found out by trying: the virtual node first, then the agent's own node; the
// wanted TTL first, then the smallest the servers name.
func (s *ConsulStore) Open(ctx context.Context, spec SessionSpec) (Session, error) {
	warning := ""
	err := s.register(ctx, spec.Name)
	if err != nil && !consulkit.Denied(err) {
		return Session{}, s.client.Advice(fmt.Errorf("register in the catalog: %w", err))
	}
	s.catalog.Store(err == nil)
	node := VirtualNode
	if err != nil {
		node = ""
		warning = "the Consul token may not write to the catalog (node:write on " + VirtualNode + ", service:write on " + s.service.Name +
			"): leadership is in the KV store only, not in the Services view or DNS, and the session ends with the local agent's node"
	}
	ttl := spec.TTL
	session, err := s.create(ctx, spec, node, ttl)
	if lowest, ok := lowestTTL(err); ok && lowest > ttl {
		ttl = lowest
		warning = strings.TrimPrefix(warning+"; ", "; ") + fmt.Sprintf("Consul's servers take no session TTL below %s (session_ttl_min): a leader that dies silently is replaced after up to %s instead of %s",
			ttl, 2*ttl+spec.LockDelay, 2*spec.TTL+spec.LockDelay)
		session, err = s.create(ctx, spec, node, ttl)
	}
	if err != nil {
		return Session{}, s.client.Advice(fmt.Errorf("create a session: %w", err))
	}
	session.TTL, session.Catalog, session.Warning = ttl, s.catalog.Load(), warning
	return session, nil
}

// create makes the session. The API library leaves a LockDelay of 0 out, which means 15 s to the server, and a number below 1000
// means seconds: so the request is written by hand, with durations as text.
func (s *ConsulStore) create(ctx context.Context, spec SessionSpec, node string, ttl time.Duration) (Session, error) {
	opts, err := s.write(ctx)
	if err != nil {
		return Session{}, err
	}
	body := map[string]any{"Name": spec.Name, "TTL": ttl.String(), "LockDelay": spec.LockDelay.String(), "Behavior": api.SessionBehaviorRelease, "NodeChecks": []string{}}
	if node != "" {
		body["Node"] = node
	}
	var out struct{ ID string }
	sent := s.clock.Now()
	if _, err := s.client.Raw().Write("/v1/session/create", body, &out, opts); err != nil {
		return Session{}, err
	}
	if node == "" {
		node = "the local agent's"
	}
	return Session{ID: out.ID, Node: node, Sent: sent}, nil
}

var ttlRange = regexp.MustCompile(`Invalid Session TTL '\d+', must be between \[([0-9a-z.µ]+)=`)

// lowestTTL reads the smallest TTL out of the servers' refusal.
func lowestTTL(err error) (time.Duration, bool) {
	if err == nil {
		return 0, false
	}
	m := ttlRange.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, false
	}
	d, err := time.ParseDuration(m[1])
	return d, err == nil
}

// denied says whether Consul does not take the token.
func denied(err error) bool { return consulkit.Denied(err) }

// Adopt implements Store.
func (s *ConsulStore) Adopt(session Session) { s.catalog.Store(session.Catalog) }

// Renew implements Store.
func (s *ConsulStore) Renew(ctx context.Context, session string) error {
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	_, err = s.client.Raw().Write("/v1/session/renew/"+session, nil, nil, opts)
	var status api.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return errSessionGone
	}
	return err
}

// Commit implements Store.
func (s *ConsulStore) Commit(ctx context.Context, b Batch) (Result, error) {
	ops, owner, keys := s.operations(b)
	if len(ops) == 0 {
		return Result{Applied: true}, nil
	}
	opts, err := s.query(ctx)
	if err != nil {
		return Result{}, err
	}
	ok, resp, _, err := s.client.Txn().Txn(ops, opts)
	if err != nil {
		return Result{}, s.client.Advice(fmt.Errorf("transaction: %w", err))
	}
	if ok {
		return applied(b, ops, owner, keys, resp.Results)
	}
	return s.refused(ctx, b, owner, resp.Errors)
}

// operations translates a batch. owner says which operation of the batch each one serves (-1: the candidate record, -2: the catalog);
// keys says which one carries its key's index.
func (s *ConsulStore) operations(b Batch) (ops api.TxnOps, owner []int, keys map[int]bool) {
	keys = map[int]bool{}
	add := func(i int, op *api.TxnOp, indexed bool) {
		keys[len(ops)] = indexed
		ops, owner = append(ops, op), append(owner, i)
	}
	kv := func(verb api.KVOp, key, session string, value []byte, index uint64) *api.TxnOp {
		return &api.TxnOp{KV: &api.KVTxnOp{Verb: verb, Key: key, Session: session, Value: value, Index: index}}
	}
	for i, op := range b.Ops {
		key := s.prefix + op.Election
		switch op.Verb {
		case VerbLock:
			add(i, asSeen(key, op.KeyIndex), false)
			add(i, kv(api.KVLock, key, b.Session, op.Value, 0), true)
		case VerbUnlock:
			add(i, kv(api.KVCheckIndex, key, "", nil, op.KeyIndex), false)
			add(i, kv(api.KVUnlock, key, b.Session, op.Value, 0), true)
		case VerbTransfer:
			add(i, kv(api.KVCheckIndex, key, "", nil, op.KeyIndex), false)
			add(i, kv(api.KVUnlock, key, b.Session, op.Value, 0), false)
			add(i, kv(api.KVLock, key, op.Successor, op.Value, 0), true)
		case VerbConfirm:
			add(i, kv(api.KVCheckSession, key, b.Session, nil, 0), true)
			add(i, kv(api.KVCheckIndex, key, "", nil, op.KeyIndex), false)
		case VerbUpdate:
			add(i, kv(api.KVCheckIndex, key, "", nil, op.KeyIndex), false) // with the index, the session is ours as well
			add(i, kv(api.KVLock, key, b.Session, op.Value, 0), true)
		}
	}
	if b.Candidate != nil {
		add(-1, kv(api.KVLock, s.prefix+candidateKey(s.id, b.Session), b.Session, b.Candidate, 0), false)
	}
	if b.Leads != nil && s.catalog.Load() {
		add(-2, s.tags(b.Leads), false)
	}
	return ops, owner, keys
}

// asSeen checks that a key is as it was seen: at this index, or not there.
func asSeen(key string, index uint64) *api.TxnOp {
	if index == 0 {
		return &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: key}}
	}
	return &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVCheckIndex, Key: key, Index: index}}
}

func applied(b Batch, ops api.TxnOps, owner []int, keys map[int]bool, results api.TxnResults) (Result, error) {
	r := Result{Applied: true, Keys: make([]KeyIndex, len(b.Ops))}
	next := 0
	for n, op := range ops {
		if op.KV != nil && op.KV.Verb == api.KVCheckNotExists {
			continue // has no result
		}
		if next == len(results) {
			return Result{}, fmt.Errorf("transaction: %d results for %d operations", len(results), len(ops))
		}
		res := results[next]
		next++
		if i := owner[n]; i >= 0 && keys[n] && res.KV != nil {
			r.Keys[i] = KeyIndex{Create: res.KV.CreateIndex, Modify: res.KV.ModifyIndex}
		}
	}
	return r, nil
}

// refused says what stood in the way. A catalog that may not be written any more is left alone from now on.
func (s *ConsulStore) refused(ctx context.Context, b Batch, owner []int, errs api.TxnErrors) (Result, error) {
	r := Result{Failed: map[int]Reason{}}
	for _, e := range errs {
		r.Detail = e.What
		i := -3
		if e.OpIndex < len(owner) {
			i = owner[e.OpIndex]
		}
		switch {
		case i == -2:
			s.catalog.Store(false)
			return s.Commit(ctx, b)
		case i >= 0:
			if have := r.Failed[i]; have == ReasonNone || have == ReasonChanged { // that it is not ours says more
				r.Failed[i] = reasonOf(b.Ops[i].Verb, b.Session, e.What)
			}
		default:
			r.Failed[-1] = reasonOf(VerbLock, b.Session, e.What)
		}
	}
	return r, nil
}

// reasonOf reads Consul's messages, of which there is no other form. (Consul 1.21 and 1.22; the conformance tests hold it to them.)
func reasonOf(verb Verb, session, what string) Reason {
	switch {
	case strings.Contains(what, "invalid session"):
		if verb == VerbTransfer && !strings.Contains(what, session) {
			return ReasonSuccessor
		}
		return ReasonNoSession
	case strings.Contains(what, "lock delay"):
		return ReasonLockDelay
	case strings.Contains(what, "lock is already held"):
		if verb == VerbLock {
			return ReasonHeld
		}
		return ReasonNotHeld
	case strings.Contains(what, "doesn't exist"), strings.HasSuffix(what, " exists"):
		if verb == VerbLock {
			return ReasonChanged
		}
		return ReasonNotHeld
	case strings.Contains(what, "lock isn't held"), strings.Contains(what, "failed session check"):
		return ReasonNotHeld
	case strings.Contains(what, "current modify index"), strings.Contains(what, "failed index check"):
		return ReasonChanged
	}
	return ReasonStoreError
}

// Watch implements Store.
func (s *ConsulStore) Watch(ctx context.Context, after uint64) (Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, watchWait+watchWait/16+2*time.Second)
	defer cancel()
	opts, err := s.query(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	opts.WaitIndex, opts.WaitTime = after, watchWait
	pairs, meta, err := s.client.KV().List(s.prefix, opts)
	if err != nil {
		return Snapshot{}, s.client.Advice(fmt.Errorf("watch %s: %w", s.prefix, err))
	}
	snap := Snapshot{Index: meta.LastIndex, Elections: map[string]Entry{}, Candidates: map[string]Entry{}, Requests: map[string]Entry{}}
	for _, p := range pairs {
		name := strings.TrimPrefix(p.Key, s.prefix)
		if election, ok := strings.CutPrefix(name, requestFolder); ok {
			snap.Requests[election] = entryOf(p)
		} else if strings.HasPrefix(name, candidateFolder) {
			snap.Candidates[name] = entryOf(p)
		} else {
			snap.Elections[name] = entryOf(p)
		}
	}
	return snap, nil
}

// Read implements Store.
func (s *ConsulStore) Read(ctx context.Context, election string) (Entry, error) {
	opts, err := s.query(ctx)
	if err != nil {
		return Entry{}, err
	}
	opts.RequireConsistent = true
	pair, _, err := s.client.KV().Get(s.prefix+election, opts)
	if err != nil {
		return Entry{}, fmt.Errorf("read %s: %w", s.prefix+election, err)
	}
	if pair == nil {
		return Entry{}, nil
	}
	return entryOf(pair), nil
}

func entryOf(p *api.KVPair) Entry {
	return Entry{Session: p.Session, KeyIndex: KeyIndex{Create: p.CreateIndex, Modify: p.ModifyIndex}, Value: p.Value}
}

// Sweep implements Store.
func (s *ConsulStore) Sweep(ctx context.Context, r Remains) error {
	opts, err := s.query(ctx)
	if err != nil {
		return err
	}
	ops := api.TxnOps{{KV: &api.KVTxnOp{Verb: api.KVDeleteCAS, Key: s.prefix + r.Key, Index: r.Index}}}
	if r.Instance != "" && s.catalog.Load() {
		ops = append(ops, &api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceDelete, Node: VirtualNode, Service: api.AgentService{ID: instanceID(s.app, r.Instance), Service: s.service.Name}}})
	}
	ok, resp, _, err := s.client.Txn().Txn(ops, opts)
	if err == nil && !ok {
		err = fmt.Errorf("sweep %s: %s", r.Key, resp.Errors[0].What)
	}
	return err
}

// Close implements Store. The candidate record goes first, so that nobody hands over to an elector that is leaving.
func (s *ConsulStore) Close(ctx context.Context, session string) error {
	opts, err := s.write(ctx)
	if err != nil {
		return err
	}
	key := s.prefix + candidateKey(s.id, session)
	query, err := s.query(ctx)
	if err != nil {
		return err
	}
	_, _, _, txnErr := s.client.Txn().Txn(api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVCheckSession, Key: key, Session: session}},
		{KV: &api.KVTxnOp{Verb: api.KVDelete, Key: key}},
	}, query)
	_, destroyErr := s.client.Session().Destroy(session, opts)
	var deregisterErr error
	if s.catalog.Load() {
		deregisterErr = s.deregister(ctx)
	}
	return errors.Join(txnErr, destroyErr, deregisterErr)
}
