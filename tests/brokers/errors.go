package brokers

import (
	"bufio"
	"os"
	"strings"
	"time"
)

// OwnErrors are the times at which the broker says that a part of it broke by itself, though nobody had done anything to it: of
// RabbitMQ, a process of Erlang that ended with an error.
func (b *Broker) OwnErrors() ([]time.Time, error) {
	if b.Kind != "rabbitmq" {
		return nil, nil
	}
	f, err := os.Open(b.cmd.Log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return terminations(bufio.NewScanner(f))
}

// terminations reads RabbitMQ's log.
func terminations(lines *bufio.Scanner) (times []time.Time, err error) {
	lines.Buffer(make([]byte, 64<<10), 16<<20)
	for lines.Scan() {
		stamp, rest, ok := strings.Cut(lines.Text(), " [error] ")
		if !ok || !strings.Contains(rest, "** Reason for termination") {
			continue
		}
		if at, err := time.Parse("2006-01-02 15:04:05.999999-07:00", stamp); err == nil {
			times = append(times, at)
		}
	}
	return times, lines.Err()
}
