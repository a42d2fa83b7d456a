package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"retinue/internal/hint"
	"retinue/internal/lifecycle"
	"retinue/internal/lifecycle/allocfs"
	"retinue/internal/lifecycle/state"
)

// keeper is where the task's state goes; nil when it saves and restores none.
func (t *task) keeper(s settings) (*state.Keeper, error) {
	if !t.cfg.Has(lifecycle.SaveState) && !t.cfg.Has(lifecycle.RestoreState) {
		return nil, nil
	}
	store, err := t.store(s)
	if err != nil {
		return nil, err
	}
	return &state.Keeper{Store: store, MaxSize: t.cfg.State.MaxSize, Meta: state.Meta{
		AppVersion: t.cfg.State.AppVersion, Job: t.config.JobId, Group: t.config.TaskGroupName, Task: t.name, Alloc: t.alloc,
	}}, nil
}

func (t *task) store(s settings) (state.Store, error) {
	index, err := strconv.Atoi(t.env["NOMAD_ALLOC_INDEX"])
	if err != nil {
		index = 0
	}
	id := state.Identity{Namespace: t.config.Namespace, Job: t.config.JobId, Group: t.config.TaskGroupName, Task: t.name, Index: index}
	switch where := t.cfg.State.Store; {
	case where == "consul-kv":
		config := consulapi.DefaultConfig()
		config.Address, config.Token = s.consul, t.env["CONSUL_HTTP_TOKEN"]
		client, err := consulapi.NewClient(config)
		if err != nil {
			return nil, fmt.Errorf("reach Consul: %w", err)
		}
		return &state.Consul{Client: client, Key: state.ConsulKey(id)}, nil
	case where == "nomad-var":
		client, err := t.nomad()
		if err != nil {
			return nil, err
		}
		return &state.NomadVar{Client: client, Path: state.NomadPath(id)}, nil
	case strings.HasPrefix(where, "dir:"):
		return state.Host(strings.TrimPrefix(where, "dir:"), s.stateDirs, id)
	}
	return state.Alloc(filepath.Join(t.dir, "alloc"), t.name), nil
}

// nomad reaches Nomad as the task itself would: by its socket, with its identity.
func (t *task) nomad() (*nomadapi.Client, error) {
	socket := allocfs.Socket{Dir: t.dir, Name: t.name + "/secrets/api.sock"}
	client, err := nomadapi.NewClient(&nomadapi.Config{
		Address: "http://localhost", Namespace: t.config.Namespace, SecretID: t.token(),
		HttpClient: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return socket.Dial(ctx, "unix") },
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("reach Nomad: %w", err)
	}
	return client, nil
}

// token is the task's workload identity, "" when the job does not ask for one.
func (t *task) token() string {
	// The file is renewed, the variable is that of the start.
	root, err := os.OpenRoot(t.dir)
	if err == nil {
		defer root.Close()
		if raw, err := root.ReadFile(filepath.Join(t.name, "secrets", "nomad_token")); err == nil {
			return strings.TrimSpace(string(raw))
		}
	}
	return t.env["NOMAD_TOKEN"]
}

// noStates stands for a store that cannot be used.
type noStates struct{ err error }

func (n noStates) Load(context.Context) (lifecycle.State, bool, error) {
	return lifecycle.State{}, false, n.err
}
func (n noStates) Save(context.Context, []byte) error   { return n.err }
func (n noStates) Reject(context.Context, string) error { return n.err }

// replicate sets the count of the task's group.
func (t *task) replicate(ctx context.Context, count func(now int) (int, error)) (before, after int, err error) {
	client, err := t.nomad()
	if err != nil {
		return 0, 0, err
	}
	query := (&nomadapi.QueryOptions{}).WithContext(ctx)
	status, _, err := client.Jobs().ScaleStatus(t.config.JobId, query)
	if err != nil {
		return 0, 0, hint.Wrap(fmt.Errorf("ask Nomad for the count of the group: %w", err), "the task needs identity { file = true }, and its job a policy with read-job-scaling and scale-job")
	}
	group, ok := status.TaskGroups[t.config.TaskGroupName]
	if !ok {
		return 0, 0, errors.New("the job has no such group any more")
	}
	before = group.Desired
	if after, err = count(before); err != nil || after == before {
		return before, before, err
	}
	why := fmt.Sprintf("%s asked to be replicated", t.name)
	_, _, err = client.Jobs().Scale(t.config.JobId, t.config.TaskGroupName, &after, why, false, nil, (&nomadapi.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return before, before, hint.Wrap(fmt.Errorf("scale the group: %w", err), "the job's policy needs scale-job")
	}
	return before, after, nil
}
