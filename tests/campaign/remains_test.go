package main

import (
	"testing"

	consulapi "github.com/hashicorp/consul/api"
)

func TestLeftovers(t *testing.T) {
	p := newPast("safe")
	groups := p.world.groups
	const lock, mine, old = "retinue/elections/g/e0", "retinue/elections/g/.candidates/a/s1", "retinue/elections/g/.candidates/b/s0"
	left := func(oldSession string) leftovers {
		return leftovers{
			keys:     consulapi.KVPairs{{Key: lock, Session: "s1"}, {Key: mine, Session: "s1"}, {Key: old, Session: oldSession}},
			sessions: []*consulapi.SessionEntry{{ID: "s1"}, {ID: "s2"}, {ID: "s3"}},
		}
	}
	if dead := left("").dead(); len(dead) != 1 || !dead[old] {
		t.Errorf("dead: %v", dead)
	}
	if wrong := left("s2").whileRunning(groups, true, nil); len(wrong) != 0 {
		t.Errorf("all is well: %v", wrong)
	}
	if wrong := left("").whileRunning(groups, true, map[string]bool{old: true}); len(wrong) != 1 {
		t.Errorf("one that died long ago: %v", wrong)
	}
	if wrong := left("").whileRunning(groups, true, nil); len(wrong) != 0 {
		t.Errorf("one that died meanwhile: %v", wrong)
	}
	stopped := leftovers{keys: consulapi.KVPairs{{Key: lock}, {Key: old}}, services: []*consulapi.AgentService{{ID: "b:g"}}}
	if wrong := stopped.afterStop(true, nil, nil); len(wrong) != 2 {
		t.Errorf("a record and an instance that are left: %v", wrong)
	}
	if wrong := stopped.afterStop(true, map[string]bool{old: true}, nil); len(wrong) != 1 {
		t.Errorf("an instance that is left: %v", wrong)
	}
	if wrong := stopped.afterStop(true, nil, map[string]bool{"b": true}); len(wrong) != 0 {
		t.Errorf("of one that could not reach Consul: %v", wrong)
	}
	stopped.keys[0].Session = "s1"
	if wrong := stopped.afterStop(true, nil, map[string]bool{"b": true}); len(wrong) != 1 {
		t.Errorf("a lock that is left: %v", wrong)
	}
}
