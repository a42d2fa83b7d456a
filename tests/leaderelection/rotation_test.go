package leaderelection_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"

	"retinue/elector"
	"retinue/tests/harness"
)

// keeper is an elector with its token in a file, and an application that renews at it.
type keeper struct {
	*harness.Process
	*harness.ElectorClient
	t       *testing.T
	lease   time.Duration
	cluster *harness.Cluster
	app     string
	file    string
	secrets []string
}

// runKeeper starts an elector with a token of the application's role in a file.
func runKeeper(t *testing.T, app string, lease time.Duration) *keeper {
	t.Helper()
	c := cluster.Get(t)
	if err := elector.Allow(c.Consul, app); err != nil {
		t.Fatal(err)
	}
	dir := harness.Dir(t, "rotate")
	socket := "unix://" + filepath.Join(dir, "elector.sock")
	k := &keeper{t: t, lease: lease, cluster: c, app: app, file: filepath.Join(dir, "token"), ElectorClient: harness.NewElectorClient(socket)}
	k.put(k.mint())
	t.Cleanup(func() { // after the end of the process
		_, _ = c.Consul.KV().DeleteTree("retinue/elections/"+app+"/", nil)
		_, _ = c.Consul.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: elector.VirtualNode, ServiceID: app + ":" + app}, nil)
	})
	k.Process = harness.Start(t, harness.Spec{
		Name: "elector-" + app,
		Path: harness.RetinueBinary(t),
		Args: []string{"elector", "--app", app, "--id", app, "--lease", lease.String(), "--listen", socket, "--log-level", "trace"},
		Env:  []string{"CONSUL_HTTP_ADDR=" + c.ConsulAddr(), "CONSUL_HTTP_TOKEN_FILE=" + k.file, "CONSUL_HTTP_TOKEN="},
	})
	return k
}

func (k *keeper) key() string { return "retinue/elections/" + k.app + "/" + election }

// mint creates a token of the elector's role.
func (k *keeper) mint() (accessor, secret string) {
	k.t.Helper()
	token, _, err := k.cluster.Consul.ACL().TokenCreate(&consulapi.ACLToken{Roles: []*consulapi.ACLLink{{Name: elector.RoleName(k.app)}}}, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	k.secrets = append(k.secrets, token.SecretID)
	return token.AccessorID, token.SecretID
}

// put replaces the file in one step, as Nomad and Consul Template do.
func (k *keeper) put(_, secret string) {
	k.t.Helper()
	if err := os.WriteFile(k.file+".new", []byte(secret+"\n"), 0o600); err != nil {
		k.t.Fatal(err)
	}
	if err := os.Rename(k.file+".new", k.file); err != nil {
		k.t.Fatal(err)
	}
}

// revoke deletes the token with that secret.
func (k *keeper) revoke(secret string) {
	k.t.Helper()
	self, _, err := k.cluster.Consul.ACL().TokenReadSelf(&consulapi.QueryOptions{Token: secret})
	if err == nil {
		_, err = k.cluster.Consul.ACL().TokenDelete(self.AccessorID, nil)
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

// become waits until the elector leads.
func (k *keeper) become() harness.Grant {
	k.t.Helper()
	var g harness.Grant
	harness.Eventually(k.t, 60*time.Second, "the elector leads", func(ctx context.Context) (err error) {
		g, err = k.Become(ctx, election, "app", 10*time.Second)
		return err
	})
	return g
}

// renews renews for a time and returns the first refusal, and when the last grant was asked for.
func (k *keeper) renews(token uint64, during time.Duration) (asked time.Time, err error) {
	k.t.Helper()
	tick := time.NewTicker(k.lease / 20)
	defer tick.Stop()
	asked = time.Now()
	for end := time.Now().Add(during); time.Now().Before(end); <-tick.C {
		now := time.Now()
		g, err := k.Renew(k.t.Context(), election, token)
		if err != nil {
			return asked, err
		}
		if g.Token != token || g.Role != "leader" {
			return asked, fmt.Errorf("the grant says %s with token %d, want %d", g.Role, g.Token, token)
		}
		asked = now
	}
	return asked, nil
}

// silent checks that no secret is in the log.
func (k *keeper) silent() {
	k.t.Helper()
	log := k.Log()
	for i, secret := range k.secrets {
		if strings.Contains(log, secret) || strings.Contains(log, secret[:13]) {
			k.t.Errorf("the text of token %d is in the log:\n%s", i+1, log)
		}
	}
}

// A token that is replaced while the elector leads changes nothing, also when
// the old one is deleted at once.
func TestTokenRotation(t *testing.T) {
	k := runKeeper(t, "rotation", lease)
	g := k.become()
	for range 3 {
		old := k.secrets[len(k.secrets)-1]
		k.put(k.mint())
		k.revoke(old)
		if _, err := k.renews(g.Token, lease); err != nil {
			t.Fatalf("after the rotation: %v\n%s", err, k.Log())
		}
	}
	pair, _, err := k.cluster.Consul.KV().Get(k.key(), nil)
	if err != nil || pair == nil || pair.Session == "" || !strings.Contains(string(pair.Value), fmt.Sprintf(`"token": %d`, g.Token)) {
		t.Errorf("the key after three rotations: %+v, %v", pair, err)
	}
	if strings.Contains(k.Log(), `"suspended"`) {
		t.Errorf("leadership was suspended:\n%s", k.Log())
	}
	k.silent()
}

// An elector whose token is revoked leads no longer than its lease, and says
// why. With a new token it leads again, under a higher fencing token.
func TestTokenRevoked(t *testing.T) {
	const lease = 2 * time.Second
	k := runKeeper(t, "revocation", lease)
	g := k.become()
	if _, err := k.renews(g.Token, lease); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	k.revoke(k.secrets[0])
	revoked := time.Now()
	last, err := k.renews(g.Token, 3*lease)
	refused := time.Since(began)
	var status *harness.StatusError
	if !errors.As(err, &status) || status.Status != http.StatusConflict && status.Status != http.StatusServiceUnavailable {
		t.Fatalf("with a revoked token, for three leases: %v", err)
	}
	t.Logf("its last grant was asked for %v after the revocation, refused %v after it: %v", last.Sub(revoked), refused, err)
	if late := last.Sub(revoked); late > lease {
		t.Errorf("a grant was given %v after the revocation, more than the lease of %v", late, lease)
	}
	if s, err := k.State(t.Context(), election); err != nil || s.Role == "leader" {
		t.Errorf("the elector says %q, %v", s.Role, err)
	}
	log := k.Log()
	for _, words := range []string{"ACL not found", "Permission denied"} {
		if strings.Contains(log, words) {
			log = ""
		}
	}
	if log != "" {
		t.Errorf("the log does not say that Consul refuses the token:\n%s", log)
	}
	if !strings.Contains(k.Log(), `"suspended"`) && !strings.Contains(k.Log(), `"lost"`) {
		t.Errorf("the log does not say that leadership has ended:\n%s", k.Log())
	}

	k.put(k.mint())
	if again := k.become(); again.Token < g.Token {
		t.Errorf("the token falls from %d to %d", g.Token, again.Token)
	} else {
		g = again
	}

	t.Log("again, until the session has expired")
	k.revoke(k.secrets[1])
	harness.Eventually(t, 60*time.Second, "the lock is free", func(context.Context) error {
		if s, err := k.State(t.Context(), election); err != nil || s.Role == "leader" && s.RemainingMS > lease.Milliseconds() {
			t.Errorf("without a token the elector says %+v, %v", s, err)
		}
		pair, _, err := k.cluster.Consul.KV().Get(k.key(), nil)
		if err == nil && pair.Session != "" {
			err = errors.New("it is held")
		}
		return err
	})
	if s, err := k.State(t.Context(), election); err != nil || s.Role == "leader" {
		t.Errorf("after the end of its session the elector says %q, %v", s.Role, err)
	}
	k.put(k.mint())
	harness.Eventually(t, 60*time.Second, "it leads with a higher token", func(ctx context.Context) error {
		again, err := k.Become(ctx, election, "app", lease)
		if err == nil && again.Token <= g.Token {
			err = fmt.Errorf("it leads with token %d, before with %d", again.Token, g.Token)
		}
		return err
	})
	k.silent()
}
