package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

// What Config.Groups may be.
const (
	groupsAuto    = "auto"
	groupsShare   = "share"
	groupsClassic = "classic"
)

// kindKey is the setting of the topic of marks in which a queue's kind stands, for as long as the queue lives: LogAppendTime for
// share groups, what Kafka has by itself for classic ones. Nobody reads the times of marks. The making of a topic is the
// one step in which two who come at once cannot both be first, so it stands in a setting and not in a record. Queues that are
// older than share groups have classic ones by it.
const (
	kindKey   = "message.timestamp.type"
	kindShare = "LogAppendTime"
)

// wanted is the kind of a queue that is made now.
func (s *Source) wanted(ctx context.Context) (kind string, err error) {
	if s.cfg.Groups == groupsClassic {
		return groupsClassic, nil
	}
	missing, err := s.missing(ctx, true)
	switch {
	case err != nil:
		return "", err
	case missing == "":
		return groupsShare, nil
	case s.cfg.Groups == groupsAuto:
		return groupsClassic, nil
	}
	return "", hint.Wrap(fmt.Errorf("%w: %s", source.ErrConfig, missing), "share groups need Kafka 4.2 or newer with the feature share.version=1; groups=classic works on every version")
}

// missing says what share groups lack on the brokers; "" for nothing. Not all: those that are down may be left out.
func (s *Source) missing(ctx context.Context, all bool) (string, error) {
	// With renewal of locks (KIP-1222) and the lag of a group (KIP-1226).
	needs := map[kmsg.Key]int16{kmsg.ShareGroupHeartbeat: 1, kmsg.ShareFetch: 2, kmsg.ShareAcknowledge: 2, kmsg.DescribeShareGroupOffsets: 1}
	brokers, err := s.admin.ApiVersions(ctx)
	if err != nil {
		return "", err
	}
	for _, b := range brokers {
		if b.Err != nil && all {
			return "", b.Err
		}
		if b.Err != nil {
			continue
		}
		for key, version := range needs {
			if max, ok := b.KeyMaxVersion(int16(key)); !ok || max < version {
				return fmt.Sprintf("broker %d knows no %s %d", b.NodeID, key.Name(), version), nil
			}
		}
		enabled := false
		for _, f := range b.Raw().FinalizedFeatures {
			enabled = enabled || f.Name == "share.version" && f.MaxVersionLevel >= 1
		}
		if !enabled {
			return fmt.Sprintf("broker %d has the feature share.version not enabled", b.NodeID), nil
		}
	}
	return "", nil
}

// declareMarks makes the topic of marks where there is none, and learns by it which kind of groups the queue has.
func (s *Source) declareMarks(ctx context.Context) error {
	kind, err := s.kind(ctx)
	if errors.Is(err, kerr.TopicAuthorizationFailed) && s.cfg.Groups != groupsShare {
		// Who may not read settings, as nobody had to before there were share groups, has classic ones.
		return s.create(ctx, map[string]string{"cleanup.policy": "compact"}, s.marksTopic())
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		var wanted string
		if wanted, err = s.wanted(ctx); err != nil {
			return err
		}
		config := map[string]string{"cleanup.policy": "compact"}
		if wanted == groupsShare {
			config[kindKey] = kindShare
		}
		if err := s.create(ctx, config, s.marksTopic()); err != nil {
			return err
		}
		// Somebody else may have been first, with another kind.
		for kind, err = s.kind(ctx); errors.Is(err, kerr.UnknownTopicOrPartition) && ctx.Err() == nil; kind, err = s.kind(ctx) {
			pause(ctx, again/10)
		}
	}
	if err != nil {
		return err
	}
	if s.cfg.Groups != groupsAuto && s.cfg.Groups != kind {
		return hint.Wrap(fmt.Errorf("%w: queue %s has %s groups, and groups=%s is asked for", source.ErrConfig, s.cfg.Queue, kind, s.cfg.Groups),
			"a queue keeps the kind with which it was made: drain it and delete its topics and groups, or leave groups out of the address")
	}
	if s.shared = kind == groupsShare; s.shared {
		missing, err := s.missing(ctx, false)
		if err != nil {
			return err
		}
		if missing != "" {
			return fmt.Errorf("%w: queue %s has share groups, and %s", source.ErrConfig, s.cfg.Queue, missing)
		}
	}
	return nil
}

// kind reads which kind of groups an existing queue has.
func (s *Source) kind(ctx context.Context) (string, error) {
	all, err := s.admin.DescribeTopicConfigs(ctx, s.marksTopic())
	if err != nil {
		return "", err
	}
	r, err := all.On(s.marksTopic(), nil)
	if err == nil {
		err = r.Err
	}
	if err != nil {
		return "", fmt.Errorf("read the settings of %s: %w", s.marksTopic(), err)
	}
	for _, c := range r.Configs {
		if c.Key == kindKey && c.Value != nil && *c.Value == kindShare {
			return groupsShare, nil
		}
	}
	return groupsClassic, nil
}

// create makes topics that do not exist.
func (s *Source) create(ctx context.Context, config map[string]string, topics ...string) error {
	values := map[string]*string{}
	for k, v := range config {
		values[k] = kmsg.StringPtr(v)
	}
	made, err := s.admin.CreateTopics(ctx, int32(s.cfg.Partitions), int16(s.cfg.Replicas), values, topics...)
	if err != nil {
		return err
	}
	for _, t := range made {
		if t.Err != nil && !errors.Is(t.Err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("create topic %s: %w", t.Topic, t.Err)
		}
	}
	return nil
}
