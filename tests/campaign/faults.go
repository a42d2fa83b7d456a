package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	consulapi "github.com/hashicorp/consul/api"
)

// injected is a fault that took place.
type injected struct {
	Class    Class
	Lane     string
	From, To int64
	groups   []*group
	target
}

// target is what a fault hit, as far as it is not everything.
type target struct {
	slot     *slot     // one elector, its application, or both
	node     *node     // one host with electors
	election *election // an operator touched its key
}

func (t target) String() string {
	switch {
	case t.slot != nil:
		return t.slot.name
	case t.node != nil:
		return t.node.host.Name
	case t.election != nil:
		return t.election.name
	}
	return ""
}

// errNoTarget: there was nothing to break. It is not counted.
var errNoTarget = errors.New("nothing to break")

// lane injects the faults of its plan one after the other.
type lane struct {
	plan   *lanePlan
	world  *world
	groups []*group // who suffers
	inject func(ctx context.Context, f Fault) (target, error)
}

// pause waits, at most until the campaign ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// groupLane breaks one group.
func (w *world) groupLane(g *group, plan *lanePlan) *lane {
	l := &lane{plan: plan, world: w, groups: []*group{g}}
	old := map[*election][]byte{} // what an operator's browser still shows
	l.inject = func(ctx context.Context, f Fault) (target, error) {
		e := g.elections[f.Aux%len(g.elections)]
		s := g.slots[f.Target%len(g.slots)]
		if b := e.leader(); f.Leader && b != nil {
			s = b.who.slot
		}
		switch f.Class {
		case operatorPut, operatorDel, operatorInval:
			return target{election: e}, w.operate(f, e, old)
		}
		return target{slot: s}, w.breakSlot(ctx, f, s)
	}
	return l
}

func (w *world) breakSlot(ctx context.Context, f Fault, s *slot) error {
	from := bootNow()
	defer func() { s.troubled(f.Class, from, bootNow()) }()
	switch f.Class {
	case appKill:
		s.doomed()
		s.app.kill()
		pause(ctx, f.Hold)
		s.app.start()
	case appStop:
		s.app.Pause()
		pause(ctx, f.Hold)
		s.app.Resume()
	case taskKill:
		s.doomed()
		s.app.kill()
		s.elector.kill()
		pause(ctx, f.Hold)
		s.elector.start()
		s.app.start()
	case electorKill:
		s.elector.kill()
		pause(ctx, f.Hold)
		s.elector.start()
	case electorStop:
		s.elector.Pause()
		pause(ctx, f.Hold)
		s.elector.Resume()
	case electorTerm:
		return w.restartElector(ctx, f, s)
	case electorCut:
		return w.cut(ctx, s.node, f.Hold, loopRules(f.Way, s.address))
	case stateFull:
		return w.fillState(ctx, f, s)
	case requestLate:
		delayRequest(ctx, f, s)
	case answersLost:
		s.gate.rule(func(_, verb string) passage { return passage{lose: verb != ""} })
		pause(ctx, f.Hold)
		s.gate.rule(nil)
	}
	return nil
}

// delayRequest kills the application, and holds up a request that follows from it: the release of the lock, or the first attempt of
// anyone at it. When it is carried out, others may have led meanwhile.
func delayRequest(ctx context.Context, f Fault, s *slot) {
	late := newHeld()
	want := []string{"unlock", "lock"}[f.Aux/7%2]
	var once sync.Once
	for _, other := range s.group.slots {
		other.gate.rule(func(key, verb string) (p passage) {
			if verb == want && !strings.Contains(key, "/.candidates/") {
				once.Do(func() { p.hold = late })
			}
			return p
		})
	}
	s.doomed()
	s.app.kill()
	s.app.start()
	pause(ctx, f.Hold)
	for _, other := range s.group.slots {
		other.gate.rule(nil)
	}
	select {
	case <-late.caught:
		late.letgo <- nil
		<-late.done
	default:
	}
}

func (w *world) restartElector(ctx context.Context, f Fault, s *slot) error {
	s.elector.expectDeath()
	s.elector.Signal(syscall.SIGTERM)
	if limit := 2*s.group.lease + 6*time.Second; !s.elector.ended(limit) {
		w.judge.violation(7, s.group.name, "", fmt.Sprintf("elector %s has not ended %s after SIGTERM", s.name, limit))
		s.elector.kill()
	}
	pause(ctx, f.Hold)
	s.elector.start()
	return nil
}

// fillState fills the disk on which the elector keeps its state, and restarts it there: what it finds is old.
func (w *world) fillState(ctx context.Context, f Fault, s *slot) error {
	path := filepath.Join(s.dir, "secrets", "full")
	err := fill(path)
	defer os.Remove(path)
	if err != nil {
		return err
	}
	pause(ctx, s.group.lease/2)
	s.elector.kill()
	pause(ctx, f.Hold)
	s.elector.start()
	pause(ctx, s.group.lease/2)
	return nil
}

// fill writes until the disk, which is a small one, is full.
func fill(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 64<<10)
	for n := 0; n < 1<<14; n++ {
		if _, err := file.Write(block); err != nil {
			for { // the last page
				if _, err := file.Write(block[:512]); err != nil {
					return nil
				}
			}
		}
	}
	return errors.New("the disk is not small")
}

// operate does what operators do to a key in the Consul UI.
func (w *world) operate(f Fault, e *election, old map[*election][]byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	consul := w.servers[f.Target%len(w.servers)].api
	query := (&consulapi.QueryOptions{}).WithContext(ctx)
	pair, _, err := consul.KV().Get(e.key(), query)
	if err != nil || pair == nil {
		return errNoTarget
	}
	write := (&consulapi.WriteOptions{}).WithContext(ctx)
	act := operatorAct{class: f.Class, from: bootNow()}
	touched := []*election{e}
	switch f.Class {
	case operatorPut:
		value := [][]byte{[]byte("edited by hand"), pair.Value, old[e]}[f.Aux/7%3]
		old[e] = pair.Value
		_, err = consul.KV().Put(&consulapi.KVPair{Key: e.key(), Value: value}, write)
	case operatorDel:
		act.index, err = deleteKey(consul, e.key(), query)
	case operatorInval:
		session, _, infoErr := consul.Session().Info(pair.Session, query)
		if infoErr != nil || session == nil {
			return errNoTarget
		}
		act.victim = sessionOwner(session.Name)
		act.from = bootNow()
		_, err = consul.Session().Destroy(pair.Session, write)
		touched = e.group.elections // the session carries all that its elector leads
	}
	act.to, act.unanswered = bootNow(), err != nil
	if errors.Is(err, errNoTarget) {
		return err
	}
	for _, other := range touched {
		other.acted(act)
	}
	if err != nil {
		return errNoTarget
	}
	return nil
}

// deleteKey deletes a key, and returns the index that it had then. The UI deletes without looking; that is the same to everybody else.
func deleteKey(consul *consulapi.Client, key string, query *consulapi.QueryOptions) (index uint64, err error) {
	ok, resp, _, err := consul.Txn().Txn(consulapi.TxnOps{
		{KV: &consulapi.KVTxnOp{Verb: consulapi.KVGet, Key: key}},
		{KV: &consulapi.KVTxnOp{Verb: consulapi.KVDelete, Key: key}},
	}, query)
	switch {
	case err != nil:
		return 0, err
	case !ok || len(resp.Results) == 0 || resp.Results[0].KV == nil:
		return 0, errNoTarget
	}
	return resp.Results[0].KV.ModifyIndex, nil
}

// sessionOwner is the elector in the name of its session, "APP elector ID NUMBER".
func sessionOwner(name string) string {
	if words := strings.Fields(name); len(words) > 2 {
		return words[2]
	}
	return ""
}

// loopRules cut the elector that uses address off from the agent: its requests (out), the answers (in), or both.
func loopRules(way Way, address string) (rules []string) {
	if way != wayIn {
		rules = append(rules, "OUTPUT -o lo -d "+address+" -j DROP")
	}
	if way != wayOut {
		rules = append(rules, "OUTPUT -o lo -s "+address+" -j DROP")
	}
	return rules
}

// netRules cut a host off, from all or from one other.
func netRules(way Way, peer string) (rules []string) {
	source, destination := "", ""
	if peer != "" {
		source, destination = "-s "+peer+" ", "-d "+peer+" "
	}
	if way != wayOut {
		rules = append(rules, "INPUT -i eth0 "+source+"-j DROP")
	}
	if way != wayIn {
		rules = append(rules, "OUTPUT -o eth0 "+destination+"-j DROP")
	}
	return rules
}

// cut holds packet filter rules on a node for a while. Each rule is removed by itself: others may be there at the same time.
func (w *world) cut(ctx context.Context, n *node, hold time.Duration, rules []string) error {
	var set []string
	defer func() {
		for _, rule := range set {
			if err := n.iptables("-D " + rule); err != nil {
				w.t.Fatalf("%v", err)
			}
		}
	}()
	for _, rule := range rules {
		if err := n.iptables("-A " + rule); err != nil {
			return err
		}
		set = append(set, rule)
	}
	pause(ctx, hold)
	return nil
}

func (n *node) iptables(rule string) error {
	args := []string{fmt.Sprintf("--net=/proc/%d/ns/net", n.anchor.PID()), "iptables", "-w"}
	out, err := exec.Command("nsenter", append(args, strings.Fields(rule)...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s on %s: %w: %s", rule, n.host.Name, err, out)
	}
	return nil
}

// hostLane breaks hosts with electors.
func (w *world) hostLane(n *node, plan *lanePlan) *lane {
	l := &lane{plan: plan, world: w}
	for _, g := range w.groups {
		for _, s := range g.slots {
			if s.node == n {
				l.groups = append(l.groups, g)
				break
			}
		}
	}
	l.inject = func(ctx context.Context, f Fault) (target, error) {
		t := target{node: n}
		from := bootNow()
		defer func() {
			for _, s := range w.slots {
				if s.node == n {
					s.troubled(f.Class, from, bootNow())
				}
			}
		}()
		switch f.Class {
		case agentLeave:
			n.agent.expectDeath()
			n.agent.Signal(syscall.SIGTERM)
			if !n.agent.ended(8 * time.Second) {
				n.agent.kill()
			}
			pause(ctx, f.Hold)
			n.agent.start()
		case hostCut:
			return t, w.cut(ctx, n, f.Hold, netRules(f.Way, ""))
		case hostCutOne:
			return t, w.cut(ctx, n, f.Hold, netRules(f.Way, w.servers[f.Target%len(w.servers)].host.IP))
		default:
			hit(ctx, f.Class == agentKill, f.Hold, n)
		}
		return t, nil
	}
	return l
}

// hit kills or stops the agents of nodes, and repairs them.
func hit(ctx context.Context, kill bool, hold time.Duration, nodes ...*node) {
	for _, n := range nodes {
		if kill {
			n.agent.kill()
		} else {
			n.agent.Pause()
		}
	}
	pause(ctx, hold)
	for _, n := range nodes {
		if kill {
			n.agent.start()
		} else {
			n.agent.Resume()
		}
	}
}

// serverLane breaks the servers.
func (w *world) serverLane(plan *lanePlan) *lane {
	l := &lane{plan: plan, world: w, groups: w.groups}
	l.inject = func(ctx context.Context, f Fault) (target, error) {
		leader := w.raftLeader()
		if leader == nil {
			return target{}, errNoTarget
		}
		others := append(append([]*node(nil), w.servers[:leader.index]...), w.servers[leader.index+1:]...)
		follower := others[f.Target%2]
		switch f.Class {
		case leaderKill, leaderStop:
			hit(ctx, f.Class == leaderKill, f.Hold, leader)
		case followerKill, followerStop:
			hit(ctx, f.Class == followerKill, f.Hold, follower)
		case majorityStop, majorityKill:
			hit(ctx, f.Class == majorityKill, f.Hold, leader, follower)
		case leaderCut:
			return target{}, w.cut(ctx, leader, f.Hold, netRules(f.Way, ""))
		case followerCut:
			return target{}, w.cut(ctx, follower, f.Hold, netRules(f.Way, ""))
		case serverFull:
			return target{}, w.fillServer(ctx, f)
		}
		return target{}, nil
	}
	return l
}

// fillServer fills the disk of the server that has a small one. Whatever it does about that, it is restarted when there is room again.
func (w *world) fillServer(ctx context.Context, f Fault) error {
	n := w.servers[2]
	n.agent.expectDeath()
	path := filepath.Join(n.disk, "full")
	err := fill(path)
	if err == nil {
		pause(ctx, f.Hold)
	}
	os.Remove(path)
	n.agent.kill()
	n.agent.start()
	return err
}

// raftLeader is the server that leads, as the first that knows says.
func (w *world) raftLeader() *node {
	for _, s := range w.servers {
		address, err := s.api.Status().Leader()
		if err != nil || address == "" {
			continue
		}
		for _, n := range w.servers {
			if address == n.host.IP+":8300" {
				return n
			}
		}
	}
	return nil
}
