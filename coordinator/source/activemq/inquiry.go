package activemq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"retinue/coordinator/source"
	"retinue/internal/hint"
)

const (
	statistics = "ActiveMQ.Statistics.Destination"
	// endOfList makes the broker say when it has told all, also where a queue does not exist.
	endOfList = statistics + ".List.End.With.Null"
	// answerTime is what an answer may take. A broker without the plugin never answers.
	answerTime = 5 * time.Second
	answers    = "/temp-queue/answers"
)

// inquiry is a connection for one question: a broker that lacks what it takes to answer may end it.
type inquiry struct {
	cn    *conn
	heard chan *frame
}

func (s *Source) inquire(ctx context.Context, transformation string) (*inquiry, error) {
	q := &inquiry{heard: make(chan *frame, 4*source.MaxClasses)}
	cn, err := dial(ctx, &s.cfg, func(f *frame) {
		select {
		case q.heard <- f:
		default: // nobody asked for so much
		}
	})
	if err != nil {
		return nil, err
	}
	q.cn = cn
	f := newFrame("SUBSCRIBE", "id", "answers", "destination", answers, "ack", "auto")
	if transformation != "" {
		f.headers["transformation"] = transformation
	}
	cn.post(f)
	return q, nil
}

// next is the next answer.
func (q *inquiry) next(ctx context.Context) (*frame, error) {
	select {
	case f := <-q.heard:
		return f, nil
	case <-q.cn.dead:
		return nil, q.cn.cause()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// scheduler finds out once whether the broker has its scheduler switched on: without, it delivers at once what should wait.
func (s *Source) scheduler(ctx context.Context) error {
	s.asking.Lock()
	defer s.asking.Unlock()
	if s.schedules {
		return nil
	}
	q, err := s.inquire(ctx, "")
	if err != nil {
		return err
	}
	defer q.cn.fail(source.ErrClosed)
	q.cn.post(newFrame("SEND", "destination", answers, headerDelay, "1"))
	f, err := q.next(ctx)
	if err != nil {
		return err
	}
	if f.headers[headerJob] == "" {
		return hint.Wrap(fmt.Errorf("%w: the broker has no scheduler, which delays need", source.ErrConfig), "set schedulerSupport=\"true\" at <broker> in its activemq.xml")
	}
	s.schedules = true
	return nil
}

// Depth implements source.Source: by the broker's statistics plugin, where it has it.
func (s *Source) Depth(ctx context.Context) (source.Depth, error) {
	if err := s.check(ctx); err != nil {
		return source.Depth{}, err
	}
	s.asking.Lock()
	defer s.asking.Unlock()
	d := source.Depth{Ready: -1, Delayed: -1, InFlight: -1, Oldest: -1}
	if time.Now().Before(s.silent) {
		return d, nil
	}
	ready, inFlight, err := s.count(ctx)
	switch {
	case err == nil:
		s.counts = true
		d.Ready, d.InFlight = ready, inFlight
	case errors.Is(err, errSilent) && !s.counts:
		s.silent = time.Now().Add(time.Minute)
	default:
		return source.Depth{}, fmt.Errorf("depth of %s: %w", s.cfg.Queue, explain(err))
	}
	return d, nil
}

// errSilent: the broker does not tell.
var errSilent = fmt.Errorf("%w: no answer from its statistics plugin", source.ErrUnavailable)

func (s *Source) count(ctx context.Context) (ready, inFlight int64, err error) {
	q, err := s.inquire(ctx, "jms-map-json")
	if err != nil {
		return 0, 0, err
	}
	defer q.cn.fail(source.ErrClosed)
	limit, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	for class := range s.cfg.Classes {
		// What no plugin takes would stay in a queue of that name, but for its end.
		q.cn.post(newFrame("SEND", "destination", "/queue/"+statistics+"."+s.cfg.destination(class)[len("/queue/"):], "reply-to", answers,
			endOfList, "true", "persistent", "false", "expires", strconv.FormatInt(time.Now().Add(2*answerTime).UnixMilli(), 10)))
	}
	for ends := 0; ends < s.cfg.Classes; {
		f, err := q.next(limit)
		if err != nil && ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		if err != nil {
			return 0, 0, errSilent
		}
		all, err := numbers(f.body)
		if err != nil {
			return 0, 0, err
		}
		if len(all) == 0 {
			ends++
			continue
		}
		ready += all["size"] - all["inflightCount"]
		inFlight += all["inflightCount"]
	}
	return ready, inFlight, nil
}

// numbers are what a map of Java's says, as XStream writes it.
func numbers(body []byte) (map[string]int64, error) {
	if len(body) == 0 {
		return nil, errSilent // without XStream the broker sends maps without what is in them
	}
	var doc struct {
		Map json.RawMessage `json:"map"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("%w: its statistics: %w", errSilent, err)
	}
	var list struct {
		Entry []struct {
			String any         `json:"string"`
			Long   json.Number `json:"long"`
		} `json:"entry"`
	}
	all := map[string]int64{}
	if json.Unmarshal(doc.Map, &list) != nil {
		return all, nil // "": a map with nothing in it
	}
	for _, e := range list.Entry {
		name, _ := e.String.(string)
		if n, err := e.Long.Int64(); err == nil && name != "" {
			all[name] = n
		}
	}
	return all, nil
}
