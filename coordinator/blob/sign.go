package blob

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// emptySum is the SHA-256 of nothing.
const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// sign puts AWS's signature version 4 on a request whose body has the SHA-256 sum. Host and all headers that begin with x-amz- are
// signed, and what else decides over the effect of a request.
func sign(req *http.Request, c credentials, region, sum string, now time.Time) {
	req.Header.Set("X-Amz-Content-Sha256", sum)
	if c.id == "" {
		return
	}
	day, moment := now.UTC().Format("20060102"), now.UTC().Format("20060102T150405Z")
	req.Header.Set("X-Amz-Date", moment)
	if c.token != "" {
		req.Header.Set("X-Amz-Security-Token", c.token)
	}
	names := []string{"host"}
	for name := range req.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") || lower == "if-none-match" || lower == "if-match" || lower == "content-type" || lower == "range" {
			names = append(names, lower)
		}
	}
	slices.Sort(names)
	canonical := req.Method + "\n" + req.URL.EscapedPath() + "\n" + canonicalQuery(req.URL.Query()) + "\n"
	for _, name := range names {
		value := req.Host
		if name != "host" {
			value = strings.Join(req.Header.Values(name), ",")
		}
		canonical += name + ":" + strings.TrimSpace(value) + "\n"
	}
	signed := strings.Join(names, ";")
	canonical += "\n" + signed + "\n" + sum
	scope := day + "/" + region + "/s3/aws4_request"
	digest := sha256.Sum256([]byte(canonical))
	text := "AWS4-HMAC-SHA256\n" + moment + "\n" + scope + "\n" + hex.EncodeToString(digest[:])
	key := mac(mac(mac(mac([]byte("AWS4"+c.secret), day), region), "s3"), "aws4_request")
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+c.id+"/"+scope+", SignedHeaders="+signed+", Signature="+hex.EncodeToString(mac(key, text)))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func canonicalQuery(q url.Values) string {
	var parts []string
	for name, values := range q {
		for _, v := range values {
			parts = append(parts, escape(name, false)+"="+escape(v, false))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, "&")
}

// escape encodes as the signature wants it: everything but letters, digits, - . _ ~ and, in a path, /.
func escape(s string, slash bool) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~', c == '/' && slash:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	return b.String()
}
