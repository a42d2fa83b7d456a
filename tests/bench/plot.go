package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
	"time"
)

// The canvas of a plot: its size, and the room around the data.
const (
	plotWidth, plotHeight                        = 760, 400
	plotLeft, plotRight, plotTop, plotBottom int = 62, 18, 64, 52
)

// plotStyle follows the reader's light or dark scheme. Series are told apart by dashes too.
const plotStyle = `<style>
.bg{fill:#ffffff}.text{fill:#1f2328}.soft{fill:#59636e}.grid{stroke:#d1d9e0}.axis{stroke:#59636e}
.s0{stroke:#57606a}.s1{stroke:#bc4c00}.s2{stroke:#0969da}.s3{stroke:#1a7f37}
.f0{fill:#57606a}.f1{fill:#bc4c00}.f2{fill:#0969da}.f3{fill:#1a7f37}
@media (prefers-color-scheme:dark){
.bg{fill:#0d1117}.text{fill:#f0f6fc}.soft{fill:#9198a1}.grid{stroke:#30363d}.axis{stroke:#9198a1}
.s0{stroke:#9198a1}.s1{stroke:#f0883e}.s2{stroke:#58a6ff}.s3{stroke:#3fb950}
.f0{fill:#9198a1}.f1{fill:#f0883e}.f2{fill:#58a6ff}.f3{fill:#3fb950}
}
text{font:13px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
.title{font-size:16px;font-weight:600}.line{fill:none;stroke-width:2}
</style>
`

var dashes = []string{"", "7 4", "", "2 3"}

// canvas collects a plot's elements.
type canvas struct{ strings.Builder }

func newCanvas(title, subtitle string) *canvas {
	c := &canvas{}
	c.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", plotWidth, plotHeight, html.EscapeString(title))
	c.WriteString(plotStyle)
	c.add(`<rect class="bg" width="%d" height="%d"/>`+"\n", plotWidth, plotHeight)
	c.text(plotLeft, 24, "start", "text title", title)
	c.text(plotLeft, 44, "start", "soft", subtitle)
	return c
}

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(c, format, args...) }

func (c *canvas) text(x, y int, anchor, class, s string) {
	c.add(`<text x="%d" y="%d" text-anchor="%s" class="%s">%s</text>`+"\n", x, y, anchor, class, html.EscapeString(s))
}

func (c *canvas) rule(class string, x1, y1, x2, y2 float64) {
	c.add(`<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", class, x1, y1, x2, y2)
}

func (c *canvas) done() string { return c.String() + "</svg>\n" }

// scale maps values to a side of the canvas.
type scale struct {
	log      bool
	min, max float64
	from, to int // on the canvas
}

func (s scale) at(v float64) float64 {
	lo, hi := s.min, s.max
	v = min(max(v, lo), hi)
	if s.log {
		lo, hi, v = math.Log(lo), math.Log(hi), math.Log(v)
	}
	return float64(s.from) + (v-lo)/(hi-lo)*float64(s.to-s.from)
}

// curve is the shares of samples that are larger: a step at each.
type curve struct {
	name    string
	samples []time.Duration
}

// exceedance draws, for every curve, which share of its samples took longer than x, both axes logarithmic.
func exceedance(title, subtitle string, curves []curve) string {
	c := newCanvas(title, subtitle)
	least, lo, hi := 1.0, math.Inf(1), 0.0
	for i := range curves {
		curves[i].samples = slices.Sorted(slices.Values(curves[i].samples))
		s := curves[i].samples
		if len(s) == 0 {
			continue
		}
		least = min(least, 1/float64(len(s)))
		lo, hi = min(lo, millis(s[0])), max(hi, millis(s[len(s)-1]))
	}
	if hi == 0 {
		return c.done()
	}
	x := scale{log: true, min: lo, max: math.Pow(10, math.Ceil(math.Log10(hi*1.01))), from: plotLeft, to: plotWidth - plotRight}
	y := scale{log: true, min: least, max: 1, from: plotHeight - plotBottom, to: plotTop}
	for v := math.Pow(10, math.Ceil(math.Log10(lo))); v <= x.max*1.001; v *= 10 {
		c.rule("grid", x.at(v), float64(y.from), x.at(v), float64(y.to))
		c.text(int(x.at(v)), y.from+18, "middle", "soft", fmt.Sprintf("%g", round(v)))
	}
	for v := 1.0; v >= y.min*0.999; v /= 10 {
		c.rule("grid", float64(x.from), y.at(v), float64(x.to), y.at(v))
		c.text(x.from-6, int(y.at(v))+4, "end", "soft", fmt.Sprintf("%g %%", round(v*100)))
	}
	c.text((x.from+x.to)/2, plotHeight-10, "middle", "text", "milliseconds")
	for i, curve := range curves {
		c.add(`<path class="line s%d" stroke-dasharray="%s" d="%s"/>`+"\n", i, dashes[i%len(dashes)], steps(curve.samples, x, y))
		c.legend(i, y.from-18-20*(len(curves)-1-i), curve.name)
	}
	return c.done()
}

// legend names a series in the corner that is empty in a falling plot.
func (c *canvas) legend(i, y int, name string) {
	const left = plotLeft + 12
	c.add(`<line class="line s%d" stroke-dasharray="%s" x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", i, dashes[i%len(dashes)], left, y-4, left+30, y-4)
	c.text(left+38, y, "start", "text", name)
}

// steps is a path that falls by one n-th at each of n sorted samples. Steps too small to see are left out.
func steps(sorted []time.Duration, x, y scale) string {
	if len(sorted) == 0 {
		return ""
	}
	var path strings.Builder
	lastX, lastY := x.at(millis(sorted[0])), y.at(1)
	fmt.Fprintf(&path, "M%.1f %.1f", float64(x.from), lastY)
	for i, d := range sorted {
		px, py := x.at(millis(d)), y.at(float64(len(sorted)-i-1)/float64(len(sorted)))
		if i+1 < len(sorted) && math.Abs(px-lastX)+math.Abs(py-lastY) < 1 {
			continue
		}
		fmt.Fprintf(&path, "H%.1fV%.1f", px, py)
		lastX, lastY = px, py
	}
	return path.String()
}

// group is bars beside each other.
type group struct {
	name string
	note string // below the name
	bars []bar
}

type bar struct {
	value float64
	label string
}

// bars draws groups of bars, which may go below zero, one series for each name.
func bars(title, subtitle, unit string, names []string, groups []group) string {
	c := newCanvas(title, subtitle)
	lo, hi := 0.0, 1.0
	for _, g := range groups {
		for _, b := range g.bars {
			lo, hi = min(lo, b.value), max(hi, b.value)
		}
	}
	step := niceStep((hi - lo) / 5)
	y := scale{min: math.Floor(lo/step) * step, max: math.Ceil(hi*1.05/step) * step, from: plotHeight - plotBottom, to: plotTop + 24}
	for v := y.min; v <= y.max+step/2; v += step {
		c.rule("grid", float64(plotLeft), y.at(v), float64(plotWidth-plotRight), y.at(v))
		c.text(plotLeft-6, int(y.at(v))+4, "end", "soft", fmt.Sprintf("%g%s", round(v), unit))
	}
	room := float64(plotWidth-plotLeft-plotRight) / float64(max(1, len(groups)))
	for i, g := range groups {
		left := float64(plotLeft) + room*float64(i)
		c.text(int(left+room/2), plotHeight-plotBottom+20, "middle", "text", g.name)
		c.text(int(left+room/2), plotHeight-plotBottom+38, "middle", "soft", g.note)
		width := room * 0.86 / float64(max(1, len(g.bars)))
		for j, b := range g.bars {
			x, top, bottom := left+room*0.07+width*float64(j), y.at(max(b.value, 0)), y.at(min(b.value, 0))
			c.add(`<rect class="f%d" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="2"/>`+"\n", j+1, x+2, top, width-4, max(bottom-top, 1))
			c.add(`<text x="%.1f" y="%.1f" text-anchor="middle" class="soft" style="font-size:10.5px">%s</text>`+"\n", x+width/2, top-4, html.EscapeString(b.label))
		}
	}
	c.rule("axis", float64(plotLeft), y.at(0), float64(plotWidth-plotRight), y.at(0))
	at := plotLeft
	for j, name := range names {
		c.add(`<rect class="f%d" x="%d" y="%d" width="12" height="12" rx="2"/>`+"\n", j+1, at, plotTop-8)
		c.text(at+18, plotTop+3, "start", "text", name)
		at += 40 + 8*len(name)
	}
	return c.done()
}

// niceStep is 1, 2 or 5 times a power of ten, at least v.
func niceStep(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*power >= v {
			return m * power
		}
	}
	return 10 * power
}

func millis(d time.Duration) float64 { return max(d.Seconds()*1e3, 1e-3) }

// round takes away what powers of ten have lost.
func round(v float64) float64 { return math.Round(v*1e6) / 1e6 }
