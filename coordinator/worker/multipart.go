package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"strconv"
	"strings"

	"retinue/coordinator/item"
)

// ParseParts reads the messages of a multipart/mixed answer, one a part, with the headers that a published item has.
func ParseParts(data []byte, boundary string) ([]item.Message, error) {
	if boundary == "" {
		return nil, errors.New("multipart/mixed without a boundary")
	}
	// The reader takes an end within a part's header for the end of all.
	if end := []byte("--" + boundary + "--"); !bytes.HasPrefix(data, end) && !bytes.Contains(data, append([]byte("\n"), end...)) {
		return nil, errors.New("multipart/mixed that does not end with its boundary")
	}
	var messages []item.Message
	r := multipart.NewReader(bytes.NewReader(data), boundary)
	for {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return messages, nil
		}
		if err != nil {
			return nil, fmt.Errorf("part %d: %w", len(messages)+1, err)
		}
		m, err := messageOf(part)
		if err != nil {
			return nil, fmt.Errorf("part %d: %w", len(messages)+1, err)
		}
		messages = append(messages, m)
	}
}

func messageOf(part *multipart.Part) (m item.Message, err error) {
	if m.Body, err = io.ReadAll(part); err != nil {
		return m, err
	}
	m.ContentType, m.Key = part.Header.Get("Content-Type"), part.Header.Get("Retinue-Key")
	if text := part.Header.Get("Retinue-Priority"); text != "" {
		if m.Priority, err = strconv.Atoi(text); err != nil || m.Priority < 0 || m.Priority > 9 {
			return m, fmt.Errorf("Retinue-Priority %.20q is not between 0 and 9", text)
		}
	}
	if text := part.Header.Get("Retinue-Delay"); text != "" {
		var ok bool
		if m.Delay, ok = parseDelay(text); !ok {
			return m, fmt.Errorf("Retinue-Delay %.20q is not a duration like 30s", text)
		}
	}
	for name, values := range part.Header {
		if strings.HasPrefix(name, "Ce-") || strings.HasPrefix(name, "Item-") { // in their canonical form
			if m.Headers == nil {
				m.Headers = map[string]string{}
			}
			m.Headers[name] = strings.Join(values, ", ")
		}
	}
	return m, nil
}
