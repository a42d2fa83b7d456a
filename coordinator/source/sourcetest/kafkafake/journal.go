package kafkafake

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// line is one of a journal.
type line struct {
	Topic string   `json:"topic,omitempty"` // its name, where Group is empty
	ID    [16]byte `json:"id"`              // of the topic

	Group  string `json:"group,omitempty"`
	Config string `json:"config,omitempty"` // of the group
	Value  string `json:"value,omitempty"`

	Partition int32 `json:"partition"`
	First     int64 `json:"first"`
	Last      int64 `json:"last"`
	Count     int32 `json:"count,omitempty"` // deliveries; 0: finished
}

// share is what a group has done with one partition.
type share struct {
	group     string
	topic     [16]byte
	partition int32
}

type progress struct {
	start    int64 // all before are finished
	finished map[int64]bool
	counts   map[int64]int32
}

// journal knows what share groups have finished.
type journal struct {
	mu      sync.Mutex
	file    *os.File
	names   map[[16]byte]string
	configs map[string]map[string]string
	shares  map[share]*progress
}

// openJournal reads what an earlier run left in a folder, and leaves it for kfake to read.
func openJournal(dir string) (*journal, error) {
	j := &journal{names: map[[16]byte]string{}, configs: map[string]map[string]string{}, shares: map[share]*progress{}}
	path := filepath.Join(dir, "share.journal")
	if file, err := os.Open(path); err == nil {
		for scan := bufio.NewScanner(file); scan.Scan(); {
			var l line
			if json.Unmarshal(scan.Bytes(), &l) != nil {
				break // the kill hit it, so nobody was answered
			}
			j.apply(l)
		}
		file.Close()
	}
	// What is known is written anew: a half line at the end would spoil the next one.
	whole := path + ".new"
	file, err := os.Create(whole)
	if err != nil {
		return nil, err
	}
	for _, l := range j.sum() {
		if _, err := file.Write(l.text()); err != nil {
			return nil, err
		}
	}
	if err := file.Sync(); err != nil {
		return nil, err
	}
	j.file = file
	if err := os.Rename(whole, path); err != nil {
		return nil, err
	}
	if len(j.shares)+len(j.configs) == 0 {
		return j, nil // kfake alone, where nobody has share groups
	}
	return j, j.leave(filepath.Join(dir, "session_state.json"))
}

func (l line) text() []byte {
	data, _ := json.Marshal(l) // there is nothing in it that cannot be
	return append(data, '\n')
}

func (j *journal) apply(l line) {
	if l.Group == "" {
		j.names[l.ID] = l.Topic
		return
	}
	if l.Config != "" {
		if j.configs[l.Group] == nil {
			j.configs[l.Group] = map[string]string{}
		}
		j.configs[l.Group][l.Config] = l.Value
		return
	}
	s := share{l.Group, l.ID, l.Partition}
	p := j.shares[s]
	if p == nil {
		p = &progress{finished: map[int64]bool{}, counts: map[int64]int32{}}
		j.shares[s] = p
	}
	for offset := max(l.First, p.start); offset <= l.Last; offset++ {
		if l.Count > 0 {
			p.counts[offset] = max(p.counts[offset], l.Count)
		} else {
			p.finished[offset] = true
		}
	}
	for p.finished[p.start] {
		delete(p.finished, p.start)
		delete(p.counts, p.start)
		p.start++
	}
}

// sum is the shortest journal that says the same.
func (j *journal) sum() (all []line) {
	for id, name := range j.names {
		all = append(all, line{Topic: name, ID: id})
	}
	for group, configs := range j.configs {
		for name, value := range configs {
			all = append(all, line{Group: group, Config: name, Value: value})
		}
	}
	for s, p := range j.shares {
		l := line{Group: s.group, ID: s.topic, Partition: s.partition}
		if l.Last = p.start - 1; l.Last >= 0 {
			all = append(all, l)
		}
		for offset, count := range p.counts {
			l.First, l.Last, l.Count = offset, offset, count
			all = append(all, l)
		}
		for offset := range p.finished {
			l.First, l.Last, l.Count = offset, offset, 0
			all = append(all, l)
		}
	}
	return all
}

// leave writes the state as kfake itself does at an orderly end.
func (j *journal) leave(path string) error {
	type record struct {
		State int8  `json:"s"`
		Count int32 `json:"dc"`
	}
	type partition struct {
		Start   int64            `json:"spso"`
		Records map[int64]record `json:"records"`
	}
	type group struct {
		Partitions map[string]map[int32]partition `json:"partitions"`
	}
	const free, finished = 0, 2 // kfake's states
	groups := map[string]group{}
	for s, p := range j.shares {
		name := j.names[s.topic]
		if name == "" {
			continue
		}
		if groups[s.group].Partitions == nil {
			groups[s.group] = group{map[string]map[int32]partition{}}
		}
		all := groups[s.group].Partitions
		if all[name] == nil {
			all[name] = map[int32]partition{}
		}
		part := partition{p.start, map[int64]record{}}
		for offset, count := range p.counts {
			part.Records[offset] = record{free, count}
		}
		for offset := range p.finished {
			part.Records[offset] = record{finished, p.counts[offset]}
		}
		all[name][s.partition] = part
	}
	data, err := json.Marshal(map[string]any{"shutdownAt": time.Now(), "shareGroups": groups, "groupConfigs": j.configs})
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// write appends lines; sure: they survive.
func (j *journal) write(sure bool, lines ...line) error {
	if len(lines) == 0 {
		return nil
	}
	var text []byte
	for _, l := range lines {
		j.apply(l)
		text = append(text, l.text()...)
	}
	if _, err := j.file.Write(text); err != nil || !sure {
		return err
	}
	return j.file.Sync()
}

// answered takes down what an answer says.
func (j *journal) answered(req kmsg.Request, resp kmsg.Response) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch resp := resp.(type) {
	case *kmsg.MetadataResponse:
		var names []line
		for _, t := range resp.Topics {
			if t.Topic != nil && t.TopicID != [16]byte{} && j.names[t.TopicID] != *t.Topic {
				names = append(names, line{Topic: *t.Topic, ID: t.TopicID})
			}
		}
		return j.write(true, names...)
	case *kmsg.IncrementalAlterConfigsResponse:
		return j.write(true, altered(req.(*kmsg.IncrementalAlterConfigsRequest), resp)...)
	case *kmsg.ShareFetchResponse:
		var taken []line
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				for _, a := range p.AcquiredRecords {
					taken = append(taken, line{Group: *req.(*kmsg.ShareFetchRequest).GroupID, ID: t.TopicID, Partition: p.Partition,
						First: a.FirstOffset, Last: a.LastOffset, Count: int32(a.DeliveryCount)})
				}
			}
		}
		return j.write(false, taken...)
	case *kmsg.ShareAcknowledgeResponse:
		return j.write(true, finished(req.(*kmsg.ShareAcknowledgeRequest), resp)...)
	}
	return nil
}

// altered are the settings of groups that were changed.
func altered(req *kmsg.IncrementalAlterConfigsRequest, resp *kmsg.IncrementalAlterConfigsResponse) (lines []line) {
	done := map[string]bool{}
	for _, r := range resp.Resources {
		done[r.ResourceName] = r.ErrorCode == 0 && r.ResourceType == kmsg.ConfigResourceTypeGroupConfig
	}
	for _, r := range req.Resources {
		for _, c := range r.Configs {
			if done[r.ResourceName] && c.Op == kmsg.IncrementalAlterConfigOpSet && c.Value != nil {
				lines = append(lines, line{Group: r.ResourceName, Config: c.Name, Value: *c.Value})
			}
		}
	}
	return lines
}

// finished are the records that an acknowledgement ended.
func finished(req *kmsg.ShareAcknowledgeRequest, resp *kmsg.ShareAcknowledgeResponse) (lines []line) {
	const release, renew = 2, 4
	type spot struct {
		topic     [16]byte
		partition int32
	}
	good := map[spot]bool{}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			good[spot{t.TopicID, p.Partition}] = resp.ErrorCode == 0 && p.ErrorCode == 0
		}
	}
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			for _, b := range p.AcknowledgementBatches {
				// The adapter gives one type for a batch.
				if good[spot{t.TopicID, p.Partition}] && len(b.AcknowledgeTypes) == 1 && b.AcknowledgeTypes[0] != release && b.AcknowledgeTypes[0] != renew {
					lines = append(lines, line{Group: *req.GroupID, ID: t.TopicID, Partition: p.Partition, First: b.FirstOffset, Last: b.LastOffset})
				}
			}
		}
	}
	return lines
}
