package elector

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Standing is an election as anybody sees it who reaches Consul.
type Standing struct {
	App        string      `json:"app"`
	Election   string      `json:"election"`
	Leader     *LeaderInfo `json:"leader"` // null: nobody leads
	Session    string      `json:"session,omitempty"`
	Candidates []Candidacy `json:"candidates"`
	History    []Tenure    `json:"history,omitempty"` // leaderships that are over, the newest last
}

// Candidacy is an elector that would lead, or leads.
type Candidacy struct {
	Elector  string `json:"elector"`
	ID       string `json:"id"` // the application's candidate id
	Alloc    string `json:"alloc,omitempty"`
	Address  string `json:"address,omitempty"`
	Priority int    `json:"priority,omitempty"`
}

// Standings reads the elections of an application, or of all when app is "",
// once their index is above after; 0 returns at once. The result is ordered by
// application and election.
func Standings(ctx context.Context, client *consul.Client, app string, after uint64) ([]Standing, uint64, error) {
	prefix := kvRoot
	if app != "" {
		prefix += app + "/"
	}
	opts := &consul.QueryOptions{WaitIndex: after, WaitTime: time.Minute, RequireConsistent: after == 0}
	pairs, meta, err := client.KV().List(prefix, opts.WithContext(ctx))
	if err != nil {
		return nil, 0, fmt.Errorf("read the elections below %s: %w", prefix, err)
	}
	return standingsOf(pairs), meta.LastIndex, nil
}

func standingsOf(pairs consul.KVPairs) []Standing {
	standings := []Standing{}
	bids := map[string][]Candidacy{}
	for _, pair := range pairs {
		app, name, ok := strings.Cut(strings.TrimPrefix(pair.Key, kvRoot), "/")
		switch {
		case !ok || name == "" || strings.HasSuffix(name, "/"):
		case strings.HasPrefix(name, candidateFolder):
			c, ok := decodeCandidate(pair.Value)
			if !ok || pair.Session == "" { // the elector is gone
				continue
			}
			for election, bid := range c.Elections {
				at := app + "/" + election
				bids[at] = append(bids[at], Candidacy{Elector: c.ID, ID: bid.Candidate, Alloc: c.Alloc, Address: c.Address, Priority: bid.Priority})
			}
		case strings.HasPrefix(name, "."):
		default:
			s := Standing{App: app, Election: name, Session: pair.Session, Candidates: []Candidacy{}, History: decodeRecord(pair.Value).History}
			if pair.Session != "" {
				s.Leader = infoOf(Entry{Session: pair.Session, KeyIndex: KeyIndex{Create: pair.CreateIndex, Modify: pair.ModifyIndex}, Value: pair.Value})
			}
			standings = append(standings, s)
		}
	}
	for i := range standings {
		s := &standings[i]
		s.Candidates = append(s.Candidates, bids[s.App+"/"+s.Election]...)
		sort.Slice(s.Candidates, func(a, b int) bool { return s.Candidates[a].Elector < s.Candidates[b].Elector })
	}
	sort.Slice(standings, func(a, b int) bool {
		if standings[a].App != standings[b].App {
			return standings[a].App < standings[b].App
		}
		return standings[a].Election < standings[b].Election
	})
	return standings
}
