package activemq

import (
	"maps"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"retinue/coordinator/source"
	"retinue/coordinator/source/internal/ledger"
)

const (
	headerCount = "retinue-count" // deliveries of the message that this is a copy of
	headerApp   = "retinue-app-"  // protects headers of the application that the broker would take for its own
	headerPart  = "retinue-part-" // and then a number, - and a name: what follows in a value too long for the broker

	headerDelay = "AMQ_SCHEDULED_DELAY"
	headerJob   = "scheduledJobId" // on what came through the broker's scheduler

	// maxValue is how much of a value goes into one header. The broker refuses lines over 10 KiB, counted with escapes.
	maxValue = 4 << 10
)

// brokers are the headers that have a meaning for the broker or are its own. Names are as it compares them.
var brokers = map[string]bool{
	"destination": true, "message-id": true, "correlation-id": true, "expires": true, "redelivered": true, "priority": true, "reply-to": true,
	"timestamp": true, "type": true, "persistent": true, "subscription": true, "ack": true, "content-length": true, "transaction": true, "receipt": true,
	"transformation": true, "transformation-error": true, "amq-msg-type": true, "original-destination": true, "originalExpiration": true, "dlqDeliveryFailureCause": true,
	"browser": true, headerJob: true,
}

func brokersOwn(name string) bool {
	return brokers[name] || strings.HasPrefix(name, "JMS") || strings.HasPrefix(name, "AMQ_")
}

// send makes the frame of a publication with headers as a ledger writes them.
func send(destination string, headers map[string]string, body []byte) *frame {
	f := newFrame("SEND", "destination", destination, "persistent", "true")
	f.body = body
	for name, value := range headers {
		if brokersOwn(name) {
			name = headerApp + name
		}
		part := cut(value)
		f.headers[name] = value[:part]
		for i := 0; part < len(value); i++ {
			value = value[part:]
			part = cut(value)
			f.headers[headerPart+strconv.Itoa(i)+"-"+name] = value[:part]
		}
	}
	return f
}

// cut is where a value ends that fits: between two characters.
func cut(value string) int {
	if len(value) <= maxValue {
		return len(value)
	}
	n := maxValue
	for !utf8.RuneStart(value[n]) {
		n--
	}
	return n
}

// join puts values together that send has cut, in place.
func join(headers map[string]string) {
	for name := range maps.Clone(headers) {
		if strings.HasPrefix(name, headerPart) {
			continue
		}
		for i := 0; ; i++ {
			part := headerPart + strconv.Itoa(i) + "-" + name
			value, ok := headers[part]
			if !ok {
				break
			}
			headers[name] += value
			delete(headers, part)
		}
	}
}

// read makes a message of a MESSAGE frame, and says when it is due.
func read(f *frame, class int) (*source.Message, time.Time) {
	join(f.headers)
	m := &source.Message{ID: f.headers["message-id"], Body: f.body, Deliveries: 1}
	if millis, err := strconv.ParseInt(f.headers["timestamp"], 10, 64); err == nil && millis > 0 {
		m.Published = time.UnixMilli(millis)
	}
	if n, err := strconv.Atoi(f.headers[headerCount]); err == nil && n > 0 {
		m.Deliveries += n
	}
	if f.headers["redelivered"] == "true" {
		m.Deliveries++
	}
	due := ledger.Read(m, visible(f.headers))
	m.Class = class
	return m, due
}

// visible are the headers that are not the broker's, under their own names.
func visible(headers map[string]string) map[string]string {
	all := make(map[string]string, len(headers))
	for name, value := range headers {
		switch {
		case strings.HasPrefix(name, headerApp):
			all[name[len(headerApp):]] = value
		case !brokersOwn(name):
			all[name] = value
		}
	}
	return all
}

// copyOf is a delivery as a publication after a number of earlier deliveries, not to be delivered before it is due.
func copyOf(f *frame, m *source.Message, destination string, due time.Time, deliveries int) *frame {
	headers := visible(f.headers)
	published := m.Published
	if published.IsZero() {
		published = time.Now()
	}
	for name, value := range ledger.Headers(source.Out{ID: m.ID, Key: m.Key, Class: m.Class}, published) {
		headers[name] = value
	}
	headers[headerCount] = strconv.Itoa(deliveries)
	headers[ledger.HeaderDue] = strconv.FormatInt(due.UnixMilli(), 10)
	return send(destination, headers, f.body)
}
