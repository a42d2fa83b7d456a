package elector

import (
	"testing"

	consul "github.com/hashicorp/consul/api"
)

func TestStandings(t *testing.T) {
	candidate := func(id, session string, elections ...string) *consul.KVPair {
		r := CandidateRecord{ID: id, Session: session, Alloc: "alloc-" + id, Elections: map[string]Bid{}}
		for _, e := range elections {
			r.Elections[e] = Bid{Candidate: "app-" + id}
		}
		return &consul.KVPair{Key: "retinue/elections/orders/.candidates/" + id, Session: session, Value: encode(r)}
	}
	got := standingsOf(consul.KVPairs{
		{Key: "retinue/elections/"},
		{Key: "retinue/elections/readme", Value: []byte("not an election")},
		candidate("a", "s1", "leader", "shard/1"),
		candidate("b", "s2", "leader"),
		candidate("gone", "", "leader"),
		{Key: "retinue/elections/orders/.candidates/odd", Session: "s9", Value: []byte("{")},
		{Key: "retinue/elections/orders/leader", Session: "s1", ModifyIndex: 41, Value: encode(Record{Leader: "app-a", Alloc: "alloc-a"})},
		{Key: "retinue/elections/orders/shard/1", ModifyIndex: 50, Value: encode(Record{})},
		{Key: "retinue/elections/billing/leader", Session: "s3", ModifyIndex: 77, Value: []byte("edited by hand")},
	})
	if len(got) != 3 {
		t.Fatalf("%d elections, want 3: %+v", len(got), got)
	}
	billing, leader, shard := got[0], got[1], got[2]
	if billing.App != "billing" || billing.Leader == nil || billing.Leader.Token != 77 {
		t.Errorf("a record that cannot be read still has a holder: %+v", billing)
	}
	if leader.Leader == nil || leader.Leader.ID != "app-a" || leader.Leader.Token != 41 || len(leader.Candidates) != 2 || leader.Candidates[1].ID != "app-b" {
		t.Errorf("orders/leader: %+v", leader)
	}
	if shard.Election != "shard/1" || shard.Leader != nil || len(shard.Candidates) != 1 {
		t.Errorf("orders/shard/1: %+v", shard)
	}
}
