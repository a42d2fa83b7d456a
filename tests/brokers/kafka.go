package brokers

import (
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"retinue/coordinator/source/sourcetest/kafkafake"
)

// kafkaRole is the environment variable that makes the program a broker: port and folder.
const kafkaRole = "RETINUE_BROKERS_KAFKA"

// Main runs this program as the broker that kinds kafka and kafka-share are, when it was started as that, and does not return then. Programs that
// start one call it first.
func Main() {
	role := os.Getenv(kafkaRole)
	if role == "" {
		return
	}
	var port int
	var dir string
	if _, err := fmt.Sscan(role, &port, &dir); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(2)
	}
	// Locks of share groups are as short as the leases of the campaigns, not the 15 s that Kafka wants at least.
	config := map[string]string{"group.share.record.lock.duration.ms": "3000", "share.record.lock.sweep.interval.ms": "200"}
	_, err := kafkafake.NewCluster(dir, kfake.Ports(port), kfake.GroupMinSessionTimeout(time.Second), kfake.BrokerConfigs(config), kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelWarn)))
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	select {}
}
