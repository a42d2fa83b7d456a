package coordinator

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"

	"retinue/coordinator/worker"
	"retinue/internal/hint"
)

// Settings are the configuration of a coordinator as people write it, in flags or in a file. Config and the parts are what they mean.
type Settings struct {
	Queue      string              `hcl:"queue,label"`
	Listen     []string            `hcl:"listen,optional"`
	Drain      string              `hcl:"drain_timeout,optional"`
	Load       string              `hcl:"load,optional"`
	Stage      string              `hcl:"stage,optional"`
	Source     *SourceSettings     `hcl:"source,block"`
	Worker     *WorkerSettings     `hcl:"worker,block"`
	Input      *InputSettings      `hcl:"input,block"`
	Retry      *RetrySettings      `hcl:"retry,block"`
	ExitCodes  *ExitCodeSettings   `hcl:"exit_codes,block"`
	Order      *OrderSettings      `hcl:"order,block"`
	Rate       *RateSettings       `hcl:"rate,block"`
	Priority   *PrioritySettings   `hcl:"priority,block"`
	Output     *OutputSettings     `hcl:"output,block"`
	DeadLetter *DeadLetterSettings `hcl:"dead_letter,block"`
	Divert     *DivertSettings     `hcl:"divert,block"`
	Schedules  []ScheduleSettings  `hcl:"schedule,block"`
}

// SourceSettings say where the broker is.
type SourceSettings struct {
	Broker string `hcl:"broker,optional"`
	Lease  string `hcl:"lease,optional"`
}

// WorkerSettings say who does the work, and how.
type WorkerSettings struct {
	Mode       string   `hcl:"mode,optional"`
	Command    []string `hcl:"command,optional"`
	URL        string   `hcl:"url,optional"`
	Format     string   `hcl:"format,optional"`
	Work       string   `hcl:"work,optional"`
	Slots      int      `hcl:"slots,optional"`
	Batch      int      `hcl:"batch,optional"`
	MaxRuntime string   `hcl:"max_runtime,optional"`
	Heartbeat  string   `hcl:"heartbeat,optional"`
	Grace      string   `hcl:"grace,optional"`
	Job        string   `hcl:"job,optional"`
	Nomad      string   `hcl:"nomad,optional"`
	// Outstanding bounds the children of Job, whichever coordinator made them.
	Outstanding int `hcl:"outstanding,optional"`
}

// InputSettings say where inputs by reference may lie.
type InputSettings struct {
	Allow     []string `hcl:"allow,optional"`
	Cache     string   `hcl:"cache,optional"`
	CacheSize string   `hcl:"cache_size,optional"`
}

// RetrySettings say what happens to failed attempts.
type RetrySettings struct {
	Attempts      int    `hcl:"attempts,optional"`
	Backoff       string `hcl:"backoff,optional"`
	CrashAttempts int    `hcl:"crash_attempts,optional"`
	CrashBackoff  string `hcl:"crash_backoff,optional"`
	NotReady      string `hcl:"not_ready,optional"`
	Infra         string `hcl:"infra,optional"`
}

// ExitCodeSettings say what exit codes mean.
type ExitCodeSettings struct {
	Ack   []int `hcl:"ack,optional"`
	Retry []int `hcl:"retry,optional"`
	Dead  []int `hcl:"dead,optional"`
	Drop  []int `hcl:"drop,optional"`
	Pause []int `hcl:"pause,optional"`
}

// OrderSettings say which items wait for each other.
type OrderSettings struct {
	Key    string `hcl:"key,optional"`
	OnFail string `hcl:"on_fail,optional"`
	Hold   int    `hcl:"hold,optional"`
	// Partitions keep the order over all coordinators: each is taken by one of them at a time.
	Partitions int `hcl:"partitions,optional"`
}

// RateSettings bound how often the worker is called.
type RateSettings struct {
	Queue  string `hcl:"queue,optional"`
	PerKey string `hcl:"per_key,optional"`
	Burst  int    `hcl:"burst,optional"`
}

// PrioritySettings say how many classes there are.
type PrioritySettings struct {
	Classes int    `hcl:"classes,optional"`
	Aging   string `hcl:"aging,optional"`
}

// OutputSettings say where outputs go.
type OutputSettings struct {
	To        string `hcl:"to,optional"`
	ToClasses int    `hcl:"to_classes,optional"`
	// ToPartitions are the partitions of the next stage.
	ToPartitions int    `hcl:"to_partitions,optional"`
	Commit       string `hcl:"commit,optional"`
	Done         string `hcl:"done,optional"`
	Sync         bool   `hcl:"sync,optional"`
	Journal      string `hcl:"journal,optional"`
	Artifacts    string `hcl:"artifacts,optional"`
	Split        bool   `hcl:"split,optional"`
	Gather       string `hcl:"gather,optional"`
	Keep         string `hcl:"keep,optional"`
}

// DeadLetterSettings name the queue of dead letters, and say how long they stay there.
type DeadLetterSettings struct {
	Queue string `hcl:"queue,optional"`
	Keep  string `hcl:"keep,optional"`
}

// DivertSettings say which items are for workers of another kind.
type DivertSettings struct {
	To   string `hcl:"to,optional"`
	Over string `hcl:"over,optional"`
}

// The modes of workers and the kinds of commit.
const (
	ModeExec  = "exec"
	ModeWatch = "watch"
	ModeHTTP  = "http"
	ModeLines = "lines"
	// ModeDispatch makes a Nomad job of each item.
	ModeDispatch = "dispatch"

	CommitRename  = "rename"
	CommitJournal = "journal"
	CommitPublish = "publish"
	CommitNone    = "none"
)

// DefaultSettings are what a coordinator does when nothing is said.
func DefaultSettings() Settings {
	codes := worker.DefaultExitCodes()
	return Settings{
		Drain:      "20s",
		Source:     &SourceSettings{Lease: "10s"},
		Worker:     &WorkerSettings{Mode: ModeExec, Format: "binary", Slots: 4, Batch: 1, MaxRuntime: "1h", Heartbeat: "0s", Grace: "5s", Outstanding: worker.MaxOutstanding},
		Input:      &InputSettings{CacheSize: "1GiB"},
		Retry:      &RetrySettings{Attempts: 5, Backoff: "1s..5m", CrashAttempts: 2, CrashBackoff: "500ms..1m", NotReady: "1s..30s", Infra: "200ms..30s"},
		ExitCodes:  &ExitCodeSettings{Ack: codes.Ack, Retry: codes.Retry, Dead: codes.Dead, Drop: codes.Drop, Pause: codes.Pause},
		Order:      &OrderSettings{OnFail: string(LaneBlock), Hold: 64},
		Rate:       &RateSettings{Burst: 1},
		Priority:   &PrioritySettings{Classes: 1, Aging: "1m"},
		Output:     &OutputSettings{ToClasses: 1, Commit: CommitRename, Sync: true},
		DeadLetter: &DeadLetterSettings{},
		Divert:     &DivertSettings{},
	}
}

// ReadFile reads a configuration file over the settings there are.
func (s *Settings) ReadFile(path string) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return hint.Wrap(fmt.Errorf("read the configuration: %w", err), "--config names an HCL file with one work_queue block")
	}
	return s.Decode(filepath.Base(path), src)
}

// Decode reads one `work_queue "NAME" { ... }` block over the settings there are. What the block does not say stays as it is.
func (s *Settings) Decode(name string, src []byte) error {
	file, diags := hclparse.NewParser().ParseHCL(src, name)
	if diags.HasErrors() {
		return diagnose(diags, src)
	}
	content, diags := file.Body.Content(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "work_queue", LabelNames: []string{"queue"}}}})
	if diags.HasErrors() {
		return diagnose(diags, src)
	}
	if len(content.Blocks) != 1 {
		return hint.Wrap(fmt.Errorf("%s has %d work_queue blocks", name, len(content.Blocks)), "write exactly one: work_queue \"NAME\" { ... }")
	}
	block := content.Blocks[0]
	if diags := gohcl.DecodeBody(block.Body, nil, s); diags.HasErrors() {
		return diagnose(diags, src)
	}
	s.Queue = block.Labels[0]
	return nil
}

// diagnose turns HCL's first complaint into an error that shows the line.
func diagnose(diags hcl.Diagnostics, src []byte) error {
	d := diags.Errs()[0]
	var first *hcl.Diagnostic
	if !errors.As(d, &first) || first.Subject == nil {
		return d
	}
	line := ""
	if lines := strings.Split(string(src), "\n"); first.Subject.Start.Line-1 < len(lines) && first.Subject.Start.Line > 0 {
		line = strings.TrimSpace(lines[first.Subject.Start.Line-1])
	}
	return hint.Wrap(fmt.Errorf("%s:%d: %s: %s", first.Subject.Filename, first.Subject.Start.Line, first.Summary, line), "%s", strings.TrimSpace(first.Detail))
}

// Config reads the settings of the machine.
func (s Settings) Config() (Config, error) {
	p := &reader{}
	c := Config{Queue: s.Queue, Lease: p.duration("lease", s.Source.Lease), Slots: s.Worker.Slots, Batch: s.Worker.Batch, Keyed: s.Order.Hold,
		MaxRuntime: p.duration("max_runtime", s.Worker.MaxRuntime), Heartbeat: p.duration("heartbeat", s.Worker.Heartbeat),
		Attempts: s.Retry.Attempts, CrashAttempts: s.Retry.CrashAttempts, Retry: p.backoff("backoff", s.Retry.Backoff), CrashRetry: p.backoff("crash_backoff", s.Retry.CrashBackoff),
		NotReady: p.backoff("not_ready", s.Retry.NotReady), Infra: p.backoff("infra", s.Retry.Infra), Lane: Lane(s.Order.OnFail),
		Rate: p.rate("rate", s.Rate.Queue), KeyRate: p.rate("per_key", s.Rate.PerKey), Burst: max(1, s.Rate.Burst), KeyBurst: max(1, s.Rate.Burst),
		Classes: s.Priority.Classes, Aging: p.duration("aging", s.Priority.Aging), To: s.Output.To, ToClasses: s.Output.ToClasses, Partitions: s.Order.Partitions, ToPartitions: s.Output.ToPartitions, Dead: s.DeadLetter.Queue,
		Stage: s.Stage, Divert: s.Divert.To, DivertOver: p.size("over", s.Divert.Over), Gather: s.Output.Gather, Split: s.Output.Split, Keep: p.keep(s.Output.Keep), DeadKeep: p.keep(s.DeadLetter.Keep), Drain: p.duration("drain_timeout", s.Drain)}
	if c.Dead == "" {
		c.Dead = c.stage() + "-dead"
	}
	switch key, isHeader := strings.CutPrefix(s.Order.Key, "header:"); {
	case isHeader:
		c.Keys, c.Key = true, key
	case s.Order.Key == "message":
		c.Keys = true
	case s.Order.Key != "":
		p.fail(hint.Wrap(fmt.Errorf("order key %q", s.Order.Key), "use message (the message's own key) or header:NAME"))
	}
	names := map[string]bool{}
	for _, block := range s.Schedules {
		schedule, err := block.schedule()
		switch {
		case err != nil:
			p.fail(err)
		case names[block.Name]:
			p.fail(hint.Wrap(fmt.Errorf("two schedules are called %q", block.Name), "the name is in the ids of their items"))
		case s.Output.Commit != CommitRename && s.Output.Commit != CommitJournal:
			p.fail(hint.Wrap(fmt.Errorf("schedule %q with commit %s", block.Name, s.Output.Commit), "several coordinators publish a tick once because of its record; use commit rename or journal"))
		}
		names[block.Name] = true
		c.Schedules = append(c.Schedules, schedule)
	}
	if s.Worker.Mode == ModeDispatch {
		c.Worth = dispatchWorth
	}
	if c.stage() != c.Queue { // the file of the stage's own coordinators will do: these are theirs alone
		c.Schedules, c.Keep, c.DeadKeep = nil, 0, 0
		if c.Divert == c.Queue {
			c.Divert, c.DivertOver = "", 0
		}
	}
	if p.err != nil {
		return c, p.err
	}
	return c, errors.Join(c.Validate(), s.check(c.Heartbeat))
}

// dispatchWorth is how long an item should take to be worth a job of its own: one takes about a second to begin, and Nomad's servers begin ten in that time.
const dispatchWorth = 10 * time.Second

// minDispatchBeat is the shortest heartbeat of a child: until it runs, each look at Nomad counts as one.
const minDispatchBeat = 30 * time.Second

// check says what is wrong with the settings of the parts.
func (s Settings) check(heartbeat time.Duration) error {
	files := s.Worker.Mode == ModeExec || s.Worker.Mode == ModeWatch
	switch {
	case s.Worker.Mode != ModeExec && s.Worker.Mode != ModeWatch && s.Worker.Mode != ModeHTTP && s.Worker.Mode != ModeLines && s.Worker.Mode != ModeDispatch:
		return hint.Wrap(fmt.Errorf("worker mode %q", s.Worker.Mode), "use exec, watch, http, lines or dispatch")
	case s.Worker.Mode == ModeDispatch && s.Worker.Job == "":
		return hint.Wrap(errors.New("worker mode dispatch without a job"), "give --job NAME, a parameterized job of this task's namespace")
	case s.Worker.Mode == ModeDispatch && s.Worker.Slots > worker.MaxOutstanding:
		return hint.Wrap(fmt.Errorf("%d jobs at once", s.Worker.Slots), "Nomad's servers keep all of them in memory: use %d slots at most", worker.MaxOutstanding)
	case s.Worker.Outstanding < 1 || s.Worker.Outstanding > worker.MaxOutstanding:
		return hint.Wrap(fmt.Errorf("%d jobs outstanding", s.Worker.Outstanding), "Nomad's servers keep all of them in memory: use 1 to %d", worker.MaxOutstanding)
	case s.Worker.Mode == ModeDispatch && s.Worker.Work == "" && s.Output.To != "":
		return hint.Wrap(errors.New("worker mode dispatch without a folder, and a next stage"), "give --work FOLDER, shared by all nodes: without one only exit codes come back")
	case (s.Worker.Mode == ModeExec || s.Worker.Mode == ModeLines) && len(s.Worker.Command) == 0:
		return hint.Wrap(fmt.Errorf("worker mode %s without a command", s.Worker.Mode), "put it behind --, or write command = [...]")
	case s.Worker.Mode == ModeHTTP && s.Worker.URL == "":
		return hint.Wrap(errors.New("worker mode http without a URL"), "give --url http://127.0.0.1:PORT/ or unix:///path/to/socket")
	case s.Worker.Mode == ModeHTTP && worker.CheckAddress(s.Worker.URL) != nil:
		return hint.Wrap(worker.CheckAddress(s.Worker.URL), "the worker is beside the coordinator: give --url http://127.0.0.1:PORT/ or unix:///path/to/socket")
	case s.Worker.Mode != ModeHTTP && s.Worker.Mode != ModeDispatch && s.Worker.Work == "":
		return hint.Wrap(fmt.Errorf("worker mode %s without a work folder", s.Worker.Mode), "give --work FOLDER; inside a Nomad task it is $NOMAD_ALLOC_DIR/data/wq")
	case s.Worker.Mode == ModeDispatch && heartbeat > 0 && (s.Worker.Work == "" || heartbeat < minDispatchBeat):
		return hint.Wrap(fmt.Errorf("heartbeat %s in mode dispatch", heartbeat), "%s or more, as Nomad is asked every ten seconds whether a child has begun, and with --work: a child shows progress in its folder", minDispatchBeat)
	case (files || s.Worker.Mode == ModeDispatch) && s.Worker.Batch > 1:
		return hint.Wrap(fmt.Errorf("a batch of %d in mode %s", s.Worker.Batch, s.Worker.Mode), "batches are for http and lines")
	case s.Worker.Format != "binary" && s.Worker.Format != "structured":
		return hint.Wrap(fmt.Errorf("format %q", s.Worker.Format), "use binary or structured")
	case s.Output.Commit == CommitRename && s.Output.Done == "":
		return hint.Wrap(errors.New("commit by rename without a folder"), "give --done FOLDER, shared by all nodes; without one use --commit journal, publish or none")
	case s.Output.Commit == CommitJournal && s.Output.Journal == "":
		return hint.Wrap(errors.New("commit in a journal without one"), "give --journal consul:NAME, broker:NAME or s3://BUCKET/PREFIX")
	case s.Output.Commit != CommitRename && s.Output.Commit != CommitJournal && s.Output.Commit != CommitPublish && s.Output.Commit != CommitNone:
		return hint.Wrap(fmt.Errorf("commit %q", s.Output.Commit), "use rename, journal, publish or none")
	case s.Output.Commit == CommitPublish && s.Output.To == "":
		return hint.Wrap(errors.New("commit by publication without a next stage"), "give --to QUEUE")
	case s.Output.ToClasses < 1 || s.Output.ToClasses > 10:
		return fmt.Errorf("to_classes %d is not between 1 and 10", s.Output.ToClasses)
	case s.Order.Partitions > 0 && s.Load == "":
		return hint.Wrap(errors.New("partitions, and nowhere to agree on who takes which"), "give --load consul:NAME, NAME being the job, the same for all coordinators of the queue")
	case s.Order.Hold < 0 || s.Order.Hold > 100000:
		return fmt.Errorf("hold %d is not between 0 and 100000", s.Order.Hold)
	}
	if s.Load != "" {
		if _, err := LoadPrefix(s.Load); err != nil {
			return err
		}
	}
	if d, err := time.ParseDuration(s.Worker.Grace); err != nil || d < 0 {
		return fmt.Errorf("grace %q is not a duration", s.Worker.Grace)
	}
	return errors.Join(s.checkInput(), s.checkOutput())
}

// reader reads values, and keeps the first error.
type reader struct{ err error }

func (p *reader) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *reader) duration(name, text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		p.fail(hint.Wrap(fmt.Errorf("%s %q is not a duration", name, text), "write it like 30s or 5m"))
	}
	return d
}

func (p *reader) backoff(name, text string) Backoff {
	low, high, ok := strings.Cut(text, "..")
	if !ok {
		p.fail(hint.Wrap(fmt.Errorf("%s %q is not a range", name, text), "write the shortest and the longest delay, like 1s..5m"))
		return Backoff{}
	}
	return Backoff{p.duration(name, low), p.duration(name, high)}
}

// rate reads "10/s", "90/m" or "5000/h"; "" is no limit.
func (p *reader) rate(name, text string) float64 {
	if text == "" {
		return 0
	}
	number, unit, _ := strings.Cut(text, "/")
	n, err := strconv.ParseFloat(number, 64)
	per, known := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	if err != nil || !known || !(n > 0) || n > 1e6 {
		p.fail(hint.Wrap(fmt.Errorf("%s %q is not a rate", name, text), "write it like 10/s, 90/m or 5000/h"))
		return 0
	}
	return n / per
}
