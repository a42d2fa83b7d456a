package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"retinue/coordinator/item"
	"retinue/coordinator/source"
)

// DeadLetter is one dead item, whole.
type DeadLetter struct {
	ID          string            `json:"id"`
	Class       item.Class        `json:"class"`
	Reason      string            `json:"reason"`
	Attempts    []item.Attempt    `json:"attempts,omitempty"`
	Replay      int               `json:"replay,omitempty"` // how often it was tried again before
	Died        time.Time         `json:"died"`
	Key         string            `json:"key,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Body        string            `json:"body,omitempty"`
	Base64      []byte            `json:"body_base64,omitempty"`
}

// Edit is what is changed of dead letters when they are tried again.
type Edit struct {
	Body        *string           `json:"body,omitempty"`
	Base64      []byte            `json:"body_base64,omitempty"`
	ContentType *string           `json:"content_type,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"` // set; "" removes
	Key         *string           `json:"key,omitempty"`
}

// Selection says which dead letters are meant: those named, or all, of a class and of a key where they are given.
type Selection struct {
	IDs   []string   `json:"ids,omitempty"`
	All   bool       `json:"all,omitempty"`
	Class item.Class `json:"class,omitempty"`
	Key   string     `json:"key,omitempty"`
	Edit  *Edit      `json:"edit,omitempty"` // retry only
}

func (s Selection) has(d DeadLetter) bool {
	return (s.All || slices.Contains(s.IDs, d.ID)) && (s.Class == "" || s.Class == d.Class) && (s.Key == "" || s.Key == d.Key)
}

// A look at the dead letters takes them under a lease and gives back what it does not remove: every broker can do that.
const (
	deadBatch = 200
	deadFirst = 2 * time.Second // a broker may take a moment to let a new consumer in
	deadMore  = 300 * time.Millisecond
	deadLease = time.Minute
)

// eachDead calls see with the dead letters until it says stop. What see takes (true) it has dealt with and is removed.
func (c *Coordinator) eachDead(ctx context.Context, limit int, see func(DeadLetter, *source.Message) (take bool, err error)) (err error) {
	c.dead.Lock()
	defer c.dead.Unlock()
	src, err := c.parts.Open(source.Options{Queue: c.cfg.Dead, Lease: deadLease, Prefetch: deadBatch})
	if err != nil {
		return fmt.Errorf("open the dead letters: %w", err)
	}
	var back []*source.Message
	defer func() {
		done, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		defer cancel()
		if len(back) > 0 {
			if relErr := src.Release(done, 0, back...); relErr != nil && err == nil && !lost(relErr) {
				err = fmt.Errorf("give dead letters back: %w", relErr)
			}
		}
		err = errors.Join(err, src.Close(done))
	}()
	met := map[string]bool{}
	for seen, wait := 0, deadFirst; seen < limit; wait = deadMore {
		rx, cancel := context.WithTimeout(ctx, wait)
		msgs, err := src.Receive(rx, min(deadBatch, limit-seen))
		cancel()
		if err != nil {
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return nil // there are no more
			}
			return fmt.Errorf("read the dead letters: %w", err)
		}
		seen += len(msgs)
		var gone []*source.Message
		var bad error
		for _, msg := range msgs {
			take := false
			if met[msg.ID] { // leases of the first ones have run out: this was the whole queue
				limit = 0
			} else if bad == nil {
				met[msg.ID] = true
				take, bad = see(deadOf(msg), msg)
			}
			if take {
				gone = append(gone, msg)
			} else {
				back = append(back, msg)
			}
		}
		if len(gone) > 0 {
			if ackErr := src.Ack(ctx, gone...); ackErr != nil && bad == nil {
				bad = fmt.Errorf("remove dead letters: %w", ackErr)
			}
		}
		if bad != nil {
			return bad
		}
	}
	return nil
}

func deadOf(msg *source.Message) DeadLetter {
	env, err := item.Open(msg.ID, msg.Headers)
	d := DeadLetter{ID: env.ID, Class: env.DeadClass, Reason: env.DeadReason, Attempts: env.History, Replay: env.Replay, Died: msg.Published.UTC(), Key: msg.Key,
		ContentType: env.ContentType, Headers: env.Headers}
	if err != nil && d.Reason == "" {
		d.Class, d.Reason = item.Invalid, err.Error()
	}
	if isText(msg.Body) {
		d.Body = string(msg.Body)
	} else {
		d.Base64 = msg.Body
	}
	return d
}

// replay makes the message that tries a dead letter again: the same item, with a record of its own and no attempts behind it.
func replay(d DeadLetter, msg *source.Message, edit *Edit) (source.Out, error) {
	env, _ := item.Open(msg.ID, msg.Headers) // a header that cannot be read is left behind
	env.Replay++
	env.History, env.DeadClass, env.DeadReason, env.Queue = nil, "", "", ""
	id := item.Short(env.ID) + "~r" + strconv.Itoa(env.Replay)
	out := source.Out{ID: id, Body: msg.Body, Key: msg.Key}
	if edit != nil {
		if edit.Base64 != nil {
			out.Body = edit.Base64
		}
		if edit.Body != nil {
			out.Body = []byte(*edit.Body)
		}
		if edit.ContentType != nil {
			env.ContentType = *edit.ContentType
		}
		if edit.Key != nil {
			out.Key = *edit.Key
		}
		for name, value := range edit.Headers {
			if env.Headers == nil {
				env.Headers = map[string]string{}
			}
			if env.Headers[name] = value; value == "" {
				delete(env.Headers, name)
			}
		}
	}
	out.Headers = env.Seal(id)
	return out, (source.Options{Classes: source.MaxClasses}).Check(out)
}

func (a *handlers) deadList(w http.ResponseWriter, r *http.Request) {
	limit := 100
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 10*maxList {
			refuse(w, http.StatusBadRequest, "bad_request", fmt.Sprintf("limit %q is not between 1 and %d", text, 10*maxList))
			return
		}
		limit = n
	}
	id, letters := r.URL.Query().Get("id"), []DeadLetter{}
	scan := limit
	if id != "" {
		scan = 1 << 30
	}
	err := a.c.eachDead(r.Context(), scan, func(d DeadLetter, _ *source.Message) (bool, error) {
		if id == "" || d.ID == id {
			letters = append(letters, d)
		}
		return false, nil
	})
	if err != nil {
		unavailable(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"dead": letters})
}

// Changed is the answer to a change of many.
type Changed struct {
	Changed int      `json:"changed"`
	IDs     []string `json:"ids"`
}

func (a *handlers) selection(w http.ResponseWriter, r *http.Request) (s Selection, ok bool) {
	body, ok := readBody(w, r, maxItem)
	if !ok {
		return s, false
	}
	if err := json.Unmarshal(body, &s); err != nil {
		refuse(w, http.StatusBadRequest, "bad_request", "the body is not the JSON object expected: "+err.Error())
		return s, false
	}
	if s.All == (len(s.IDs) > 0) {
		refuse(w, http.StatusBadRequest, "bad_request", "name ids, or say all: true")
		return s, false
	}
	return s, true
}

func (a *handlers) deadRetry(w http.ResponseWriter, r *http.Request) {
	s, ok := a.selection(w, r)
	if !ok {
		return
	}
	a.change(w, r, s, func(d DeadLetter, msg *source.Message) error {
		out, err := replay(d, msg, s.Edit)
		if err != nil {
			return err
		}
		return a.c.publish(r.Context(), a.c.cfg.Queue, []source.Out{out})
	})
}

func (a *handlers) deadPurge(w http.ResponseWriter, r *http.Request) {
	s, ok := a.selection(w, r)
	if !ok {
		return
	}
	a.change(w, r, s, func(DeadLetter, *source.Message) error { return nil })
}

// change does something with the selected dead letters, and removes them.
func (a *handlers) change(w http.ResponseWriter, r *http.Request, s Selection, do func(DeadLetter, *source.Message) error) {
	answer := Changed{IDs: []string{}}
	err := a.c.eachDead(r.Context(), 1<<30, func(d DeadLetter, msg *source.Message) (bool, error) {
		if !s.has(d) {
			return false, nil
		}
		if err := do(d, msg); err != nil {
			return false, fmt.Errorf("%s: %w", d.ID, err)
		}
		answer.Changed++
		if len(answer.IDs) < maxList {
			answer.IDs = append(answer.IDs, d.ID)
		}
		return true, nil
	})
	switch {
	case errors.Is(err, source.ErrInvalid):
		refuse(w, http.StatusBadRequest, "bad_request", err.Error())
	case err != nil:
		unavailable(w, err)
	default:
		writeJSON(w, http.StatusOK, answer)
	}
}
