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
)

// HeaderID is the header of a message's identity.
const HeaderID = "retinue-id"

// HeaderDue is the header of the time before which a message must not be delivered, in milliseconds since 1970.
const HeaderDue = "retinue-due"

// Headers returns an Out's headers with our own, for brokers that carry text headers.
func Headers(out source.Out, now time.Time) map[string]string {
	all := make(map[string]string, len(out.Headers)+5)
	for name, value := range out.Headers {
		all[name] = value
	}
	all[HeaderID] = out.ID
	all[headerPublished] = strconv.FormatInt(now.UnixMilli(), 10)
	if out.Key != "" {
		all[headerKey] = out.Key
	}
	if out.Class != 0 {
		all[headerClass] = strconv.Itoa(out.Class)
	}
	if out.Delay > 0 {
		all[HeaderDue] = strconv.FormatInt(now.Add(out.Delay+time.Millisecond-1).UnixMilli(), 10)
	}
	return all
}

// Read fills in a message from the headers that arrived: what Headers wrote, or another producer's. The map becomes the message's.
// Its return value is the time before which the message must not be delivered, zero for none.
func Read(m *source.Message, all map[string]string) (due time.Time) {
	m.Headers = all
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
		case name == HeaderDue:
			due = millis(value)
		}
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
