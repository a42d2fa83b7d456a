package devcluster

import (
	"os"
	"path/filepath"
)

// companion is a program that goes where retinue goes: into the image, the chroot of the exec driver and the cluster's bin folder.
type companion struct {
	name    string
	without string // what it is like to be without
}

var companions = []companion{
	{"retinue-broker", "a work queue needs a broker of your own"},
	{"retinue-elector", "an elector takes twice the memory"},
	{"retinue-coordinator", "a work queue has no Kafka and no SQS"},
}

// beside is its path in the folder of a retinue binary; "" when it is not there.
func (c companion) beside(retinueBin string) string {
	path := filepath.Join(filepath.Dir(retinueBin), c.name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// inTask is its path as a task sees it.
func (c companion) inTask() string { return filepath.Join(filepath.Dir(taskBinary), c.name) }
