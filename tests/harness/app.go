package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// App is the demonstration application as a process of its own, on the host of
// the elector that it campaigns through.
type App struct {
	*Process
	http *http.Client
}

// appPort is the application's port; each host has one application.
const appPort = "8080"

// RunApp starts the application and waits until it answers.
func RunApp(t T, e *Elector, name string) *App {
	t.Helper()
	p := Start(t, Spec{
		Name: "app-" + name,
		Path: RetinueBinary(t),
		Args: []string{"demo-app", "leader-election"},
		Env:  []string{"RETINUE_ELECTOR_ADDR=" + e.Address, "NOMAD_PORT_http=" + appPort, "NOMAD_ALLOC_ID=" + name},
		Host: e.Host(),
	})
	a := &App{Process: p, http: &http.Client{Transport: e.Host().Transport()}}
	Eventually(t, 10*time.Second, p.spec.Name+" answers", func(ctx context.Context) error {
		_, err := a.Token(ctx)
		return err
	})
	return a
}

// Token is the fencing token under which the application acts now; 0 when it does not lead.
func (a *App) Token(ctx context.Context) (uint64, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://127.0.0.1:"+appPort+"/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the application answers %s", resp.Status)
	}
	var status struct {
		Token uint64 `json:"token"`
	}
	return status.Token, json.NewDecoder(resp.Body).Decode(&status)
}
