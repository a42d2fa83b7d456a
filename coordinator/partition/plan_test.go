package partition

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// letters gives partitions 0, 1, 2 ... to those named by the letters; . is nobody.
func letters(s string) map[int]string {
	out := map[int]string{}
	for p, r := range s {
		if r != '.' {
			out[p] = string(r)
		}
	}
	return out
}

func spell(m map[int]string, n int) string {
	s := ""
	for p := range n {
		s += cmp.Or(m[p], ".")
	}
	return s
}

func TestPlan(t *testing.T) {
	for _, c := range []struct{ name, members, owners, want string }{
		{"nobody", "", "a.", ".."},
		{"one has all", "a", "........", "aaaaaaaa"},
		{"three from nothing", "abc", "........", "ababcabc"},
		{"nothing moves where it is balanced", "abc", "cbacbabc", "cbacbabc"},
		{"nothing moves where it is balanced, whoever has the larger shares", "abc", "cccbbbaa", "cccbbbaa"},
		{"a second one gets half of it, from the end", "ab", "aaaaaaaa", "aaaabbbb"},
		{"a third one gets the surplus and no more", "abc", "aaaabbbb", "aaacbbbc"},
		{"what the dead had goes to who lacks most", "ab", "aaabbxxx", "aaabbbab"},
		{"who has left keeps nothing", "b", "aabb", "bbbb"},
		{"more members than partitions", "abcd", "d.", "da"},
		{"a vacant one stays with who lacks it", "ab", "aaaa.aaa", "aaaabbbb"},
		{"one twice is one", "aab", "....", "abab"},
	} {
		var members []string
		for _, r := range c.members {
			members = append(members, string(r))
		}
		n := len(c.owners)
		if got := spell(plan(members, letters(c.owners), n), n); got != c.want {
			t.Errorf("%s: members %s of %s: %s, want %s", c.name, c.members, c.owners, got, c.want)
		}
	}
}

// checkPlan holds a plan to all that it promises.
func checkPlan(members []string, owners map[int]string, n int) error {
	got := plan(members, owners, n)
	if len(members) == 0 {
		if len(got) != 0 {
			return fmt.Errorf("a plan without members: %v", got)
		}
		return nil
	}
	if len(got) != n {
		return fmt.Errorf("%d of %d partitions", len(got), n)
	}
	shares, had, kept := map[string]int{}, map[string]int{}, map[string]int{}
	for p := range n {
		if !slices.Contains(members, got[p]) {
			return fmt.Errorf("partition %d goes to %q", p, got[p])
		}
		shares[got[p]]++
		if owners[p] == got[p] {
			kept[got[p]]++
		}
		had[owners[p]]++
	}
	low, high := n/len(members), (n+len(members)-1)/len(members)
	for _, m := range members {
		switch {
		case shares[m] < low || shares[m] > high:
			return fmt.Errorf("%s gets %d of %d among %d", m, shares[m], n, len(members))
		case kept[m] != min(had[m], shares[m]):
			return fmt.Errorf("%s had %d, gets %d, and keeps %d", m, had[m], shares[m], kept[m])
		}
		for _, other := range members {
			if had[m] > had[other] && shares[m] < shares[other] {
				return fmt.Errorf("%s had %d and gets %d, %s had %d and gets %d", m, had[m], shares[m], other, had[other], shares[other])
			}
		}
	}
	shuffled := slices.Clone(members)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	if again := plan(shuffled, owners, n); !maps.Equal(got, again) {
		return fmt.Errorf("another order of members: %v and %v", got, again)
	}
	if again := plan(members, got, n); !maps.Equal(got, again) {
		return fmt.Errorf("carried out, it changes: %v, then %v", got, again)
	}
	return nil
}

func FuzzPlan(f *testing.F) {
	f.Add(uint8(8), uint8(3), []byte{0, 1, 2, 0, 1, 2, 0, 1})
	f.Add(uint8(64), uint8(5), []byte{9, 9, 9})
	f.Add(uint8(1), uint8(7), []byte{})
	f.Fuzz(func(t *testing.T, n, count uint8, held []byte) {
		parts := int(n)%MaxPartitions + 1
		var members []string
		for i := range int(count) % 20 {
			members = append(members, fmt.Sprintf("m%02d", i))
		}
		owners := map[int]string{}
		for p, b := range held {
			if b%4 != 3 { // some are vacant, some of owners who are no members, some beyond what there is
				owners[p] = fmt.Sprintf("m%02d", b%24)
			}
		}
		if err := checkPlan(members, owners, parts); err != nil {
			t.Errorf("%d partitions, members %v, owners %v: %v", parts, members, owners, err)
		}
	})
}

// Step by step, in whatever order coordinators give and take, everything ends where the plan was, and nothing moves twice.
func TestPlanWhileItIsCarriedOut(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		n := 1 + r.IntN(MaxPartitions)
		var members []string
		for i := range 1 + r.IntN(6) {
			members = append(members, fmt.Sprintf("m%d", i))
		}
		owners := map[int]string{}
		for p := range n {
			if o := r.IntN(9); o < 8 {
				owners[p] = fmt.Sprintf("m%d", o) // m6 and m7 are no members
			}
		}
		moves := map[int]int{}
		for step := 0; ; step++ {
			want := plan(members, owners, n)
			var open []int
			for p := range n {
				if owners[p] != want[p] {
					open = append(open, p)
				}
			}
			if len(open) == 0 {
				break
			}
			if step > 3*n {
				t.Fatalf("%d members, %d partitions: no end", len(members), n)
			}
			if p := open[r.IntN(len(open))]; owners[p] != "" {
				delete(owners, p) // given
			} else {
				owners[p] = want[p]
				if moves[p]++; moves[p] > 1 {
					t.Fatalf("partition %d moved twice", p)
				}
			}
		}
	}
}
