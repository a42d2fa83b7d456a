package main

import (
	"fmt"
	"io"
	"strings"

	"retinue/coordinator/partition"
)

// printPartitions tells who holds the partitions of a queue, as the coordinator that was asked knows it. Where it cannot ask Consul it knows of its
// own alone.
func printPartitions(w io.Writer, v partition.View) {
	const indent = "            "
	var here, vacant, leaving []string
	for _, p := range v.Partitions {
		n := fmt.Sprint(p.Partition)
		if p.Ours {
			here = append(here, n)
		} else if p.Owner == "" {
			vacant = append(vacant, n)
		}
		if p.Ours && p.Leave {
			leaving = append(leaving, n)
		}
	}
	fmt.Fprintf(w, "partitions  %d", len(v.Partitions))
	if v.Connected {
		fmt.Fprintf(w, " over %s", some(len(v.Members), "coordinator"))
	}
	fmt.Fprintf(w, ", %s here", none(len(here)))
	if len(here) > 0 {
		fmt.Fprintf(w, ": %s", strings.Join(here, " "))
	}
	fmt.Fprintln(w)
	if len(leaving) > 0 {
		fmt.Fprintf(w, "%sto go to another: %s\n", indent, strings.Join(leaving, " "))
	}
	if len(vacant) > 0 && v.Connected {
		fmt.Fprintf(w, "%snobody holds: %s\n", indent, strings.Join(vacant, " "))
	}
	switch {
	case !v.Connected && v.Why == "":
		fmt.Fprintf(w, "%snot connected to Consul: those of others are not known\n", indent)
	case !v.Connected:
		fmt.Fprintf(w, "%snot connected to Consul: %s\n", indent, v.Why)
	case v.Why != "":
		fmt.Fprintf(w, "%s%s\n", indent, v.Why)
	}
}

// some counts things.
func some(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// none is a number, with a word for 0.
func none(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}
