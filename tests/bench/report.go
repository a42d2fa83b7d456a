package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Report is a section's run, as the JSON output has it and BENCHMARKS.md shows it.
type Report struct {
	Section   string     `json:"section"` // names the marks in the document
	Title     string     `json:"title"`
	Setup     string     `json:"setup"` // what stood where, and how to read the tables
	Versions  []Version  `json:"versions"`
	CPUs      int        `json:"cpus"`
	Load      float64    `json:"load_before"`          // of the machine, before the run
	LoadAfter float64    `json:"load_after,omitempty"` // with what the run itself was
	Command   string     `json:"command"`
	Quick     bool       `json:"quick"`
	Scenarios []Scenario `json:"scenarios,omitempty"`
	Tables    []Table    `json:"-"` // of the figures
	Figures   []Figure   `json:"figures,omitempty"`
	Facts     []Fact     `json:"facts,omitempty"`
	FactsOf   string     `json:"-"` // the facts' heading, and whose they are
	FactsHead string     `json:"-"`
	Targets   []Target   `json:"targets"`
	Missing   []string   `json:"missing,omitempty"`
	Plots     []Plot     `json:"-"`
	Quotes    []Quote    `json:"-"`

	overheads []overhead // what the plots are made of
	tails     []tailed
}

// Table is figures side by side, for people. The first column is text, the others are numbers, a last one called note is text too.
type Table struct {
	Title   string
	Explain string
	Head    []string
	Rows    [][]string
}

// Figure is what was measured of one contender in one part, for programs.
type Figure struct {
	Part      string             `json:"part"`
	Contender string             `json:"contender"`
	Config    string             `json:"config,omitempty"`
	Leaves    int                `json:"leaves,omitempty"`
	Took      Summary            `json:"took"`
	Failures  int                `json:"failures,omitempty"`
	Values    map[string]float64 `json:"values,omitempty"`
}

// Plot is a picture for docs/plots.
type Plot struct {
	Name string
	SVG  string
}

// Quote is what another document says of this run, between marks of its own.
type Quote struct {
	File string
	Name string
	Text string
}

// Version is a program that took part.
type Version struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Scenario is one thing that was done to all contenders, retinue's row first.
type Scenario struct {
	Title   string `json:"title"`
	Explain string `json:"explain"`
	Rows    []Row  `json:"rows"`
}

// Row is one contender in a scenario.
type Row struct {
	Contender string   `json:"contender"`
	Config    string   `json:"config"`
	Took      Summary  `json:"took"`
	Vacancy   *Summary `json:"vacancy,omitempty"`
	Ratio     float64  `json:"ratio,omitempty"` // of the medians, to the first row's
	Failures  int      `json:"failures,omitempty"`
	Note      string   `json:"note,omitempty"`
}

// Fact is one measured value that has no table of its own.
type Fact struct {
	What  string `json:"what"`
	Value string `json:"value"`
	Peer  string `json:"peer,omitempty"` // the same of a peer, in the same run
}

// Target is a promise of the design, held against this run.
type Target struct {
	What     string `json:"what"`
	Want     string `json:"want"`
	Measured string `json:"measured"`
	Met      bool   `json:"met"`
}

// marks are around a section in its document.
func marks(section string) (begin, end string) {
	return "<!-- bench:" + section + " -->", "<!-- /bench:" + section + " -->"
}

// markdown writes the section of BENCHMARKS.md, without its marks.
func (r Report) markdown(w io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(w, format, args...) }
	p("## %s\n\n", r.Title)
	var versions []string
	for _, v := range r.Versions {
		versions = append(versions, v.Name+" "+v.Version)
	}
	after := ""
	if r.LoadAfter > 0 {
		after = fmt.Sprintf(", after it %.1f", r.LoadAfter)
	}
	p("%s. %d CPUs; the machine's load before the run was %.1f%s. Reproduce: `%s`.\n\n", strings.Join(versions, ", "), r.CPUs, r.Load, after, r.Command)
	if r.Load > float64(r.CPUs) {
		p("**The machine was busy with other work:** compare the rows with each other; the targets are for a quiet machine.\n\n")
	}
	if r.Quick {
		p("**A quick run:** few repetitions, good for an impression. `make bench` does the full one.\n\n")
	}
	p("%s\n", r.Setup)
	for _, s := range r.Scenarios {
		p("\n### %s\n\n%s\n\n", s.Title, s.Explain)
		s.table(w)
	}
	for _, t := range r.Tables {
		p("\n### %s\n\n%s\n\n", t.Title, t.Explain)
		t.write(w)
	}
	if len(r.Facts) > 0 {
		p("\n### %s\n\n| what | %s | peer |\n|---|---|---|\n", r.FactsOf, r.FactsHead)
		for _, f := range r.Facts {
			peer := f.Peer
			if peer == "" {
				peer = "–"
			}
			p("| %s | %s | %s |\n", f.What, f.Value, peer)
		}
	}
	if len(r.Targets) > 0 {
		p("\n### Targets\n\n| target | wanted | measured | |\n|---|---|---|---|\n")
		for _, t := range r.Targets {
			met := "**not met**"
			if t.Met {
				met = "met"
			}
			p("| %s | %s | %s | %s |\n", t.What, t.Want, t.Measured, met)
		}
	}
	if len(r.Missing) > 0 {
		p("\nNot measured:\n\n")
		for _, m := range r.Missing {
			p("- %s\n", m)
		}
	}
}

func (s Scenario) table(w io.Writer) {
	vacancy := false
	for _, row := range s.Rows {
		vacancy = vacancy || row.Vacancy != nil
	}
	head, rule := "| contender | settings | n | min | p50 | p99 | ratio |", "|---|---|--:|--:|--:|--:|--:|"
	if vacancy {
		head, rule = head+" vacancy p50 | vacancy max |", rule+"--:|--:|"
	}
	fmt.Fprintf(w, "%s note |\n%s---|\n", head, rule)
	for _, row := range s.Rows {
		note := row.Note
		if row.Failures > 0 {
			note = strings.TrimSpace(fmt.Sprintf("%s %d failed attempts are not counted.", note, row.Failures))
		}
		cells := []string{row.Contender, row.Config, fmt.Sprint(row.Took.N)}
		if row.Took.N == 0 {
			cells = append(cells, "–", "–", "–", "–")
		} else {
			cells = append(cells, human(row.Took.Min), human(row.Took.P50), human(row.Took.P99), humanRatio(row.Ratio))
		}
		if vacancy {
			if v := row.Vacancy; v != nil {
				cells = append(cells, human(v.P50), human(v.Max))
			} else {
				cells = append(cells, "–", "–")
			}
		}
		fmt.Fprintf(w, "| %s | %s |\n", strings.Join(cells, " | "), note)
	}
}

func (t Table) write(w io.Writer) {
	rule := "|---|"
	for _, name := range t.Head[1:] {
		if name == "note" || name == "settings" || name == "contender" {
			rule += "---|"
		} else {
			rule += "--:|"
		}
	}
	fmt.Fprintf(w, "| %s |\n%s\n", strings.Join(t.Head, " | "), rule)
	for _, row := range t.Rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}

// spliceInto is splice for a file.
func spliceInto(path, name, section string) error {
	document, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.WriteFile(path, []byte(splice(string(document), name, section)), 0o644)
}

// splice puts a section between its marks in a document, and adds the marks at the end of one that has none.
func splice(document, name, section string) string {
	beginMark, endMark := marks(name)
	section = beginMark + "\n" + section + endMark
	before, rest, found := strings.Cut(document, beginMark)
	if found {
		if _, after, ok := strings.Cut(rest, endMark); ok {
			return before + section + after
		}
	}
	if document == "" {
		document = "# Benchmarks\n\nEvery figure stands beside a peer's of the same run, and is written by the program that measured it.\n"
	}
	return strings.TrimRight(document, "\n") + "\n\n" + section + "\n"
}

// row makes a row of what was measured.
func row(c *contender, o *outcome, note string) Row {
	var took, vacant []time.Duration
	for _, s := range o.samples {
		took = append(took, s.took)
		if s.vacancy >= 0 {
			vacant = append(vacant, s.vacancy)
		}
	}
	r := Row{Contender: c.name, Config: c.config, Took: summarize(took), Failures: o.failures, Note: note}
	if len(vacant) > 0 {
		v := summarize(vacant)
		r.Vacancy = &v
	}
	if r.Took.N == 0 && o.open > 0 {
		r.Note = strings.TrimSpace(fmt.Sprintf("%s Had not happened after %s, when time was up.", note, human(o.open)))
	}
	return r
}

// compare fills in the ratios.
func compare(rows []Row) []Row {
	for i := range rows {
		rows[i].Ratio = ratio(rows[i].Took, rows[0].Took)
	}
	return rows
}
