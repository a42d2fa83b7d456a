package kafka

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"retinue/coordinator/source"
)

func cluster(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, string) {
	c, err := kfake.NewCluster(append(opts, kfake.GroupMinSessionTimeout(session), kfake.BrokerConfigs(shareConfig))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, "kafka://" + c.ListenAddrs()[0]
}

func opened(t *testing.T, url, queue, groups string) (*Source, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := Open(ctx, Config{URL: url, Partitions: partitions, Session: session, Groups: groups, Options: source.Options{Queue: queue, Lease: time.Minute, Prefetch: 32}})
	if err == nil {
		t.Cleanup(func() { s.Close(context.Background()) })
	}
	return s, err
}

// A queue is of one kind for its life, whoever asks for what.
func TestKind(t *testing.T) {
	t.Parallel()
	_, now := cluster(t, kfake.NumBrokers(2))
	_, old := cluster(t, kfake.NumBrokers(2), kfake.MaxVersions(kversion.V4_1_0()))
	for _, c := range []struct {
		name, url, first, then string
		shared                 bool
		refused                bool // then
	}{
		{"a new queue", now, groupsAuto, groupsAuto, true, false},
		{"a new queue on brokers without renewals", old, groupsAuto, groupsAuto, false, false},
		{"made for share groups", now, groupsShare, groupsAuto, true, false},
		{"made for classic groups, and the brokers can more", now, groupsClassic, groupsAuto, false, false},
		{"the other kind than it was made with", now, groupsClassic, groupsShare, false, true},
		{"the other kind than it has", now, groupsAuto, groupsClassic, true, true},
		{"share groups on brokers without renewals", old, groupsAuto, groupsShare, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			queue := source.NewID()[:10]
			a, err := opened(t, c.url, queue, c.first)
			if err != nil {
				t.Fatal(err)
			}
			b, err := opened(t, c.url, queue, c.then)
			if c.refused {
				if !errors.Is(err, source.ErrConfig) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if a.shared != c.shared || b.shared != c.shared {
				t.Errorf("share groups: first %t, then %t", a.shared, b.shared)
			}
		})
	}
	if _, err := opened(t, old, "new", groupsShare); !errors.Is(err, source.ErrConfig) {
		t.Errorf("a new queue of share groups on brokers without renewals: %v", err)
	}
	if _, err := opened(t, now, "new", "both"); !errors.Is(err, source.ErrConfig) {
		t.Errorf("groups=both: %v", err)
	}
}

// Of those who make a queue at once one decides.
func TestKindAtOnce(t *testing.T) {
	t.Parallel()
	_, url := cluster(t)
	for range 5 {
		queue := source.NewID()[:10]
		var wg sync.WaitGroup
		var sources [6]*Source
		var errs [6]error
		for i := range sources {
			groups := []string{groupsAuto, groupsClassic, groupsShare}[i%3]
			wg.Go(func() { sources[i], errs[i] = opened(t, url, queue, groups) })
		}
		wg.Wait()
		if sources[0] == nil || sources[3] == nil {
			t.Fatal(errors.Join(errs[:]...))
		}
		for i, s := range sources {
			wrong := i%3 == 1 && sources[0].shared || i%3 == 2 && !sources[0].shared
			if wrong != errors.Is(errs[i], source.ErrConfig) || s != nil && s.shared != sources[0].shared {
				t.Errorf("%d: %v, and the first has share groups: %t", i, errs[i], sources[0].shared)
			}
		}
	}
}

// A group that an older version joined is no share group, and that is told.
func TestGroupOfAnotherKind(t *testing.T) {
	t.Parallel()
	_, url := cluster(t)
	s, err := opened(t, url, "q", groupsShare)
	if err != nil {
		t.Fatal(err)
	}
	older, err := s.member(s.topic(0))
	if err != nil {
		t.Fatal(err)
	}
	defer older.CloseAllowingRebalance()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := older.ProduceSync(ctx, &kgo.Record{Topic: s.topic(0), Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	older.PollRecords(ctx, 1)
	if _, err := s.Receive(ctx, 1); !errors.Is(err, source.ErrConfig) {
		t.Errorf("%v", err)
	}
}
