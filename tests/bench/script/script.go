// Package script is what the leaves of the scatter/gather benchmark, and the
// program that runs it, agree on: how a request says what a leaf is to do, which
// calls are slow, and how leaves tell where they are and what they saw.
//
// It promises that the slow calls are a function of seed, request, shard and
// replica alone: every contender meets the same ones, whatever its timing.
package script

import (
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"os"
	"strconv"
	"time"
)

// Fleet is where the leaves of one process are.
type Fleet struct {
	Leaves  []string `json:"leaves"`  // base URLs, by shard
	Control string   `json:"control"` // base URL of the process itself
}

// Call is one leaf call that hung until it was cancelled or over.
type Call struct {
	N         uint64 `json:"n"`
	Shard     int    `json:"shard"`
	Began     int64  `json:"began"` // nanoseconds of the machine's monotonic clock
	Ended     int64  `json:"ended"`
	Cancelled bool   `json:"cancelled"`
}

// Script is what a request asks of every leaf it reaches.
type Script struct {
	N     uint64        // of the request
	Label int           // under which the call is counted
	Seed  uint64        // of the slow calls
	Slow  float64       // share of calls that are slow
	Add   time.Duration // what a slow one takes longer
	Vary  bool          // Add is the mean: a half of it, and what is exponentially distributed with the other half as its mean
	Hang  time.Duration // how long every call takes, unless it is cancelled
	Size  int           // of the answer; 0: Body
}

// Labels is how many labels there may be.
const Labels = 16

// Body is how long an answer is that a script does not size.
const Body = 1 << 10

// Query is the script as a request's query; empty when nothing is asked.
func (s Script) Query() string {
	if s == (Script{}) {
		return ""
	}
	v := url.Values{}
	set := func(key, value string, present bool) {
		if present {
			v.Set(key, value)
		}
	}
	set("n", strconv.FormatUint(s.N, 10), true)
	set("label", strconv.Itoa(s.Label), s.Label != 0)
	set("seed", strconv.FormatUint(s.Seed, 10), s.Slow > 0)
	set("slow", strconv.FormatFloat(s.Slow, 'g', -1, 64), s.Slow > 0)
	set("add", s.Add.String(), s.Slow > 0)
	set("vary", strconv.FormatBool(s.Vary), s.Slow > 0 && s.Vary)
	set("hang", s.Hang.String(), s.Hang > 0)
	set("size", strconv.Itoa(s.Size), s.Size > 0)
	return "?" + v.Encode()
}

// Parse reads a query, without its question mark.
func Parse(query string) (s Script, err error) {
	if query == "" {
		return s, nil
	}
	v, err := url.ParseQuery(query)
	if err != nil {
		return s, err
	}
	for key, values := range v {
		value := values[0]
		switch key {
		case "n":
			s.N, err = strconv.ParseUint(value, 10, 64)
		case "label":
			s.Label, err = strconv.Atoi(value)
		case "seed":
			s.Seed, err = strconv.ParseUint(value, 10, 64)
		case "slow":
			s.Slow, err = strconv.ParseFloat(value, 64)
		case "add":
			s.Add, err = time.ParseDuration(value)
		case "vary":
			s.Vary, err = strconv.ParseBool(value)
		case "hang":
			s.Hang, err = time.ParseDuration(value)
		case "size":
			s.Size, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("no such word")
		}
		if err != nil {
			return s, fmt.Errorf("%s=%s: %w", key, value, err)
		}
	}
	if s.Label < 0 || s.Label >= Labels || s.Size < 0 || s.Size > 64<<20 {
		return s, fmt.Errorf("%q is out of range", query)
	}
	return s, nil
}

// IsSlow says whether the call of this request to a replica of a shard is a slow one.
func (s Script) IsSlow(shard, replica int) bool {
	return s.Slow > 0 && share(s.draw(shard, replica)) < s.Slow
}

// SlowBy is what the call takes longer; 0 unless it is a slow one.
func (s Script) SlowBy(shard, replica int) time.Duration {
	switch {
	case !s.IsSlow(shard, replica):
		return 0
	case s.Vary:
		return s.Add/2 - time.Duration(float64(s.Add/2)*math.Log(1-share(mix(^s.draw(shard, replica)))))
	}
	return s.Add
}

// draw is the number of chance of one call.
func (s Script) draw(shard, replica int) uint64 {
	h := mix(s.Seed)
	for _, x := range []uint64{s.N, uint64(shard), uint64(replica)} {
		h = mix(h ^ x)
	}
	return h
}

// share is a number of chance between 0 and 1.
func share(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// Hopeless says whether both replicas of some shard are slow for this request: no choice among two can make it fast.
func (s Script) Hopeless(shards int) bool {
	for shard := range shards {
		if s.IsSlow(shard, 0) && s.IsSlow(shard, 1) {
			return true
		}
	}
	return false
}

// mix is the finaliser of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Tell writes v to a file as JSON, whole or not at all: who waits for the file may read it at once.
func Tell(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Hear reads what Tell wrote.
func Hear(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
