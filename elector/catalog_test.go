package elector

import (
	"slices"
	"testing"
	"time"
)

// The catalog follows the locks: it is never in their transaction, it waits for a successor's, and it says what is led by then.
func TestCatalogFollows(t *testing.T) {
	s := newScript(t, testConfig("a").Config)
	s.want(evTick{}, "open")
	s.want(evOpened{session: Session{ID: "s1", TTL: s.m.cfg.Lease, Catalog: true}, sent: s.now}, "candidate")
	s.committed(15)
	s.want(evObserved{Snapshot{Index: 15}})
	alone := func(words ...string) {
		t.Helper()
		s.want(evTick{}) // not at once
		if at := s.m.next(s.now); at != s.now.Add(catalogDelay) {
			t.Errorf("wakes up after %s", at.Sub(s.now))
		}
		s.now = s.now.Add(catalogDelay)
		s.want(evTick{}, "candidate") // a batch without operations
		if b := s.m.committing; b == nil || !slices.Equal(b.Leads, words) || b.Leads == nil {
			t.Fatalf("%+v", b)
		}
		s.committed(30)
	}
	s.want(evCampaign{election: "leader", id: "x"}, "lock")
	if s.m.committing.Leads != nil {
		t.Errorf("the lock waits for the catalog: %v", s.m.committing.Leads)
	}
	s.committed(20, "elected", "update")
	s.m.step(s.now, evTether{election: "leader", token: 20})
	s.committed(21)
	s.own(21)
	alone("leader")
	s.want(evResign{election: "leader", token: 20, req: 1}, "lost resigned", "unlock")
	if s.m.committing.Leads != nil {
		t.Errorf("the release waits for the catalog: %v", s.m.committing.Leads)
	}
	s.committed(40, "answer")
	alone()
	s.now = s.now.Add(time.Second)
	for _, word := range s.do(evTick{}) {
		if word != "renew" {
			t.Errorf("then %s", word)
		}
	}
}
