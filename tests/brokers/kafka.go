package brokers

import (
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// kafkaRole is the environment variable that makes the program a broker: port and folder.
const kafkaRole = "RETINUE_BROKERS_KAFKA"

// Main runs this program as the broker that kind kafka is, when it was started as that, and does not return then. Programs that
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
	_, err := kfake.NewCluster(kfake.Ports(port), kfake.DataDir(dir), kfake.SyncWrites(), kfake.GroupMinSessionTimeout(time.Second), kfake.WithLogger(kfake.BasicLogger(os.Stderr, kfake.LogLevelWarn)))
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	select {}
}
