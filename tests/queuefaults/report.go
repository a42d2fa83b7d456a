package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"retinue/coordinator/item"
)

// report is what a campaign on one broker found.
type report struct {
	Broker     string            `json:"broker"`
	Version    string            `json:"version"`
	Durability string            `json:"durability"`
	Seed       uint64            `json:"seed"`
	Partitions int               `json:"partitions,omitempty"`
	Pace       float64           `json:"pace"`
	Date       string            `json:"date"`
	Commit     string            `json:"commit"`
	Lease      string            `json:"lease"`
	Seconds    float64           `json:"seconds"`
	Items      int               `json:"items"` // confirmed to their producer
	Doubtful   int               `json:"items_without_an_answer"`
	Again      int               `json:"items_published_again"`
	Faults     map[Class]int     `json:"faults"`
	Done       int               `json:"done"`
	Dead       int               `json:"dead"`
	Executions int               `json:"executions"`
	Cut        int               `json:"executions_cut_off"`
	Failed     int               `json:"executions_failed"`
	Lost       int               `json:"executions_that_lost"` // ended well, and another one's output counts
	Counted    int               `json:"failed_attempts_counted"`
	Wire       int               `json:"messages_repeated"` // with the same id and content, what the next stage's commit point removes
	Starved    float64           `json:"starved_seconds"`
	Members    map[string]int    `json:"executions_by_contract"`
	Drained    bool              `json:"drained"`
	Broken     map[string]int    `json:"broken"`
	Findings   []finding         `json:"findings"`
	Machine    map[string]string `json:"machine"`
}

func newReport(w *world) *report {
	r := &report{Broker: w.Broker, Version: w.broker.Version, Durability: w.broker.Durability, Seed: w.Seed, Partitions: w.Partitions, Pace: w.Pace, Date: time.Now().UTC().Format("2006-01-02"), Commit: w.commit, Lease: w.Lease.String(),
		Faults: map[Class]int{}, Members: map[string]int{}, Broken: map[string]int{}, Machine: map[string]string{"cpus": fmt.Sprint(runtime.NumCPU()), "go": runtime.Version()}}
	for class, n := range w.ledger.counts {
		r.Faults[class] = n
	}
	for _, e := range w.ledger.late {
		r.Starved += e.to.Sub(e.from).Seconds()
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.Machine["load at the end"] = strings.Join(strings.Fields(string(data))[:3], " ")
	}
	return r
}

// Kills and Stops are how many processes were killed with -9, and stopped for a while.
func (r *report) Kills() int { return r.number(Class.kill) }

func (r *report) Stops() int { return r.number(Class.stop) }

func (r *report) number(of func(Class) bool) (n int) {
	for class, times := range r.Faults {
		if of(class) {
			n += times
		}
	}
	return n
}

// first is the first finding about a promise.
func (r *report) first(promise string) string {
	for _, f := range r.Findings {
		if f.Promise == promise {
			return f.String()
		}
	}
	return ""
}

// count adds one item.
func (r *report) count(h *history, rec *item.Record, ran []*execution) {
	if h.confirmed {
		r.Items++
	} else {
		r.Doubtful++
	}
	if h.again {
		r.Again++
	}
	output := ""
	if rec != nil {
		switch rec.State {
		case item.Done:
			r.Done++
			r.Counted += rec.N - 1
			output = outputOf(rec)
		case item.Dead:
			r.Dead++
			r.Counted += rec.N
		}
	}
	for _, e := range ran {
		r.Executions++
		r.Members[e.member]++
		switch e.end {
		case "":
			r.Cut++
		case failed, refused:
			r.Failed++
		case done:
			if e.nonce != output {
				r.Lost++
			}
		}
	}
	for _, n := range h.outs {
		r.Wire += n - 1
	}
	r.Wire += max(0, h.dead-1)
}

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// name is the section's.
func (r *report) name() string {
	if r.Partitions > 0 {
		return r.Broker + ", with partitions"
	}
	return r.Broker
}

// ordered is the flag that gives the queue partitions.
func (r *report) ordered() string {
	if r.Partitions == 0 {
		return ""
	}
	return fmt.Sprintf(" -partitions %d", r.Partitions)
}

// markdown is the report for people.
func (r *report) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	verdict := "**No promise was broken.**"
	if n := len(r.Findings); n > 0 {
		verdict = fmt.Sprintf("**%d findings.**", n)
	}
	p("## %s\n", r.name())
	p("%s %d items, %d kills and %d stops in %s; lost %d, duplicate effects %d.\n", verdict, r.Items, r.Kills(), r.Stops(), (time.Duration(r.Seconds) * time.Second), r.Broken[noLoss], r.Broken[oneEffect])
	p("| | |\n|---|---|")
	p("| broker | %s; %s |", r.Version, r.Durability)
	p("| again | `go run ./queuefaults -broker %s -seed %d -pace %g%s` |", r.Broker, r.Seed, r.Pace, r.ordered())
	p("| run | %s, commit %s, lease %s, %s CPUs, load at the end %s, %s |", r.Date, r.Commit, r.Lease, r.Machine["cpus"], r.Machine["load at the end"], r.Machine["go"])
	if n := r.Faults[ownError]; n > 0 {
		p("| parts of the broker that broke by themselves, as its log says | %d |", n)
	}
	for _, class := range []Class{workerKill, coordKill, brokerKill, consulKill, workerStop, coordStop, brokerStop, consulStop, coordTerm} {
		p("| %s | %d |", class, r.Faults[class])
	}
	p("| items: confirmed to their producer, done, dead as asked | %d, %d, %d |", r.Items, r.Done, r.Dead)
	p("| published again because an answer was missing, never answered | %d, %d |", r.Again, r.Doubtful)
	p("| executions: single over HTTP, batches over HTTP, commands | %d: %d, %d, %d |", r.Executions, r.Members["single"], r.Members["batch"], r.Members["exec"])
	p("| of them cut off, failed as asked, well done but too late | %d, %d, %d |", r.Cut, r.Failed, r.Lost)
	p("| failed attempts that are counted in records | %d |", r.Counted)
	p("| messages that came to the next stage again, same id and content | %d |", r.Wire)
	p("| the machine woke nobody up for | %.1f s in all |", r.Starved)
	p("\n| promise | broken |\n|---|--:|")
	for _, name := range promises() {
		p("| %s | %d |", name, r.Broken[name])
	}
	for i, f := range r.Findings {
		if i == 20 {
			p("\n... and %d more", len(r.Findings)-20)
			break
		}
		p("\n- %s", f)
	}
	return b.String()
}

const preamble = `# Work queue under faults

Written by ` + "`go run ./queuefaults`" + ` in tests/, a section for each broker; what the words mean is in tests/queuefaults/README.md. ` + "`make faults-queue`" + ` runs it again.
`

// publish writes the section of the broker into the document, or to standard output.
func (r *report) publish(path string) error {
	if path == "" {
		fmt.Print(r.markdown())
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(splice(string(data), r.name(), r.markdown())), 0o644)
}

// splice puts a section into the document, in place of the one that it has.
func splice(document, name, section string) string {
	begin, end := "<!-- "+name+" -->\n", "<!-- end "+name+" -->\n"
	section = begin + section + end
	if before, rest, ok := strings.Cut(document, begin); ok {
		if _, after, ok := strings.Cut(rest, end); ok {
			return before + section + after
		}
	}
	if document == "" {
		document = preamble
	}
	return strings.TrimRight(document, "\n") + "\n\n" + section
}
