package coordinator

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"retinue/coordinator/worker"
	"retinue/internal/hint"
)

func complete(change func(*Settings)) Settings {
	s := DefaultSettings()
	s.Queue, s.Source.Broker, s.Worker.Command, s.Worker.Work, s.Output.Done = "q", "memory:", []string{"true"}, "/w", "/d"
	change(&s)
	return s
}

// Only a job each has to be worth it, and dead letters are the stage's own coordinators' to remove.
func TestWhatModesAndStagesChange(t *testing.T) {
	for mode, want := range map[string]time.Duration{ModeExec: 0, ModeDispatch: 10 * time.Second} {
		if c, err := complete(func(s *Settings) { s.Worker.Mode, s.Worker.Job = mode, "j" }).Config(); err != nil || c.Worth != want {
			t.Errorf("%s: %s, %v", mode, c.Worth, err)
		}
	}
	for stage, want := range map[string]time.Duration{"": 720 * time.Hour, "p": 0} {
		if c, err := complete(func(s *Settings) { s.Stage, s.DeadLetter.Keep = stage, "30d" }).Config(); err != nil || c.DeadKeep != want {
			t.Errorf("stage %q: %s, %v", stage, c.DeadKeep, err)
		}
	}
}

func TestSettings(t *testing.T) {
	if _, err := complete(func(*Settings) {}).Config(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Settings){
		"queue name":             func(s *Settings) { s.Queue = "a b" },
		"lease":                  func(s *Settings) { s.Source.Lease = "1ms" },
		"max_runtime":            func(s *Settings) { s.Worker.MaxRuntime = "long" },
		"slots":                  func(s *Settings) { s.Worker.Slots = 0 },
		"batches are for":        func(s *Settings) { s.Worker.Batch = 2 },
		"mode \"magic\"":         func(s *Settings) { s.Worker.Mode = "magic" },
		"without a URL":          func(s *Settings) { s.Worker.Mode = ModeHTTP },
		"without a command":      func(s *Settings) { s.Worker.Command = nil },
		"without a work folder":  func(s *Settings) { s.Worker.Work = "" },
		"without a folder":       func(s *Settings) { s.Output.Done = "" },
		"without one":            func(s *Settings) { s.Output.Commit = CommitJournal },
		"without a next stage":   func(s *Settings) { s.Output.Commit = CommitPublish },
		"commit \"hope\"":        func(s *Settings) { s.Output.Commit = "hope" },
		"is itself":              func(s *Settings) { s.Output.To = "q" },
		"backoff":                func(s *Settings) { s.Retry.Backoff = "5s" },
		"not_ready":              func(s *Settings) { s.Retry.NotReady = "5s..1s" },
		"attempts":               func(s *Settings) { s.Retry.Attempts = 0 },
		"on_fail":                func(s *Settings) { s.Order.OnFail = "cry" },
		"order key":              func(s *Settings) { s.Order.Key = "tenant" },
		"is not a rate":          func(s *Settings) { s.Rate.Queue = "10 per second" },
		"per_key":                func(s *Settings) { s.Rate.PerKey = "-1/s" },
		"items have no keys":     func(s *Settings) { s.Rate.PerKey = "5/s" },
		"priority classes":       func(s *Settings) { s.Priority.Classes = 11 },
		"dead-letter queue":      func(s *Settings) { s.DeadLetter.Queue = "q" },
		"format":                 func(s *Settings) { s.Worker.Format = "xml" },
		"to_classes":             func(s *Settings) { s.Output.ToClasses = 0 },
		"drain":                  func(s *Settings) { s.Drain = "-1s" },
		"not an address like":    func(s *Settings) { s.Input.Allow = []string{"ftp://x/y"} },
		"is not a size":          func(s *Settings) { s.Input.CacheSize = "big" },
		"it is http://HOST:PORT": func(s *Settings) { s.Worker.Mode, s.Worker.URL = ModeHTTP, "https://x/" },
		"cache_size is 0":        func(s *Settings) { s.Input.Allow, s.Input.CacheSize = []string{"https://x/y"}, "0" },
		"artifacts with commit":  func(s *Settings) { s.Output.Artifacts = "s3://b/out" },
		"outputs go to s3://": func(s *Settings) {
			s.Output.Commit, s.Output.Journal, s.Output.Artifacts = CommitJournal, "consul:q", "https://x/out"
		},
		"journal \"etcd:a\"":     func(s *Settings) { s.Output.Commit, s.Output.Journal = CommitJournal, "etcd:a" },
		"journal \"broker:a b\"": func(s *Settings) { s.Output.Commit, s.Output.Journal = CommitJournal, "broker:a b" },
		"journal: s3://":         func(s *Settings) { s.Output.Commit, s.Output.Journal = CommitJournal, "s3://b/../x" },
		"keep \"soon\"":          func(s *Settings) { s.Output.Keep = "soon" },
		"keep 30m0s":             func(s *Settings) { s.Output.Keep = "30m" },
		"max_runtime (48h0m0s)":  func(s *Settings) { s.Output.Keep, s.Worker.MaxRuntime = "1d", "48h" },
		"no records to keep":     func(s *Settings) { s.Output.Keep, s.Output.Commit, s.Output.To = "7d", CommitPublish, "n" },
		"dead letters for 30m0s": func(s *Settings) { s.DeadLetter.Keep = "30m" },
		"leave it out to keep":   func(s *Settings) { s.DeadLetter.Keep = "a month" },
		"gather \"a b\"":         func(s *Settings) { s.Output.Gather = "a b" },
		"gather with commit":     func(s *Settings) { s.Output.Gather, s.Output.Commit, s.Output.To = "g", CommitPublish, "n" },
		"split without":          func(s *Settings) { s.Output.Split = true },
		"crash attempts":         func(s *Settings) { s.Retry.CrashAttempts = 0 },
		"dispatch without a job": func(s *Settings) { s.Worker.Mode = ModeDispatch },
		"jobs at once":           func(s *Settings) { s.Worker.Mode, s.Worker.Job, s.Worker.Slots = ModeDispatch, "j", 1001 },
		"dispatch without a folder": func(s *Settings) {
			s.Worker.Mode, s.Worker.Job, s.Worker.Work, s.Output.To = ModeDispatch, "j", "", "next"
		},
		"heartbeat 20s in mode dispatch": func(s *Settings) { s.Worker.Mode, s.Worker.Job, s.Worker.Heartbeat = ModeDispatch, "j", "20s" },
		"and with --work": func(s *Settings) {
			s.Worker.Mode, s.Worker.Job, s.Worker.Work, s.Worker.Heartbeat, s.Output.Commit, s.Output.Journal = ModeDispatch, "j", "", "1m", CommitJournal, "consul:q"
		},
		"nowhere to":           func(s *Settings) { s.Divert.Over = "1MiB" },
		"over \"much\"":        func(s *Settings) { s.Divert.To, s.Divert.Over = "big", "much" },
		"divert to \"q\"":      func(s *Settings) { s.Divert.To = "q" },
		"divert to \"q-dead\"": func(s *Settings) { s.Divert.To = "q-dead" },
		"divert with on_fail":  func(s *Settings) { s.Divert.To, s.Order.Key = "big", "message" },
		"stage \"a b\"":        func(s *Settings) { s.Stage = "a b" },
		"next stage of q is":   func(s *Settings) { s.Stage, s.Output.To = "p", "p" },
		"use consul:NAME":      func(s *Settings) { s.Load = "consul" },
	} {
		_, err := complete(change).Config()
		if err == nil || !strings.Contains(err.Error()+" "+hint.Of(err), want) {
			t.Errorf("%s: %v (%s)", want, err, hint.Of(err))
		}
	}
}

// Workers that have folders look there for signs as often as heartbeat needs, and not at all without one.
func TestSignsAreLookedFor(t *testing.T) {
	for heartbeat, want := range map[string]time.Duration{"0s": 0, "2s": 500 * time.Millisecond, "10m": time.Second} {
		for _, mode := range []string{ModeExec, ModeDispatch} {
			s := complete(func(s *Settings) {
				s.Worker.Mode, s.Worker.Heartbeat, s.Worker.Work = mode, heartbeat, t.TempDir()
				s.Worker.Job, s.Worker.Nomad = "j", "http://127.0.0.1:1"
			})
			w, err := s.NewWorker(nil, func(string, bool) {})
			if err != nil {
				t.Fatal(err)
			}
			got := worker.Signs{}
			switch w := w.(type) {
			case *worker.Exec:
				got = w.Signs
			case *worker.Dispatch:
				got = w.Signs
			}
			if got.Every != want || got.Beat == nil {
				t.Errorf("%s with heartbeat %s: %+v", mode, heartbeat, got)
			}
			w.Close()
		}
	}
}

// The README's file is read, and says what the defaults say where it says the same.
func TestReadmeConfiguration(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```hcl\n(.*?)```").FindSubmatch(readme)
	s := DefaultSettings()
	if err := s.Decode("README.md", block[1]); err != nil {
		t.Fatalf("%v (%s)", err, hint.Of(err))
	}
	c, err := s.Config()
	if err != nil {
		t.Fatal(err)
	}
	if c.Queue != "thumbs" || c.Lane != LanePark || !c.Keys || c.Key != "tenant" || c.KeyRate != 10 || c.Classes != 3 || c.To != "resized" || c.MaxRuntime != 2*time.Hour {
		t.Errorf("%+v", c)
	}
	if d := DefaultSettings(); !reflect.DeepEqual(s.Retry, d.Retry) || !reflect.DeepEqual(s.ExitCodes, d.ExitCodes) {
		t.Errorf("the README shows other defaults: %+v %+v", s.Retry, s.ExitCodes)
	}
}

func TestSchedules(t *testing.T) {
	for text, want := range map[string]string{
		`schedule "a" { cron = "30 3 * * 1-5" }`: "",
		`schedule "a" {
    cron     = "@daily"
    zone     = "Europe/Berlin"
    catch_up = "1h"
    body     = "x"
    headers  = { a = "b" }
  }`: "",
		`schedule "a" {}`:                                                             "Missing required argument",
		`schedule "a b" { cron = "@daily" }`:                                          "its name",
		`schedule "a" { cron = "3 times a day" }`:                                     "cron",
		`schedule "a" { cron = "@every 5m" }`:                                         "another moment",
		`schedule "a" { cron = "TZ=UTC 1 1 * * *" }`:                                  "time zone in it",
		`schedule "a" { cron = "0 0 30 2 *" }`:                                        "never comes",
		"schedule \"a\" {\ncron = \"@daily\"\nzone = \"Bonn\"\n}":                     "zone \"Bonn\"",
		"schedule \"a\" {\ncron = \"@daily\"\ncatch_up = \"1y\"\n}":                   "catch_up",
		"schedule \"a\" {\ncron = \"@daily\"\nheaders = { \"a b\" = \"x\" }\n}":       "header name",
		"schedule \"a\" { cron = \"@daily\" }\nschedule \"a\" { cron = \"@hourly\" }": "two schedules",
	} {
		s := complete(func(*Settings) {})
		err := s.Decode("q.hcl", []byte("work_queue \"q\" {\n  "+text+"\n}\n"))
		if err == nil {
			_, err = s.Config()
		}
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || hint.Of(err) == "") {
			t.Errorf("%s: %v (%s)", text, err, hint.Of(err))
		}
	}
	s := complete(func(s *Settings) { s.Output.Commit, s.Output.To = CommitPublish, "n" })
	s.Schedules = []ScheduleSettings{{Name: "a", Cron: "@daily"}}
	if _, err := s.Config(); err == nil || !strings.Contains(err.Error(), "commit publish") {
		t.Errorf("%v", err)
	}
}

// One file will do for the coordinators of both queues of a stage.
func TestDivertedSettings(t *testing.T) {
	text := `work_queue "q" {
  output { keep = "7d" }
  divert {
    to   = "big"
    over = "100MiB"
  }
  schedule "a" { cron = "@daily" }
}`
	for queue, want := range map[string]Config{"q": {Queue: "q", Divert: "big", DivertOver: 100 << 20, Keep: 7 * 24 * time.Hour}, "big": {Queue: "big", Stage: "q"}} {
		s := complete(func(*Settings) {})
		if err := s.Decode("q.hcl", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if queue != "q" {
			s.Queue, s.Stage = queue, "q"
		}
		c, err := s.Config()
		if err != nil || c.Queue != want.Queue || c.Stage != want.Stage || c.stage() != "q" || c.Divert != want.Divert || c.DivertOver != want.DivertOver || c.Keep != want.Keep || c.Dead != "q-dead" || len(c.Schedules) != len(want.Divert)/3 {
			t.Errorf("%s: %+v, %v", queue, c, err)
		}
	}
}

func TestConfigurationErrorsShowTheLine(t *testing.T) {
	s := DefaultSettings()
	err := s.Decode("q.hcl", []byte("work_queue \"q\" {\n  worker { slotz = 3 }\n}\n"))
	if err == nil || !strings.Contains(err.Error(), "q.hcl:2:") || !strings.Contains(err.Error(), "slotz") {
		t.Errorf("%v", err)
	}
	for _, text := range []string{"", "work_queue \"a\" {}\nwork_queue \"b\" {}", "scatter \"x\" {}", "work_queue {}", "work_queue \"a\" {"} {
		if err := s.Decode("q.hcl", []byte(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
	// What a block does not say stays.
	if err := s.Decode("q.hcl", []byte("work_queue \"q\" {\n  worker { batch = 7 }\n}\n")); err != nil || s.Worker.Slots != 4 || s.Worker.Batch != 7 || s.Retry.Attempts != 5 {
		t.Errorf("%v %+v", err, s.Worker)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("work_queue \"q\" {\n  worker { slots = 3 }\n  rate { queue = \"5/s\" }\n}\n")
	f.Add("work_queue \"q\" {\n  schedule \"a\" { cron = \"1-5/2 * * * MON\" }\n  output { keep = \"7d\" }\n  input { cache_size = \"1.5GiB\" }\n}\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := complete(func(*Settings) {})
		if err := s.Decode("x.hcl", []byte(text)); err != nil {
			return
		}
		if c, err := s.Config(); err == nil && c.Validate() != nil {
			t.Errorf("%s: %v", text, c.Validate())
		}
	})
}

func FuzzParseLines(f *testing.F) {
	f.Add([]byte(`{"id":"a","body":"x","delay":"5s"}` + "\n" + `{"body_base64":"/w=="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		lines, err := ParseLines(data)
		if err != nil {
			return
		}
		for _, l := range lines {
			if out, err := l.out(); err == nil && (out.ID == "" || out.Delay < 0 || strings.Contains(out.ID, "~")) {
				t.Errorf("%s: %+v", data, out)
			}
		}
	})
}

// A journal has a name, and with it a place that its coordinators alone may be given.
func TestJournalPrefix(t *testing.T) {
	for journal, want := range map[string]string{"consul": "retinue/queues/", "consul:thumbs": "retinue/queues/thumbs/", "consul:": "", "consul:a/b": "", "consul:..": "", "etcd": "", "etcd:a": "", "broker:a": "", "s3://b/x": ""} {
		if got, err := JournalPrefix(journal); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", journal, got, err)
		}
	}
	if rules := ACL("thumbs"); !strings.Contains(rules, `key_prefix "retinue/queues/thumbs/"`) {
		t.Errorf("the rules are for another journal:\n%s", rules)
	}
}
