package elector

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"retinue/internal/clock"
)

// TestFaultCampaign lets applications compete for five minutes of the bubble's time while everything goes wrong at random:
// partitions, lost and slow answers, sessions that operators end, edits, server leader changes, applications that die or hang,
// electors that are killed and come back with or without their state, clocks that are wrong by 1 %. A witness looks every millisecond at
// what the applications believe, by their last grant and their clock: never two leaders, never a token that falls. RETINUE_ELECTOR_SEED repeats one campaign, RETINUE_ELECTOR_CAMPAIGNS=N runs N of them.
func TestFaultCampaign(t *testing.T) {
	first, n := envNumber(t, "RETINUE_ELECTOR_SEED", 1), envNumber(t, "RETINUE_ELECTOR_CAMPAIGNS", 2)
	if os.Getenv("RETINUE_ELECTOR_SEED") != "" {
		n = 1
	}
	for seed := first; seed < first+n; seed++ {
		for _, revocation := range []Revocation{Safe, Fast} {
			t.Run(fmt.Sprintf("%s/%d", revocation, seed), func(t *testing.T) {
				dir := t.TempDir()
				bubble(t, func(t *testing.T) { campaignOfFaults(t, seed, revocation, dir) })
			})
		}
	}
}

func envNumber(t *testing.T, name string, def uint64) uint64 {
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// player is one machine in a campaign: an elector that may die and come back, and an application beside it.
type player struct {
	f   *fleet
	cfg fleetConfig
	rnd *rand.Rand

	mu       sync.Mutex
	node     *node
	token    uint64        // the application acts under it ...
	deadline clock.Instant // ... until here, on the machine's clock
}

func (p *player) current() *node {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.node
}

func (p *player) act(g Grant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.token, p.deadline = g.Token, g.DeadlineBoot
}

// acts says whether the application believes that it leads: all it knows is its last grant and the clock.
func (p *player) acts() (token uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.token, p.node.el.clock.Now() < p.deadline
}

// crash kills the elector. It comes back later, with its state file or, as after the loss of its disk, without.
func (p *player) crash(pause time.Duration, path string) {
	n := p.current()
	n.kill()
	<-n.ended
	if p.cfg.state != nil {
		p.cfg.state.Close(true)
	}
	p.cfg.state = nil
	time.Sleep(pause)
	if path != "" {
		p.cfg.state = openState(p.f.t, path)
	}
	again := p.f.launch(p.cfg)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.node = again
}

func campaignOfFaults(t *testing.T, seed uint64, revocation Revocation, dir string) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	f := newFleet(t)
	f.c.applyLag = 300 * time.Millisecond
	stop, end := context.WithCancel(context.Background())
	var players []*player
	var wg sync.WaitGroup
	for i, id := range []string{"a", "b", "c"} {
		cfg := testConfig(id)
		cfg.Revocation, cfg.rate = revocation, []float64{0.99, 1, 1.01}[i]
		p := &player{f: f, cfg: cfg, rnd: rand.New(rand.NewPCG(seed, uint64(i+1)))}
		p.node = f.launch(cfg)
		p.node.store.slow(time.Duration(2+i) * time.Millisecond)
		players = append(players, p)
		wg.Go(func() { p.application(stop) })
	}
	w := &witness{t: t, players: players}
	defer func() {
		end()
		for _, p := range players {
			p.current().kill()
			<-p.current().ended
		}
		wg.Wait()
		for _, p := range players {
			f.nodes = append(f.nodes, p.current())
			if p.cfg.state != nil {
				p.cfg.state.Close(false)
			}
		}
		f.close()
	}()
	faults := 0
	for start := time.Now(); time.Since(start) < 5*time.Minute; faults++ {
		w.watch(time.Duration(rnd.IntN(3000)) * time.Millisecond)
		p := players[rnd.IntN(len(players))]
		w.fault(rnd, p, revocation, filepath.Join(dir, p.cfg.ID))
	}
	for _, p := range players {
		s := p.current().store
		s.partition(false)
		s.lose(0)
		s.delay(0, 0)
		s.queue(0, 0)
		s.slow(2 * time.Millisecond)
	}
	// When all is well again somebody leads, within the bound.
	limit := players[0].cfg.worstFailover(players[0].cfg.Lease) + 3*time.Second
	for start := time.Now(); !w.look(); w.watch(time.Millisecond) {
		if time.Since(start) > limit {
			t.Fatalf("nobody leads %s after the last fault", limit)
		}
	}
	t.Logf("%d faults, %d false renewals, %d leaderships", faults, f.c.lies(), w.terms)
	if w.terms < 20 {
		t.Error("leadership hardly ever changed: the campaign tests nothing")
	}
}

// fault is one thing that goes wrong.
func (w *witness) fault(rnd *rand.Rand, p *player, revocation Revocation, path string) {
	c, store := p.f.c, p.current().store
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	switch rnd.IntN(10) {
	case 0, 1:
		store.partition(true)
		heal := rnd.IntN(9000)
		if rnd.IntN(2) == 0 {
			heal = 3300 + rnd.IntN(1000) // about when the session expires
		}
		time.AfterFunc(ms(heal), func() { store.partition(false) })
	case 2:
		store.lose(1 + rnd.IntN(5))
	case 3:
		if revocation == Safe { // fast gives no promise here but the token
			c.invalidate(c.holder(Key("app", "leader")))
		}
	case 4:
		c.put(Key("app", "leader"), "edited")
	case 5:
		c.changeLeader()
	case 6:
		store.slow(ms(rnd.IntN(900)))
		time.AfterFunc(ms(rnd.IntN(5000)), func() { store.slow(ms(2)) })
	case 8:
		store.delay(1+rnd.IntN(2), ms(rnd.IntN(5000)))
	case 9:
		store.queue(1+rnd.IntN(3), ms(rnd.IntN(1500)))
	case 7:
		if rnd.IntN(3) == 0 {
			path = ""
		}
		pause := ms(rnd.IntN(3000))
		w.watchWhile(func() { p.crash(pause, path) })
	}
}

// witness looks every millisecond at what the applications believe.
type witness struct {
	t       *testing.T
	players []*player
	highest uint64
	terms   int
	broken  bool
}

func (w *witness) watch(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
		w.look()
	}
}

// watchWhile watches until f is done.
func (w *witness) watchWhile(f func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	for {
		select {
		case <-done:
			return
		default:
			w.watch(time.Millisecond)
		}
	}
}

// look says whether anybody leads.
func (w *witness) look() bool {
	var leader *player
	for _, p := range w.players {
		token, ok := p.acts()
		if !ok {
			continue
		}
		if (leader != nil || token < w.highest) && !w.broken {
			w.broken = true
			w.t.Errorf("%s acts under token %d, the highest so far is %d, another leader: %v", p.cfg.ID, token, w.highest, leader != nil)
		}
		if token > w.highest {
			w.highest = token
			w.terms++
		}
		leader = p
	}
	return leader != nil
}

// application campaigns for ever; in office it renews, then resigns, hands over, is asked to step down, or hangs.
func (p *player) application(ctx context.Context) {
	request := func(path, body string) (int, Grant) {
		status, data := p.current().request(ctx, http.MethodPost, path, body)
		var g Grant
		decode(data, &g)
		return status, g
	}
	pause := func(ms int) { sleep(ctx, time.Duration(p.rnd.IntN(ms))*time.Millisecond) }
	for ctx.Err() == nil {
		status, g := request("/become", `{"id":"app","lease_ms":1500}`)
		if status != http.StatusOK || g.Token == 0 {
			pause(500)
			continue
		}
		p.act(g)
		for end := time.Now().Add(time.Duration(p.rnd.IntN(15000)) * time.Millisecond); time.Now().Before(end) && ctx.Err() == nil; {
			status, again := request("/renew", fmt.Sprintf(`{"token":%d}`, g.Token))
			if status == http.StatusConflict {
				break
			}
			if status == http.StatusOK {
				p.act(again)
			}
			sleep(ctx, 500*time.Millisecond)
		}
		switch p.rnd.IntN(4) {
		case 0:
			p.act(Grant{}) // it stops before it resigns
			request("/resign", fmt.Sprintf(`{"token":%d}`, g.Token))
		case 1:
			p.act(Grant{})
			request("/resign", fmt.Sprintf(`{"token":%d,"to":"any"}`, g.Token))
		case 2: // somebody asks it to step down, and it does not listen
			request("/stepdown", `{"to":"any"}`)
		case 3: // it hangs; its lease ends
			sleep(ctx, 2*time.Second)
		}
	}
}
