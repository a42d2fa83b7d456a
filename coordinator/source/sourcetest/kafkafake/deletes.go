package kafkafake

import (
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// keepEnds leaves the last record of each partition where a client deletes all. kfake knows after a kill -9 where a partition ends by
// its last batch only. One without any began at 0 again, and what was published into it next was before the start of its share
// groups, which take it for finished. Kafka's logs know their end without a record.
func keepEnds(c *kfake.Cluster) {
	c.ControlKey(int16(kmsg.DeleteRecords), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		req := kreq.(*kmsg.DeleteRecordsRequest)
		for _, t := range req.Topics {
			for i := range t.Partitions {
				p := &t.Partitions[i]
				info := c.PartitionInfo(t.Topic, p.Partition)
				if info == nil || info.HighWatermark == 0 {
					continue
				}
				if last := info.HighWatermark - 1; p.Offset == last+1 || p.Offset == -1 {
					p.Offset = last
				}
			}
		}
		return nil, nil, false // kfake does it
	})
}
