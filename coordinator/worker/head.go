package worker

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"retinue/coordinator/item"
)

// head are the headers of a request, as they stand on the wire.
type head []byte

// heads are those of requests that are on their way.
var heads = sync.Pool{New: func() any { return new(head) }}

func (h *head) set(name, value string) {
	*h = append(append(append(append(*h, name...), ": "...), value...), "\r\n"...)
}

func (h *head) number(name string, value int64) {
	*h = append(strconv.AppendInt(append(append(*h, name...), ": "...), value, 10), "\r\n"...)
}

// safe says that a value ends where it ends, and nothing that follows it can be taken for a header or the next request.
func safe(value string) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// fieldName says that a name is one of a header (RFC 9110, 5.6.2).
func fieldName(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return name != ""
}

// ours are headers of items that do not travel: the connection's, and those that say what we say.
var ours = map[string]bool{"Connection": true, "Content-Length": true, "Expect": true, "Host": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "Authorization": false, "Content-Type": true, "Ce-Specversion": true, "Ce-Id": true, "Ce-Type": true, "Ce-Source": true, "Ce-Time": true}

// request writes the headers of one item, and returns the body.
func (w *HTTP) request(task *item.Task, h *head) ([]byte, error) {
	h.number("Retinue-Attempt", int64(task.N))
	h.number("Retinue-Max-Attempts", int64(task.Max))
	h.number("Retinue-Deadline-Ms", time.Until(task.Deadline).Milliseconds())
	*h = append(strconv.AppendUint(append(*h, "Retinue-Fence: "...), task.Fence, 10), "\r\n"...)
	h.set("Retinue-Stage", task.Stage)
	values := []string{task.ID, task.ContentType, task.Key}
	if task.Key != "" {
		h.set("Retinue-Key", task.Key)
	}
	if task.Input != nil {
		h.set("Retinue-Input", task.Input.URL)
		values = append(values, task.Input.URL)
	}
	kind := header(task.Headers, "ce-type", "retinue.item")
	source := header(task.Headers, "ce-source", "/queues/"+task.Stage)
	body := task.Body
	if w.Structured {
		h.set("Content-Type", "application/cloudevents+json")
		body = structured(task, kind, source)
	} else {
		for name, value := range task.Headers {
			if !fieldName(name) {
				return nil, fmt.Errorf("the item has a header %q, which cannot travel over HTTP", item.Printable(name, 100))
			}
			if values = append(values, value); !ours[http.CanonicalHeaderKey(name)] {
				h.set(name, value)
			}
		}
		h.set("Ce-Specversion", "1.0")
		h.set("Ce-Id", task.ID)
		h.set("Ce-Type", kind)
		h.set("Ce-Source", source)
		*h = append(task.FirstSeen.UTC().AppendFormat(append(*h, "Ce-Time: "...), time.RFC3339Nano), "\r\n"...)
		h.set("Content-Type", or(task.ContentType, "application/octet-stream"))
	}
	for _, value := range values {
		if !safe(value) {
			return nil, fmt.Errorf("the item has a header or id with a control character, which cannot travel over HTTP: %q", item.Printable(value, 100))
		}
	}
	return body, nil
}
