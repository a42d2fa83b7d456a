package leaderelection

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// appLease is how long the application may hang before another leads.
const appLease = 2 * time.Second

// App is the demonstration application: an HTTP service of which one replica,
// the leader, writes to a store. It finds out whether it leads from the elector
// on localhost, and sends its fencing token along with every write.
type App struct {
	ID       string       // names this replica, such as its allocation ID
	Listen   string       // address to serve on, host:port
	Elector  string       // RETINUE_ELECTOR_ADDR
	Election string       // the election that decides who writes
	Store    string       // base address of the store; empty: writes are only acknowledged
	Log      hclog.Logger // state changes
}

// replica is the running App: what the campaign learns and the handlers use.
type replica struct {
	App
	elector *elector
	http    *http.Client

	writing sync.RWMutex // held for reading while a write is under way

	mu       sync.Mutex
	token    uint64        // 0: not leading
	deadline time.Time     // the token may be used until then
	stepDown chan struct{} // ends the current leadership
}

// Run serves and campaigns until the context ends.
func (a App) Run(ctx context.Context) error {
	e, err := newElector(a.Elector)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("listen for the application: %w", err)
	}
	r := &replica{App: a, elector: e, http: &http.Client{Timeout: time.Second}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", r.status)
	mux.HandleFunc("POST /write", r.write)
	mux.HandleFunc("POST /step-down", r.resign)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go r.campaign(ctx)
	go func() {
		<-ctx.Done()
		_ = srv.Close()
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the application: %w", err)
	}
	return nil
}

// campaign stands for election again and again, and leads whenever elected.
func (r *replica) campaign(ctx context.Context) {
	for ctx.Err() == nil {
		asked := time.Now()
		g, err := r.elector.become(ctx, r.Election, r.ID, appLease, 30*time.Second)
		var no *refusal
		switch {
		case err == nil:
			r.lead(ctx, g, asked)
		case errors.As(err, &no) && no.status == http.StatusConflict: // another leads; ask again
		case ctx.Err() == nil:
			r.Log.Warn("the elector does not answer", "error", err)
			sleep(ctx, 200*time.Millisecond)
		}
	}
}

// lead uses a grant until it is lost, resigned or asked back.
func (r *replica) lead(ctx context.Context, g grant, asked time.Time) {
	stepDown := make(chan struct{}, 1)
	r.mu.Lock()
	r.token, r.deadline, r.stepDown = g.Token, asked.Add(g.remaining()), stepDown
	r.mu.Unlock()
	r.Log.Info("leading", "election", r.Election, "token", g.Token)

	held, release := context.WithCancel(ctx)
	ended := make(chan error, 2)
	go func() { ended <- r.hold(held, g.Token, func() { ask(stepDown) }) }()
	go func() { ended <- r.renew(held, g) }()
	var cause error
	open := 2
	select {
	case cause = <-ended:
		open--
	case <-stepDown:
	}

	// First end the writes, then say so: the successor may start as soon as the elector knows.
	r.stopWriting()
	farewell, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer done()
	if err := r.elector.resign(farewell, r.Election, g.Token); err != nil {
		cause = errors.Join(cause, err)
	}
	release()
	for ; open > 0; open-- {
		<-ended
	}
	r.Log.Info("leading no more", "election", r.Election, "token", g.Token, "cause", cause)
}

// hold keeps the tether until leadership is lost. An elector that
// restarts takes up the leadership it had, so a broken connection ends nothing
// before the deadline does.
func (r *replica) hold(ctx context.Context, token uint64, stepDown func()) error {
	for {
		err := r.elector.hold(ctx, r.Election, token, stepDown)
		var no *refusal
		if err == nil || errors.As(err, &no) && no.status == http.StatusConflict || r.leading() == 0 {
			return err
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// renew shows the elector that this process is not only alive but at work. It
// returns when leadership is lost. The first renewal is at once: become may have
// waited for long, so what its answer grants, counted from its request, is over.
func (r *replica) renew(ctx context.Context, g grant) error {
	for {
		asked := time.Now()
		fresh, err := r.elector.renew(ctx, r.Election, g.Token)
		var no *refusal
		switch {
		case err == nil:
			r.mu.Lock()
			if r.token == fresh.Token {
				r.deadline = asked.Add(fresh.remaining())
			}
			r.mu.Unlock()
		case errors.As(err, &no) && no.status == http.StatusConflict:
			return err
		}
		if !sleep(ctx, time.Duration(g.LeaseMS)*time.Millisecond/3) {
			return ctx.Err()
		}
	}
}

// stopWriting takes the token away and waits for the writes that use it.
func (r *replica) stopWriting() {
	r.mu.Lock()
	r.token, r.stepDown = 0, nil
	r.mu.Unlock()
	r.writing.Lock()
	defer r.writing.Unlock()
}

// leading returns the token while it may be used, else 0.
func (r *replica) leading() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !time.Now().Before(r.deadline) {
		return 0
	}
	return r.token
}

func (r *replica) status(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"id": r.ID, "election": r.Election, "token": r.leading()})
}

// write stores a numbered write under the current token: 200 with the token,
// 409 when this replica does not lead, 412 when the store has seen a newer leader.
func (r *replica) write(w http.ResponseWriter, req *http.Request) {
	var body struct {
		Seq uint64 `json:"seq"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, 1<<16)).Decode(&body); err != nil {
		answer(w, http.StatusBadRequest, map[string]any{"error": fmt.Sprintf("decode write: %v", err)})
		return
	}
	r.writing.RLock()
	defer r.writing.RUnlock()
	token := r.leading()
	if token == 0 {
		answer(w, http.StatusConflict, map[string]any{"error": "not the leader"})
		return
	}
	status, err := r.store(req.Context(), Write{Token: token, Writer: r.ID, Seq: body.Seq})
	if err != nil {
		answer(w, http.StatusBadGateway, map[string]any{"error": err.Error()})
		return
	}
	answer(w, status, map[string]any{"token": token})
}

func (r *replica) store(ctx context.Context, write Write) (status int, err error) {
	if r.Store == "" {
		return http.StatusOK, nil
	}
	raw, err := json.Marshal(write)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Store+"/writes", bytes.NewReader(raw))
	if err != nil {
		return 0, err
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return 0, fmt.Errorf("store: %w", err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, nil
}

// resign ends the current leadership in good order: 200 with the token that ends, 409 when not leading.
func (r *replica) resign(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	token, stepDown := r.token, r.stepDown
	r.mu.Unlock()
	if token == 0 {
		answer(w, http.StatusConflict, map[string]any{"error": "not the leader"})
		return
	}
	ask(stepDown)
	answer(w, http.StatusOK, map[string]any{"token": token})
}

// ask asks once for a step-down; asking again changes nothing.
func ask(stepDown chan<- struct{}) {
	select {
	case stepDown <- struct{}{}:
	default:
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
