package partition

import (
	"cmp"
	"slices"
)

// plan says which member shall hold which of n partitions, from who holds which now. All who see the same members and owners come to the
// same plan. With no members it is empty.
//
//   - No member has more than one partition more than another. The larger shares go to those who hold most, and of equals to the first by name.
//   - A member keeps what it holds, up to its share; the partitions with the lowest numbers.
//   - What is left, vacant ones and those of owners who are no members among it, goes to who lacks most, and of equals to the first by name.
func plan(members []string, owners map[int]string, n int) map[int]string {
	out := make(map[int]string, n)
	if len(members) == 0 {
		return out
	}
	holds := make(map[string]int, len(members))
	for _, m := range members {
		holds[m] = 0
	}
	for p, owner := range owners {
		if _, member := holds[owner]; member && p >= 0 && p < n {
			holds[owner]++
		}
	}
	order := make([]string, 0, len(holds)) // a name that comes twice is one member
	for m := range holds {
		order = append(order, m)
	}
	slices.SortFunc(order, func(a, b string) int {
		return cmp.Or(cmp.Compare(holds[b], holds[a]), cmp.Compare(a, b))
	})
	lacks := make(map[string]int, len(order))
	for i, m := range order {
		lacks[m] = n / len(order)
		if i < n%len(order) {
			lacks[m]++
		}
	}
	for p := range n {
		if owner := owners[p]; lacks[owner] > 0 { // 0 for who is no member
			out[p] = owner
			lacks[owner]--
		}
	}
	slices.Sort(order)
	for p := range n {
		if out[p] != "" {
			continue
		}
		next := slices.MaxFunc(order, func(a, b string) int { return cmp.Compare(lacks[a], lacks[b]) }) // the first of equals
		out[p] = next
		lacks[next]--
	}
	return out
}
