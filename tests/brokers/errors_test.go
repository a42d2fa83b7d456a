package brokers

import (
	"bufio"
	"strings"
	"testing"
)

func TestTerminations(t *testing.T) {
	const log = `2026-11-29 00:12:14.409223+00:00 [error] <0.794.0> ** Generic server <0.794.0> terminating
2026-11-29 00:12:14.409223+00:00 [error] <0.794.0> ** Reason for termination ==
2026-11-29 00:12:14.409223+00:00 [error] <0.794.0> ** {function_clause,
a line ** Reason for termination without a time
2026-11-29 00:12:15.5+00:00 [warning] <0.1.0> ** Reason for termination ==
`
	times, err := terminations(bufio.NewScanner(strings.NewReader(log)))
	if err != nil || len(times) != 1 || times[0].UTC().Format("15:04:05.000000") != "00:12:14.409223" {
		t.Errorf("%v, %v", times, err)
	}
}
