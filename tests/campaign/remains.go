package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	consulapi "github.com/hashicorp/consul/api"
)

// remains looks at what the campaign left in Consul: first while everything runs, then after every elector was asked to end.
func (c *campaign) remains(ctx context.Context) {
	patience := 30 * time.Second
	if c.Sweep {
		patience = sweepPatience
	}
	var dead, young map[string]bool // candidate records of dead electors: at the first look, and at the last
	c.settled(ctx, "with everything running", patience, func(left leftovers) []string {
		young = left.dead()
		if dead == nil {
			dead = young
		}
		return left.whileRunning(c.world.sound(), c.Sweep, dead)
	})
	c.stopAll()
	c.settled(ctx, "after every elector was asked to end", 10*time.Second, func(left leftovers) []string {
		return left.afterStop(c.Sweep, young, c.unclosed())
	})
}

// unclosed are the electors that could not reach Consul when they ended, and said so.
func (c *campaign) unclosed() map[string]bool {
	out := map[string]bool{}
	for _, s := range c.world.slots {
		if strings.Contains(s.elector.Log(), "cannot close the session") {
			out[s.name] = true
		}
	}
	return out
}

// sweepPatience: electors leave the traces of a dead one for a minute, for people to see, and then sweep them one after the other.
const sweepPatience = 2 * time.Minute

// settled waits until wrong finds nothing wrong any more.
func (c *campaign) settled(ctx context.Context, when string, limit time.Duration, wrong func(leftovers) []string) {
	var last []string
	for deadline := time.Now().Add(limit); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(300 * time.Millisecond) {
		left, err := c.world.leftovers(ctx)
		if err != nil {
			last = []string{err.Error()}
			continue
		}
		if last = wrong(left); len(last) == 0 {
			c.judge.checked(6, 1)
			return
		}
	}
	c.judge.violation(6, "", "", fmt.Sprintf("%s: %s", when, strings.Join(last, "; ")))
}

// leftovers are the traces of electors in Consul.
type leftovers struct {
	keys     consulapi.KVPairs
	sessions []*consulapi.SessionEntry
	services []*consulapi.AgentService
}

func (w *world) leftovers(ctx context.Context) (left leftovers, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	q := (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	consul := w.servers[0].api
	keys, _, err := consul.KV().List("retinue/elections/", q)
	if err != nil {
		return left, err
	}
	sessions, _, err := consul.Session().List(q)
	if err != nil {
		return left, err
	}
	node, _, err := consul.Catalog().Node("retinue-elections", q)
	if err != nil {
		return left, err
	}
	if node == nil {
		node = &consulapi.CatalogNode{}
	}
	for _, g := range w.sound() {
		left.add(g, keys, sessions, node)
	}
	return left, nil
}

// add picks what belongs to a group.
func (l *leftovers) add(g *group, keys consulapi.KVPairs, sessions []*consulapi.SessionEntry, node *consulapi.CatalogNode) {
	for _, pair := range keys {
		if strings.HasPrefix(pair.Key, "retinue/elections/"+g.name+"/") {
			l.keys = append(l.keys, pair)
		}
	}
	for _, s := range sessions {
		if strings.HasPrefix(s.Name, g.name+" elector ") {
			l.sessions = append(l.sessions, s)
		}
	}
	for _, s := range node.Services {
		if s.Service == g.name+"-elector" {
			l.services = append(l.services, s)
		}
	}
}

func (l leftovers) living() map[string]bool {
	living := map[string]bool{}
	for _, s := range l.sessions {
		living[s.ID] = true
	}
	return living
}

// dead are the candidate records that no living session holds.
func (l leftovers) dead() map[string]bool {
	living, dead := l.living(), map[string]bool{}
	for _, pair := range l.keys {
		if strings.Contains(pair.Key, candidates) && !living[pair.Session] {
			dead[pair.Key] = true
		}
	}
	return dead
}

// candidates is in the keys of candidate records: "retinue/elections/APP/.candidates/ELECTOR/SESSION".
const candidates = "/.candidates/"

// ownerOf is the elector that wrote a candidate record, "" for other keys.
func ownerOf(key string) string {
	_, rest, _ := strings.Cut(key, candidates)
	elector, _, _ := strings.Cut(rest, "/")
	return elector
}

// whileRunning: every election's key is locked by a living session, there are no more sessions than electors, and those that were dead
// when all was repaired have been swept. Who loses its session on a busy machine after that is swept a minute later.
func (l leftovers) whileRunning(groups []*group, swept bool, dead map[string]bool) (wrong []string) {
	living := l.living()
	holder := map[string]string{}
	for _, pair := range l.keys {
		holder[pair.Key] = pair.Session
	}
	electors := 0
	for _, g := range groups {
		electors += len(g.slots)
		for _, e := range g.elections {
			if !living[holder[e.key()]] {
				wrong = append(wrong, e.key()+" is not locked by a living session")
			}
		}
	}
	if len(l.sessions) != electors {
		wrong = append(wrong, fmt.Sprintf("%d sessions for %d electors", len(l.sessions), electors))
	}
	for key := range l.dead() {
		if swept && dead[key] {
			wrong = append(wrong, key+" is of an elector that died long ago")
		}
	}
	return wrong
}

// afterStop: no session, no lock, and, where the dead had been swept before, nobody in the race and no instance in the catalog; but for
// those who died too late to be swept, and those who could not reach Consul to take their traces away.
func (l leftovers) afterStop(swept bool, young, unclosed map[string]bool) (wrong []string) {
	if len(l.sessions) > 0 {
		wrong = append(wrong, fmt.Sprintf("%d sessions are left, the first is %q", len(l.sessions), l.sessions[0].Name))
	}
	for _, pair := range l.keys {
		if pair.Session != "" || swept && strings.Contains(pair.Key, candidates) && !young[pair.Key] && !unclosed[ownerOf(pair.Key)] {
			wrong = append(wrong, fmt.Sprintf("key %s is left, session %q", pair.Key, pair.Session))
		}
	}
	for _, s := range l.services {
		excused := false
		for elector := range unclosed {
			excused = excused || strings.HasPrefix(s.ID, elector+":")
		}
		if swept && !excused {
			wrong = append(wrong, "instance "+s.ID+" is left in the catalog")
		}
	}
	return wrong
}

// stopAll ends the applications, then the electors, as Nomad does where the application is the group's leader task.
func (c *campaign) stopAll() {
	for _, s := range c.world.slots {
		s.doomed()
		s.app.kill()
	}
	var stopping sync.WaitGroup
	for _, s := range c.world.slots {
		stopping.Go(func() {
			s.elector.expectDeath()
			if s.group.Canary {
				s.elector.kill()
				return
			}
			s.elector.Signal(syscall.SIGTERM)
			limit := 2*s.group.lease + 6*time.Second
			c.judge.checked(7, 1)
			if !s.elector.ended(limit) {
				c.judge.violation(7, s.group.name, "", fmt.Sprintf("elector %s has not ended %s after SIGTERM, its application being gone", s.name, limit))
				return
			}
			if err := s.elector.WaitExit(time.Second); err != nil {
				c.judge.violation(7, s.group.name, "", fmt.Sprintf("elector %s ended with %v", s.name, err))
			}
		})
	}
	stopping.Wait()
}
