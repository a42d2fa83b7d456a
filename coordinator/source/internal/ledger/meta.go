package ledger

import (
	"strconv"
	"strings"
	"time"

	"retinue/coordinator/source"
)

// The headers in which adapters carry what their broker has no place for.
const (
	headerKey       = "retinue-key"
	headerClass     = "retinue-class"
	headerPublished = "retinue-published" // milliseconds since 1970
	headerNanos     = "retinue-nanos"     // and nanoseconds; a header of its own, so that older versions can read the other
)

// HeaderID is the header of a message's identity.
const HeaderID = "retinue-id"

// HeaderDue is the header of the time before which a message must not be delivered, in milliseconds since 1970.
const HeaderDue = "retinue-due"

// Headers returns an Out's headers with our own, for brokers that carry text headers. Its delay runs from now, whatever the time
// of publication says.
func Headers(out source.Out, published time.Time) map[string]string {
	all := make(map[string]string, len(out.Headers)+6)
	for name, value := range out.Headers {
		all[name] = value
	}
	all[HeaderID] = out.ID
	all[headerPublished] = strconv.FormatInt(published.UnixMilli(), 10)
	if nanos := published.Nanosecond() % int(time.Millisecond); nanos != 0 {
		all[headerNanos] = strconv.Itoa(nanos)
	}
	if out.Key != "" {
		all[headerKey] = out.Key
	}
	if out.Class != 0 {
		all[headerClass] = strconv.Itoa(out.Class)
	}
	if out.Delay > 0 {
		all[HeaderDue] = strconv.FormatInt(time.Now().Add(out.Delay+time.Millisecond-1).UnixMilli(), 10)
	}
	return all
}

// Read fills in a message from the headers that arrived: what Headers wrote, or another producer's. The map becomes the message's.
// Its return value is the time before which the message must not be delivered, zero for none.
func Read(m *source.Message, all map[string]string) (due time.Time) {
	m.Headers = all
	var nanos time.Duration
	for name, value := range all {
		if !source.OwnHeader(name) {
			continue
		}
		delete(all, name)
		switch {
		case name == HeaderID:
			m.ID = value
		case name == headerKey:
			m.Key = value
		case name == headerClass:
			if n, err := strconv.Atoi(value); err == nil && n >= 0 && n < source.MaxClasses {
				m.Class = n
			}
		case name == headerPublished:
			m.Published = millis(value)
		case name == headerNanos:
			if n, err := strconv.Atoi(value); err == nil && n > 0 && n < int(time.Millisecond) {
				nanos = time.Duration(n)
			}
		case name == HeaderDue:
			due = millis(value)
		}
	}
	if !m.Published.IsZero() {
		m.Published = m.Published.Add(nanos)
	}
	if m.Body == nil {
		m.Body = []byte{}
	}
	return due
}

func millis(s string) time.Time {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(n)
}
