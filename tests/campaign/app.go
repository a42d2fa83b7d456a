package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// appEnv carries an appConfig to this same binary, which then is an application. runEnv tells a process which run of its supervisor
// it is.
const (
	appEnv = "RETINUE_CAMPAIGN_APP"
	runEnv = "RETINUE_CAMPAIGN_RUN"
)

// How an application shows that it lives.
const (
	modeRenew  = "renew"  // renew within the lease
	modeTether = "tether" // an open hold
	modeBoth   = "both"   // an open hold, and a lease of its own that it renews
)

type appConfig struct {
	Hub, Elector, Slot string
	Elections          []string
	Mode               string
	Lease              time.Duration
}

// app is an application with an elector beside it, written against the elector's HTTP contract and nothing else.
type app struct {
	cfg    appConfig
	id     string
	http   *http.Client
	hub    *line
	nextID atomic.Int64
	mu     sync.Mutex
	waits  map[int64]chan message
	runs   map[string]*candidacy
}

// runApp is the main function of an application process. It ends with the campaign.
func runApp(config string) int {
	var cfg appConfig
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	run, err := strconv.Atoi(os.Getenv(runEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	conn, err := net.Dial("unix", cfg.Hub)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", cfg.Elector)
	}
	a := &app{cfg: cfg, id: fmt.Sprintf("%s.%d", cfg.Slot, run), hub: newLine(conn), waits: map[int64]chan message{}, runs: map[string]*candidacy{},
		http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16}}}
	for _, e := range cfg.Elections {
		a.runs[e] = &candidacy{app: a, election: e, resign: make(chan string, 1), lost: make(chan uint64, 8)}
	}
	if a.hub.send(message{Kind: kindHello, Slot: cfg.Slot, Run: run}) != nil {
		return 1
	}
	for _, c := range a.runs {
		go c.run()
	}
	if cfg.Mode == modeRenew {
		go a.listen()
	}
	for {
		m, ok := a.hub.receive()
		if !ok {
			return 0
		}
		switch m.Kind {
		case kindOutcome:
			a.mu.Lock()
			ch := a.waits[m.ID]
			delete(a.waits, m.ID)
			a.mu.Unlock()
			if ch != nil {
				ch <- m
			}
		case kindResign:
			if c := a.runs[m.Election]; c != nil {
				select {
				case c.resign <- m.Text:
				default:
				}
			}
		}
	}
}

// operate carries out one operation on the fenced register.
func (a *app) operate(kind, election string, token uint64) {
	id := a.nextID.Add(1)
	ch := make(chan message, 1)
	a.mu.Lock()
	a.waits[id] = ch
	a.mu.Unlock()
	if a.hub.send(message{Kind: kind, Election: election, Token: token, ID: id, Call: bootNow()}) != nil {
		return
	}
	<-ch
	_ = a.hub.send(message{Kind: kindReturn, Election: election, ID: id, At: bootNow()})
}

// answer is what electors answer, as far as an application needs it.
type answer struct {
	Status   int
	Role     string `json:"role"`
	Token    uint64 `json:"token"`
	Deadline int64  `json:"deadline_boottime_ns"`
	Released bool   `json:"released"`
	Error    string `json:"error"`
	Reason   string `json:"reason"`
}

func (a *app) call(ctx context.Context, method, path string, body any) (answer, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://elector/v1/elections/"+path, bytes.NewReader(data))
	if err != nil {
		return answer{}, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err = io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	out := answer{Status: resp.StatusCode}
	return out, json.Unmarshal(data, &out)
}

// event is one server-sent event.
type event struct {
	name string
	data struct {
		Election string `json:"election"`
		Role     string `json:"role"`
		Token    uint64 `json:"token"`
		Deadline int64  `json:"deadline_boottime_ns"`
		Reason   string `json:"reason"`
	}
}

// stream reads server-sent events until the stream ends. opened is called when it has begun.
func (a *app) stream(ctx context.Context, path string, opened func(), each func(event)) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://elector/v1/"+path, nil)
	if err != nil {
		return 0, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, nil
	}
	opened()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 4096), 1<<20)
	var ev event
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch value = strings.TrimPrefix(value, " "); key {
		case "":
			if ev.name != "" {
				each(ev)
			}
			ev = event{}
		case "event":
			ev.name = value
		case "data":
			_ = json.Unmarshal([]byte(value), &ev.data)
		}
	}
	return resp.StatusCode, lines.Err()
}

// listen follows all elections' events, for applications that have no hold to learn from.
func (a *app) listen() {
	for {
		_, _ = a.stream(context.Background(), "events", func() {}, func(ev event) {
			if c := a.runs[ev.data.Election]; c != nil && (ev.name == "suspended" || ev.name == "lost") {
				c.heard(ev)
			}
		})
		time.Sleep(30 * time.Millisecond)
	}
}

// candidacy is the application's part in one election.
type candidacy struct {
	app      *app
	election string
	resign   chan string
	lost     chan uint64 // tokens that are over

	mu     sync.Mutex
	token  uint64
	until  int64
	called int64
	told   bool // of the end of what until covers
	silent bool // it was noted that until passed without news
}

func (c *candidacy) run() {
	var old uint64
	for {
		if old != 0 {
			go c.verify(old)
		}
		old = c.compete()
	}
}

// compete campaigns until elected, and leads until that is over. It returns the token that is over.
func (c *candidacy) compete() uint64 {
	body := map[string]any{"id": c.app.id, "wait_ms": 8000}
	if c.app.cfg.Mode == modeBoth {
		body["lease_ms"] = c.app.cfg.Lease.Milliseconds()
	}
	called := bootNow()
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
	defer cancel()
	g, err := c.app.call(ctx, "POST", c.election+"/become", body)
	if err != nil || g.Status != http.StatusOK {
		time.Sleep(time.Duration(20+rand.IntN(30)) * time.Millisecond)
		return 0
	}
	for len(c.resign) > 0 {
		<-c.resign
	}
	c.mu.Lock()
	c.token, c.until, c.called = g.Token, 0, called
	c.mu.Unlock()
	c.extend(g.Token, g.Deadline)
	c.lead(g.Token)
	return g.Token
}

// extend notes a deadline, in the history first.
func (c *candidacy) extend(token uint64, until int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := bootNow()
	if token != c.token || at >= until || until <= c.until {
		return
	}
	if c.app.hub.send(message{Kind: kindBelief, Election: c.election, Token: token, Call: c.called, At: at, Until: until}) != nil {
		os.Exit(0) // the campaign is over
	}
	c.until, c.told, c.silent = until, false, false
}

// heard notes the news that leadership pauses or is over.
func (c *candidacy) heard(ev event) {
	at := bootNow()
	c.mu.Lock()
	defer c.mu.Unlock()
	if ev.data.Token != c.token || c.token == 0 {
		return
	}
	if !c.told {
		c.told = true
		_ = c.app.hub.send(message{Kind: kindLoss, Election: c.election, Token: c.token, At: at, Until: c.until, Text: ev.name + " " + ev.data.Reason})
	}
	if ev.name == "lost" {
		select {
		case c.lost <- c.token:
		default:
		}
	}
}

// silence notes a deadline that passed without news, and asks the elector why.
func (c *candidacy) silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := bootNow(); !c.told && !c.silent && c.until != 0 && at > c.until+int64(100*time.Millisecond) {
		c.silent = true
		m := message{Kind: kindSilent, Election: c.election, Token: c.token, At: at, Until: c.until}
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if g, err := c.app.call(ctx, "GET", c.election, nil); err == nil && g.Status == http.StatusOK && g.Role == "leader" && g.Token == m.Token {
				m.Text = ledOn
			}
			_ = c.app.hub.send(m)
		}()
	}
}

func (c *candidacy) good() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bootNow() < c.until
}

// lead acts as leader under token until told that it is over, or told to resign.
func (c *candidacy) lead(token uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	over := make(chan struct{})
	finish := sync.OnceFunc(func() { close(over) })
	if c.app.cfg.Mode != modeRenew {
		go c.hold(ctx, token, finish)
	}
	lease := c.app.cfg.Lease
	renew := time.NewTicker(lease / 4)
	defer renew.Stop()
	if c.app.cfg.Mode == modeTether {
		renew.Stop()
	}
	act := time.NewTicker(lease * 3 / 10)
	defer act.Stop()
	watch := time.NewTicker(lease / 10)
	defer watch.Stop()
	var renewing atomic.Bool
	ticked := bootNow()
	for n := 0; ; {
		select {
		case <-over:
			return
		case lost := <-c.lost:
			if lost == token {
				return
			}
		case to := <-c.resign:
			c.stepDown(token, to)
			return
		case <-renew.C:
			if renewing.CompareAndSwap(false, true) {
				go func() {
					defer renewing.Store(false)
					c.renew(ctx, token, finish)
				}()
			}
		case <-watch.C:
			now := bootNow()
			if late := time.Duration(now-ticked) - lease/10; late > starveNoted {
				_ = c.app.hub.send(message{Kind: kindLate, At: now, Until: int64(late)})
			}
			ticked = now
			c.silence()
		case <-act.C:
			n++
			c.act(token, n)
		}
	}
}

// act does what only a leader may: mostly fenced writes.
func (c *candidacy) act(token uint64, n int) {
	if !c.good() {
		return
	}
	go c.app.operate(kindAppend, c.election, token)
	switch rand.IntN(10) {
	case 0:
		go c.app.operate(kindRead, c.election, token)
	case 1:
		go c.verify(token)
	case 2:
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), c.app.cfg.Lease)
			defer cancel()
			g, err := c.app.call(ctx, "PUT", c.election+"/value", map[string]any{"token": token, "value": n})
			if err == nil && g.Status == http.StatusOK {
				c.extend(token, g.Deadline)
			}
		}()
	}
}

func (c *candidacy) verify(token uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	called := bootNow()
	g, err := c.app.call(ctx, "POST", c.election+"/verify", map[string]any{"token": token})
	if err == nil && (g.Status == http.StatusOK || g.Status == http.StatusConflict) {
		_ = c.app.hub.send(message{Kind: kindVerify, Election: c.election, Token: token, Call: called, At: bootNow(), OK: g.Status == http.StatusOK})
	}
}

func (c *candidacy) renew(ctx context.Context, token uint64, finish func()) {
	ctx, cancel := context.WithTimeout(ctx, c.app.cfg.Lease)
	defer cancel()
	g, err := c.app.call(ctx, "POST", c.election+"/renew", map[string]any{"token": token})
	switch {
	case err != nil:
	case g.Status == http.StatusOK:
		c.extend(token, g.Deadline)
	case g.Status == http.StatusConflict:
		c.refused(token)
		finish()
	}
}

// refused notes that the elector answered 409: news of a loss, as an event is.
func (c *candidacy) refused(token uint64) {
	ev := event{name: "lost"}
	ev.data.Token, ev.data.Reason = token, "refused"
	c.heard(ev)
}

// hold keeps the tether open. A stream that breaks without the word "lost" is an elector that died: the lease goes on, and so may
// the leadership, when the next process takes it up.
func (c *candidacy) hold(ctx context.Context, token uint64, finish func()) {
	for ctx.Err() == nil {
		status, err := c.app.stream(ctx, fmt.Sprintf("elections/%s/hold?token=%d", c.election, token), func() {}, func(ev event) {
			switch {
			case (ev.name == "grant" || ev.name == "beat") && ev.data.Role == "leader":
				c.extend(ev.data.Token, ev.data.Deadline)
			case ev.name == "grant", ev.name == "beat", ev.name == "suspended": // a stream that was opened after the suspension begins with it
				c.heard(ev)
			case ev.name == "lost":
				c.heard(ev)
				finish()
			}
		})
		conflict := err == nil && status == http.StatusConflict
		if conflict {
			c.refused(token)
		}
		if conflict || errors.Is(err, context.Canceled) {
			finish()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stepDown stops acting, and then says so.
func (c *candidacy) stepDown(token uint64, to string) {
	c.mu.Lock()
	_ = c.app.hub.send(message{Kind: kindEnd, Election: c.election, Token: token, At: bootNow()})
	c.token, c.until = 0, 0
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	g, err := c.app.call(ctx, "POST", c.election+"/resign", map[string]any{"token": token, "to": to})
	if err == nil && g.Error == "no_successor" {
		g, err = c.app.call(ctx, "POST", c.election+"/resign", map[string]any{"token": token})
	}
	_ = c.app.hub.send(message{Kind: kindResign, Election: c.election, Token: token, At: bootNow(), OK: err == nil && g.Released, Text: fmt.Sprint(g.Status, " ", g.Error)})
}
