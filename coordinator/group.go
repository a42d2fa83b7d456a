package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"time"

	"retinue/coordinator/commit"
	"retinue/coordinator/item"
	"retinue/coordinator/source"
)

// Headers of an item that is part of a group.
const (
	HeaderGroup     = "Group-Id"
	HeaderGroupSize = "Group-Size" // of the whole group; one part that says it is enough
	HeaderGroupPart = "Group-Part" // its place, from 0
)

// Bounds of a group: what tells of all parts is one message.
const (
	maxParts      = 1000
	maxPartResult = 1 << 10
	maxTold       = 256 << 10 // with results; without them above
)

// membership is what an item's headers say of its group.
type membership struct {
	group   string
	size, n int // size 0: this part does not know
}

// memberOf reads the headers of a group; nil when there are none.
func memberOf(headers map[string]string) (*membership, error) {
	g := membership{group: header(headers, HeaderGroup)}
	number := func(name string, low, high int) (int, error) {
		text := header(headers, name)
		if text == "" {
			return 0, nil
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < low || n > high {
			return 0, fmt.Errorf("header %s: %q is not a number between %d and %d", name, item.Printable(text, 40), low, high)
		}
		return n, nil
	}
	size, err := number(HeaderGroupSize, 1, maxParts)
	part, err2 := number(HeaderGroupPart, 0, 1<<30)
	g.size, g.n = size, part
	switch err = errors.Join(err, err2); {
	case g.group == "" && (g.size > 0 || header(headers, HeaderGroupPart) != ""):
		return nil, fmt.Errorf("it has %s or %s and no %s", HeaderGroupSize, HeaderGroupPart, HeaderGroup)
	case g.group == "":
		return nil, nil
	}
	return &g, err
}

// groupHeaders says of the n-th of an item's messages which group it is part of: one of its own (split), or, where it is the only one, the
// item's. What the worker says counts more.
func (m *machine) groupHeaders(it *held, next []item.Message, n int) map[string]string {
	own := next[n].Headers
	add := map[string]string{}
	switch {
	case header(own, HeaderGroup) != "":
		return own
	case m.cfg.Split:
		add = map[string]string{HeaderGroup: item.Short(it.id) + "/" + m.cfg.stage(), HeaderGroupSize: strconv.Itoa(len(next)), HeaderGroupPart: strconv.Itoa(n)}
	case len(next) == 1 && m.cfg.Gather == "" && header(it.env.Headers, HeaderGroup) != "":
		for _, name := range []string{HeaderGroup, HeaderGroupSize, HeaderGroupPart} {
			if v := header(it.env.Headers, name); v != "" {
				add[name] = v
			}
		}
	default:
		return own
	}
	for name, value := range own {
		add[name] = value
	}
	return add
}

// GroupPart is what a gathered item tells of one part.
type GroupPart struct {
	Item   string          `json:"item"`
	Part   int             `json:"part"`
	State  item.State      `json:"state"`
	Result json.RawMessage `json:"result,omitempty"` // up to 1 KiB: JSON as it is, text as a string
	Output string          `json:"output,omitempty"`
	Files  []item.File     `json:"files,omitempty"`
}

// Gathered is the body of the item that comes when all parts are committed.
type Gathered struct {
	Group string      `json:"group"`
	Stage string      `json:"stage"`
	Size  int         `json:"size"`
	Parts []GroupPart `json:"parts"` // in order of part, then of item
}

func (g membership) part(id string, rec item.Record) GroupPart {
	p := GroupPart{Item: id, Part: g.n, State: rec.State, Output: rec.Output}
	switch {
	case len(rec.Result) == 0 || len(rec.Result) > maxPartResult:
	case json.Valid(rec.Result):
		p.Result = rec.Result
	case isText(rec.Result):
		p.Result, _ = json.Marshal(string(rec.Result)) // a string always encodes
	}
	if len(rec.Files) <= 4 {
		p.Files = rec.Files
	}
	return p
}

// groups are the groups of a stage at its commit point: below group/STAGE/GROUP/ a key part/ITEM for each part, size, and sent.
type groups struct {
	kv    commit.KV
	stage string
}

func (g groups) prefix(group string) string {
	p := "group/" + g.stage + "/"
	if group != "" {
		p += item.FileName(group) + "/"
	}
	return p
}

// join stores a part, and then says whether the group is complete. A part is stored before the others are counted, so whoever stores the last one sees them all; several
// may, and their messages are the same.
func (g groups) join(ctx context.Context, m membership, part GroupPart) (*Gathered, error) {
	value, err := json.Marshal(part)
	if err != nil {
		return nil, err
	}
	if _, err := g.kv.Create(ctx, g.prefix(m.group)+"part/"+item.FileName(part.Item), value); err != nil {
		return nil, err
	}
	if m.size > 0 {
		if _, err := g.kv.Create(ctx, g.prefix(m.group)+"size", []byte(strconv.Itoa(m.size))); err != nil {
			return nil, err
		}
	}
	return g.complete(ctx, m.group)
}

// complete returns what there is to tell; nil while parts are missing, or when it was told.
func (g groups) complete(ctx context.Context, group string) (*Gathered, error) {
	sent, err := g.kv.Get(ctx, g.prefix(group)+"sent")
	if err != nil || sent != nil {
		return nil, err
	}
	text, err := g.kv.Get(ctx, g.prefix(group)+"size")
	if err != nil || text == nil {
		return nil, err
	}
	size, err := strconv.Atoi(string(text))
	if err != nil {
		return nil, fmt.Errorf("the size of group %s: %w", group, err)
	}
	var keys []string
	if err := g.kv.Each(ctx, g.prefix(group)+"part/", func(key string) error { keys = append(keys, key); return nil }); err != nil || len(keys) < size {
		return nil, err
	}
	all := &Gathered{Group: group, Stage: g.stage, Size: size, Parts: []GroupPart{}}
	for _, key := range keys {
		value, err := g.kv.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		var part GroupPart
		if err := json.Unmarshal(value, &part); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		all.Parts = append(all.Parts, part)
	}
	sort.Slice(all.Parts, func(i, j int) bool {
		a, b := all.Parts[i], all.Parts[j]
		return a.Part < b.Part || a.Part == b.Part && a.Item < b.Item
	})
	return all, nil
}

// message is the item of a complete group, always with the same id.
func (g *Gathered) message() (source.Out, error) {
	id := fmt.Sprintf("%s/%s/all", item.Short(g.Group), g.Stage)
	body, err := json.Marshal(g)
	if err == nil && len(body) > maxTold { // the records and files have them
		for i := range g.Parts {
			g.Parts[i].Result, g.Parts[i].Files = nil, nil
		}
		body, err = json.Marshal(g)
	}
	env := item.Envelope{ID: id, ContentType: "application/json", Headers: map[string]string{"Gathered-Group": item.Printable(g.Group, 200), "Gathered-Stage": g.Stage}}
	return source.Out{ID: id, Body: body, Headers: env.Seal(id)}, err
}

// gather publishes the item of a group if it is complete, and notes that it was. A death between the two repeats it under the same id.
func (c *Coordinator) gather(ctx context.Context, g groups, all *Gathered) error {
	if all == nil {
		return nil
	}
	out, err := all.message()
	if err != nil {
		return err
	}
	if err := c.publish(ctx, c.cfg.Gather, []source.Out{out}); err != nil {
		return err
	}
	c.metrics.gathered.Inc()
	_, err = g.kv.Create(ctx, g.prefix(all.Group)+"sent", []byte(time.Now().UTC().Format(time.RFC3339)))
	return err
}

func (c *Coordinator) groups() groups {
	return groups{commit.StoreOf(c.parts.Point), c.cfg.stage()}
}

// join is the effect: a part has been committed.
func (c *Coordinator) join(ctx context.Context, m membership, part GroupPart) error {
	g := c.groups()
	all, err := g.join(ctx, m, part)
	if err == nil {
		err = c.gather(ctx, g, all)
	}
	if err != nil {
		return fmt.Errorf("group %s: %w", m.group, err)
	}
	return nil
}

// GroupView is a group for people.
type GroupView struct {
	Group string `json:"group"` // as it is spelt in the store
	Size  int    `json:"size"`  // 0: no part has said it
	Parts int    `json:"parts"` // committed
	Sent  string `json:"sent,omitempty"`
}

// list counts the groups of a stage.
func (g groups) list(ctx context.Context) ([]GroupView, error) {
	found := map[string]*GroupView{}
	err := g.kv.Each(ctx, g.prefix(""), func(key string) error {
		name, rest, _ := strings.Cut(strings.TrimPrefix(key, g.prefix("")), "/")
		v := found[name]
		if v == nil {
			v = &GroupView{Group: name}
			found[name] = v
		}
		if strings.HasPrefix(rest, "part/") {
			v.Parts++
			return nil
		}
		value, err := g.kv.Get(ctx, key)
		if rest == "size" {
			v.Size, _ = strconv.Atoi(string(value)) // 0 when it has gone meanwhile
		} else {
			v.Sent = string(value)
		}
		return err
	})
	views := []GroupView{}
	for _, v := range found {
		views = append(views, *v)
	}
	sort.Slice(views, func(i, j int) bool { return views[i].Group < views[j].Group })
	return views, err
}

// forget removes groups whose item was sent before a moment: that mark last, so that a crash in between is finished by the next call.
func (g groups) forget(ctx context.Context, before time.Time) error {
	views, err := g.list(ctx)
	if err != nil {
		return err
	}
	for _, v := range views {
		at, err := time.Parse(time.RFC3339, v.Sent)
		if err != nil || !at.Before(before) {
			continue
		}
		prefix := g.prefix("") + v.Group + "/"
		remove := func(key string) error {
			value, err := g.kv.Get(ctx, key)
			if err == nil && value != nil {
				err = g.kv.Delete(ctx, key, value)
			}
			return err
		}
		err = g.kv.Each(ctx, prefix, func(key string) error {
			if key == prefix+"sent" {
				return nil
			}
			return remove(key)
		})
		if err == nil {
			err = remove(prefix + "sent")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Groups are the groups of a queue.
type Groups struct {
	Groups []GroupView `json:"groups"`
}

func (a *handlers) gathers(w http.ResponseWriter) bool {
	if a.c.cfg.Gather == "" {
		refuse(w, http.StatusNotFound, "no_groups", "this stage gathers nothing: output { gather = \"QUEUE\" }")
	}
	return a.c.cfg.Gather != ""
}

// groupList serves GET /v1/queues/{queue}/groups.
func (a *handlers) groupList(w http.ResponseWriter, r *http.Request) {
	if !a.gathers(w) {
		return
	}
	views, err := a.c.groups().list(r.Context())
	if err != nil {
		unavailable(w, err)
		return
	}
	writeJSON(w, http.StatusOK, Groups{views})
}

// GroupClose says how many parts a group has.
type GroupClose struct {
	Group string `json:"group"`
	Size  int    `json:"size"`
}

// groupClose serves POST /v1/queues/{queue}/groups/close: the size of a group that nobody has said, or another one, when parts will never come.
func (a *handlers) groupClose(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r, maxItem)
	if !ok || !a.gathers(w) {
		return
	}
	var c GroupClose
	if err := json.Unmarshal(body, &c); err != nil || c.Group == "" || c.Size < 1 || c.Size > maxParts {
		refuse(w, http.StatusBadRequest, "bad_request", fmt.Sprintf(`the body is {"group":"...","size":N}, N between 1 and %d`, maxParts))
		return
	}
	g, size := a.c.groups(), []byte(strconv.Itoa(c.Size))
	key := g.prefix(c.Group) + "size"
	was, err := g.kv.Create(r.Context(), key, size)
	if err == nil && string(was) != string(size) {
		if err = g.kv.Delete(r.Context(), key, was); err == nil {
			_, err = g.kv.Create(r.Context(), key, size)
		}
	}
	if err == nil {
		var all *Gathered
		if all, err = g.complete(r.Context(), c.Group); err == nil {
			err = a.c.gather(r.Context(), g, all)
		}
	}
	if err != nil {
		unavailable(w, err)
		return
	}
	views, err := g.list(r.Context())
	if err != nil {
		unavailable(w, err)
		return
	}
	for _, v := range views {
		if v.Group == item.FileName(c.Group) {
			writeJSON(w, http.StatusOK, v)
		}
	}
}
