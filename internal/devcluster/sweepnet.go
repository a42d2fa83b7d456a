package devcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where Nomad's bridge mode keeps its state outside the cluster's folder.
const (
	netnsDir   = "/var/run/netns"
	cniIPs     = "/var/run/cni/nomad"
	cniResults = "/var/lib/cni/results"
)

// removeNetworks removes what bridge mode made for the cluster: network
// namespaces, addresses, firewall rules, bridges.
func removeNetworks(ctx context.Context, dir string, allocs []string, p *Plan) error {
	bridges := bridgesOf(dir)
	var subnets []string
	for _, name := range bridges {
		if s := subnetOf(name); s != "" {
			subnets = append(subnets, s)
		}
	}
	if p != nil {
		for _, n := range p.clients() {
			if n.Bridge != nil {
				subnets = append(subnets, strings.TrimSuffix(n.Bridge.Subnet.String(), "0/24"))
			}
		}
	}
	slices.Sort(subnets)
	subnets = slices.Compact(subnets)
	errs := []error{removeNamespaces(allocs)}
	if len(subnets) > 0 {
		errs = append(errs, removeRules(ctx, subnets, bridges), removeCNIState(subnets))
	}
	for _, name := range bridges {
		errs = append(errs, removeBridge(name))
	}
	return errors.Join(errs...)
}

// subnetOf is the beginning of a bridge's addresses, "10.200.1.", by its name.
func subnetOf(bridge string) string {
	var slot, client int
	if _, err := fmt.Sscanf(bridge, "retinue%d-%d", &slot, &client); err != nil {
		return ""
	}
	return fmt.Sprintf("10.%d.%d.", bridgeBase+slot, client)
}

func removeNamespaces(allocs []string) error {
	var errs []error
	for _, id := range allocs {
		path := filepath.Join(netnsDir, id)
		if !exists(path) {
			continue
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeCNIState removes the address files of the subnets, and the results that
// name one of those addresses.
func removeCNIState(subnets []string) error {
	var errs []error
	entries, err := os.ReadDir(cniIPs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, e := range entries {
		if hasPrefixOf(e.Name(), subnets) {
			errs = append(errs, os.Remove(filepath.Join(cniIPs, e.Name())))
		}
	}
	errs = append(errs, removeLastReserved(subnets))
	entries, err = os.ReadDir(cniResults)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "nomad-") {
			continue
		}
		name := filepath.Join(cniResults, e.Name())
		raw, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for _, s := range subnets {
			if strings.Contains(string(raw), `"`+s) {
				errs = append(errs, os.Remove(name))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// removeLastReserved removes the plugin's note of the last address it gave, and
// the folder, when no address of anybody is left.
func removeLastReserved(subnets []string) error {
	entries, err := os.ReadDir(cniIPs)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip.") {
			return nil
		}
	}
	raw, err := os.ReadFile(filepath.Join(cniIPs, "last_reserved_ip.0"))
	if err != nil || !hasPrefixOf(string(raw), subnets) {
		return nil
	}
	return os.RemoveAll(cniIPs)
}

func hasPrefixOf(s string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// removeRules takes the cluster's rules out of iptables: those of a chain that
// is one allocation's (CNI-...), known by its addresses, and those for its
// bridges.
func removeRules(ctx context.Context, subnets, bridges []string) error {
	iptables, err := findIPTables()
	if err != nil {
		return nil // without it there was no bridge mode
	}
	var errs []error
	for _, table := range []string{"nat", "filter"} {
		errs = append(errs, removeTableRules(ctx, iptables, table, subnets, bridges))
	}
	return errors.Join(errs...)
}

// removeTableRules goes by what is there, until nothing is to be removed: the
// chains that all clusters share may be taken away, or made anew, by another
// cluster at the same time.
func removeTableRules(ctx context.Context, iptables, table string, subnets, bridges []string) error {
	var failed error
	for range 5 {
		listing, err := runIPTables(ctx, iptables, table, "-S")
		if err != nil {
			return err
		}
		failed = nil
		for _, args := range rulesToRemove(listing, subnets, bridges) {
			_, err := runIPTables(ctx, iptables, table, args...)
			failed = errors.Join(failed, err)
		}
		if failed == nil {
			return nil
		}
	}
	return failed
}

func runIPTables(ctx context.Context, iptables, table string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	args = append([]string{"-w", "5", "-t", table}, args...)
	out, err := exec.CommandContext(ctx, iptables, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// rulesToRemove reads `iptables -S` and returns the commands that remove what is
// the cluster's: first the rules, then the chains that were only for them, and
// then the plugins' common chains when nobody uses them any more (the plugins
// make them again when they need them).
func rulesToRemove(listing string, subnets, bridges []string) [][]string {
	var rules []rule
	var chains []string
	for line := range strings.Lines(listing) {
		words := splitRule(strings.TrimSpace(line))
		switch {
		case len(words) == 2 && words[0] == "-N":
			chains = append(chains, words[1])
		case len(words) > 2 && words[0] == "-A":
			rules = append(rules, rule{chain: words[1], words: words[2:]})
		}
	}
	// A chain of ours is CNI's and has a rule with one of our addresses.
	ours := map[string]bool{}
	for _, r := range rules {
		if isAllocChain(r.chain) && r.mentions(subnets, bridges) {
			ours[r.chain] = true
		}
	}
	var commands [][]string
	left := map[string][]rule{}
	for _, r := range rules {
		switch {
		case ours[r.chain]: // flushed as a whole
		case ours[r.target()] || r.mentions(subnets, bridges):
			commands = append(commands, append([]string{"-D", r.chain}, r.words...))
		default:
			left[r.chain] = append(left[r.chain], r)
		}
	}
	for _, c := range chains {
		if ours[c] {
			commands = append(commands, []string{"-F", c}, []string{"-X", c})
		}
	}
	return append(commands, commonChains(chains, left)...)
}

// commonChains returns the commands that remove the plugins' shared chains when
// the chain with users' rules has none left.
func commonChains(chains []string, left map[string][]rule) [][]string {
	var commands [][]string
	for _, set := range []struct{ users, jumps []string }{
		{users: []string{"CNI-HOSTPORT-DNAT"}, jumps: []string{"CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"}},
		{users: []string{"CNI-FORWARD", "NOMAD-ADMIN"}, jumps: []string{"CNI-FORWARD", "NOMAD-ADMIN"}},
	} {
		used := false
		for _, c := range set.users {
			for _, r := range left[c] {
				if r.target() != "NOMAD-ADMIN" { // the jump from one to the other
					used = true
				}
			}
		}
		if used || !slices.Contains(chains, set.users[0]) {
			continue
		}
		for _, chain := range slices.Sorted(maps.Keys(left)) {
			for _, r := range left[chain] {
				if slices.Contains(set.jumps, r.target()) && !slices.Contains(set.jumps, chain) {
					commands = append(commands, append([]string{"-D", chain}, r.words...))
				}
			}
		}
		for _, verb := range []string{"-F", "-X"} {
			for _, c := range set.jumps {
				if slices.Contains(chains, c) {
					commands = append(commands, []string{verb, c})
				}
			}
		}
	}
	return commands
}

type rule struct {
	chain string
	words []string
}

func (r rule) target() string {
	for i, w := range r.words {
		if (w == "-j" || w == "-g") && i+1 < len(r.words) {
			return r.words[i+1]
		}
	}
	return ""
}

func (r rule) mentions(subnets, bridges []string) bool {
	for _, w := range r.words {
		if slices.Contains(bridges, w) || hasPrefixOf(w, subnets) {
			return true
		}
	}
	return false
}

// isAllocChain tells CNI-<24 hex digits> and CNI-DN-<21 hex digits> from the
// plugins' common chains.
func isAllocChain(name string) bool {
	rest, ok := strings.CutPrefix(name, "CNI-")
	if !ok {
		return false
	}
	rest = strings.TrimPrefix(rest, "DN-")
	return len(rest) >= 16 && strings.Trim(rest, "0123456789abcdef") == ""
}

// splitRule splits a line of `iptables -S`, which quotes comments.
func splitRule(line string) []string {
	var words []string
	var word strings.Builder
	quoted, started := false, false
	for i := 0; i < len(line); i++ {
		switch ch := line[i]; {
		case ch == '\\' && quoted && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case ch == '"':
			quoted, started = !quoted, true
		case ch == ' ' && !quoted:
			if started {
				words = append(words, word.String())
				word.Reset()
			}
			started = false
		default:
			word.WriteByte(ch)
			started = true
		}
	}
	if started {
		words = append(words, word.String())
	}
	return words
}
