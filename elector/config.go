package elector

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"retinue/internal/hint"
)

// Revocation says what an invalidated session means for the next leader.
type Revocation string

const (
	// Safe: after an invalidation (expiry, an operator's button) nobody may lead for one lease. Leases never overlap.
	Safe Revocation = "safe"
	// Fast: the next leader may start at once. Expiry is still safe; an operator's invalidation overlaps by up to one lease.
	Fast Revocation = "fast"
)

// Config describes one elector.
type Config struct {
	// App is the application whose replicas compete: the KV prefix is retinue/elections/<App>/.
	App string
	// Elections are the names one can lead. A name may contain slashes.
	Elections []string
	// ID names this elector among those of App: "<alloc8>@<host>".
	ID string
	// Alloc and Host are shown to people.
	Alloc, Host string
	// Address is told to followers and put into DNS, host:port.
	Address string
	// Meta is shown with the instance in the Consul UI.
	Meta map[string]string
	// Lease is how long an application may act after its last confirmation, 500 ms to 60 s.
	Lease time.Duration
	// Revocation is Safe or Fast.
	Revocation Revocation
}

const (
	minLease = 500 * time.Millisecond
	maxLease = 60 * time.Second // the longest lock-delay Consul knows
)

var (
	appName      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	electorID    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9@._-]{0,127}$`)
	electionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$`)
)

// Validate says what is wrong with c.
func (c Config) Validate() error {
	if !appName.MatchString(c.App) {
		return hint.Wrap(fmt.Errorf("application name %q", c.App), "use 1 to 63 letters, digits, - or _: it becomes part of a DNS name")
	}
	if !electorID.MatchString(c.ID) {
		return hint.Wrap(fmt.Errorf("elector name %q", c.ID), "use letters, digits and @ . _ -, 128 at most; the default is ALLOC@HOST")
	}
	if len(c.Elections) == 0 {
		return fmt.Errorf("no election named")
	}
	seen := map[string]bool{}
	for _, e := range c.Elections {
		if !electionName.MatchString(e) || strings.Contains(e, "//") || strings.HasSuffix(e, "/") || strings.Contains(e, "..") {
			return hint.Wrap(fmt.Errorf("election name %q", e), "start with a letter or digit; letters, digits, - _ . and single slashes may follow, 128 in all")
		}
		if seen[e] {
			return fmt.Errorf("election %q is named twice", e)
		}
		seen[e] = true
	}
	if c.Lease < minLease || c.Lease > maxLease {
		return hint.Wrap(fmt.Errorf("lease %s is not between %s and %s", c.Lease, minLease, maxLease), "10s suits most clusters; Consul's session_ttl_min must allow it")
	}
	if c.Revocation != Safe && c.Revocation != Fast {
		return hint.Wrap(fmt.Errorf("revocation %q", c.Revocation), "use safe or fast")
	}
	return nil
}

// guard is what is taken off a lease for the error of two clocks' rates (1 %) and of the scheduler.
func (c Config) guard() time.Duration { return c.Lease/100 + 50*time.Millisecond }

// linger is how long an elector that could leave its leaders to its next process waits for one of them to end.
func (c Config) linger() time.Duration { return min(c.Lease/4, 500*time.Millisecond) }

func (c Config) lockDelay() time.Duration {
	if c.Revocation == Fast {
		return 0
	}
	return c.Lease
}

// Profile is what Consul lets an elector have, best first.
type Profile string

// The profiles. KVOnly goes before MinimumTTL where both hold: the session's TTL is told beside it.
const (
	LeaseTTL   Profile = "lease_ttl"   // a session as long as the lease, on a catalog node of its own
	MinimumTTL Profile = "minimum_ttl" // the servers insist on a longer one
	KVOnly     Profile = "kv_only"     // no right to the catalog: the session lives and ends with the local agent's node
)

func (c Config) profile(s Session) Profile {
	switch {
	case !s.Catalog:
		return KVOnly
	case s.TTL > c.Lease:
		return MinimumTTL
	}
	return LeaseTTL
}

// worstFailover is the longest time from a leader's silent death until another may lead.
func (c Config) worstFailover(ttl time.Duration) time.Duration { return 2*ttl + c.lockDelay() }
