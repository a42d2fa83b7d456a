package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
)

// MaxPut is how large an object may be that is written in one piece.
const MaxPut = 5 << 30

// Client speaks HTTP and S3.
type Client struct {
	env   Environment
	http  *http.Client
	stall time.Duration
}

// stallTimeout is how long a connection may move nothing before it counts as broken.
const stallTimeout = 30 * time.Second

// NewClient returns a client. follow says whether a redirect may be followed; nil: none is.
func NewClient(env Environment, follow func(*url.URL) error) *Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression = true // sizes and sums are of what is sent
	t.ResponseHeaderTimeout = stallTimeout
	t.MaxIdleConnsPerHost = 16
	c := &Client{env: env, stall: stallTimeout}
	c.http = &http.Client{Transport: t, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case follow == nil:
			return http.ErrUseLastResponse
		case len(via) >= 5:
			return errors.New("more than 5 redirects")
		}
		return follow(req.URL)
	}}
	return c
}

// request makes a request to an address. S3's are signed by send.
func (c *Client) request(ctx context.Context, method string, u *url.URL, body io.Reader) (*http.Request, error) {
	if u.Scheme != "s3" {
		return http.NewRequestWithContext(ctx, method, u.String(), body)
	}
	bucket, key := u.Host, strings.TrimPrefix(u.Path, "/")
	base := c.env.Endpoint + "/" + bucket
	if c.env.Endpoint == "" {
		base = "https://s3." + c.env.Region + ".amazonaws.com/" + bucket
		if !strings.Contains(bucket, ".") { // the certificate has one level
			base = "https://" + bucket + ".s3." + c.env.Region + ".amazonaws.com"
		}
	}
	at := base + "/" + escape(key, true)
	if u.RawQuery != "" {
		at += "?" + canonicalQuery(u.Query())
	}
	req, err := http.NewRequestWithContext(ctx, method, at, body)
	if err != nil {
		return nil, errors.New("AWS_ENDPOINT_URL is no URL like https://HOST:PORT")
	}
	return req, nil
}

// send sends a request and returns an answer with a status in good; any other is an Error.
func (c *Client) send(req *http.Request, u *url.URL, op, sum string, good ...int) (*http.Response, error) {
	fail := &Error{Op: op, Where: Plain(u), Ours: true}
	if u.Scheme == "s3" {
		creds, err := c.env.credentials()
		if err != nil {
			fail.Err = err
			return nil, fail
		}
		sign(req, creds, c.env.Region, sum, time.Now())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var outer *url.Error
		if errors.As(err, &outer) { // it repeats the address with its query
			err = outer.Err
		}
		fail.Err, fail.Ours = err, !errors.Is(err, ErrNotAllowed)
		return nil, fail
	}
	if slices.Contains(good, resp.StatusCode) {
		return resp, nil
	}
	defer resp.Body.Close()
	var said struct{ Code, Message string }
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && xml.Unmarshal(data, &said) == nil {
		fail.Code = said.Code
		if said.Message != "" {
			fail.Err = errors.New(item.Printable(said.Message, 200))
		}
	}
	fail.Status, fail.Ours = resp.StatusCode, ours(resp.StatusCode, said.Code)
	return nil, fail
}

// ours says whether an answer is about the store or our rights at it, and not about the object.
func ours(status int, code string) bool {
	switch code {
	case "ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "TokenRefreshRequired", "RequestExpired", "AuthorizationHeaderMalformed",
		"SlowDown", "RequestTimeout", "NoSuchBucket":
		return true
	}
	return status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status == http.StatusTooEarly
}

// Part is an object from an offset on.
type Part struct {
	io.ReadCloser
	From int64  // where it begins: 0 when the server does not resume
	Size int64  // of the whole object; -1: unknown
	ETag string // a strong one, or ""
}

// Get reads an object from an offset; etag, when there is one, is what it must still be: otherwise it begins at 0.
func (c *Client) Get(ctx context.Context, u *url.URL, from int64, etag string) (*Part, error) {
	req, err := c.request(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		if etag != "" {
			req.Header.Set("If-Range", etag)
		}
	}
	resp, err := c.send(req, u, "get", emptySum, http.StatusOK, http.StatusPartialContent)
	var refused *Error
	if errors.As(err, &refused) && refused.Status == http.StatusRequestedRangeNotSatisfiable && from > 0 {
		return c.Get(ctx, u, 0, "") // it is shorter than what there is of it here
	}
	if err != nil {
		return nil, err
	}
	p := &Part{ReadCloser: resp.Body, Size: resp.ContentLength, ETag: resp.Header.Get("ETag")}
	if strings.HasPrefix(p.ETag, "W/") {
		p.ETag = ""
	}
	if resp.StatusCode == http.StatusPartialContent {
		first, total, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || first != from {
			resp.Body.Close()
			return nil, &Error{Op: "get", Where: Plain(u), Status: resp.StatusCode, Err: fmt.Errorf("answered with the range %q to %d-", item.Printable(resp.Header.Get("Content-Range"), 60), from), Ours: true}
		}
		p.From, p.Size = from, total
	}
	return p, nil
}

// contentRange reads "bytes 5-9/10", where the last may be *.
func contentRange(s string) (first, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, size, found := strings.Cut(s, "/")
	begin, _, dash := strings.Cut(span, "-")
	first, err := strconv.ParseInt(begin, 10, 64)
	if !ok || !found || !dash || err != nil || first < 0 {
		return 0, 0, false
	}
	if size == "*" {
		return first, -1, true
	}
	total, err = strconv.ParseInt(size, 10, 64)
	return first, total, err == nil && total > first
}

// ReadAll reads a small object, nil when there is none.
func (c *Client) ReadAll(ctx context.Context, u *url.URL, limit int64) (data []byte, etag string, err error) {
	p, err := c.Get(ctx, u, 0, "")
	var missing *Error
	if errors.As(err, &missing) && missing.Status == http.StatusNotFound && missing.Code != "NoSuchBucket" {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	defer p.Close()
	data, err = io.ReadAll(io.LimitReader(p, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("get %s: more than %d bytes", Plain(u), limit)
	}
	if err != nil {
		return nil, "", &Error{Op: "get", Where: Plain(u), Err: err, Ours: true}
	}
	return data, p.ETag, nil
}

// ErrExists: an object is there already.
var ErrExists = errors.New("an object is there")

// Create writes an object if, and only if, none is there; otherwise it returns ErrExists.
func (c *Client) Create(ctx context.Context, u *url.URL, data []byte) error {
	err := c.put(ctx, u, bytes.NewReader(data), int64(len(data)), sha256.Sum256(data), "*")
	var e *Error
	if errors.As(err, &e) && e.Status == http.StatusPreconditionFailed {
		return ErrExists
	}
	if errors.As(err, &e) && e.Status == http.StatusConflict {
		e.Ours = true // two at once; S3 wants it to be tried again
	}
	return err
}

// Put writes a small object.
func (c *Client) Put(ctx context.Context, u *url.URL, data []byte) error {
	return c.put(ctx, u, bytes.NewReader(data), int64(len(data)), sha256.Sum256(data), "")
}

// PutFile writes a file as an object and returns its size and SHA-256. A link, or what is no regular file, is refused. The store
// compares the sum with what arrived.
func (c *Client) PutFile(ctx context.Context, u *url.URL, path string) (size int64, sum string, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return 0, "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, "", err
	}
	if err := c.put(ctx, u, f, size, [32]byte(h.Sum(nil)), ""); err != nil {
		return 0, "", err
	}
	return size, hex.EncodeToString(h.Sum(nil)), nil
}

func (c *Client) put(ctx context.Context, u *url.URL, body io.ReadSeeker, size int64, sum [32]byte, ifNoneMatch string) error {
	ctx, moved, stop := c.watch(ctx)
	defer stop()
	req, err := c.request(ctx, http.MethodPut, u, io.NopCloser(&moving{body, moved}))
	if err != nil {
		return err
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	req.GetBody = func() (io.ReadCloser, error) {
		_, err := body.Seek(0, io.SeekStart)
		return io.NopCloser(&moving{body, moved}), err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("X-Amz-Checksum-Sha256", base64.StdEncoding.EncodeToString(sum[:]))
	if ifNoneMatch != "" {
		req.Header.Set("If-None-Match", ifNoneMatch)
	}
	resp, err := c.send(req, u, "put", hex.EncodeToString(sum[:]), http.StatusOK, http.StatusCreated, http.StatusNoContent)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Delete removes an object; one that is not there is removed.
func (c *Client) Delete(ctx context.Context, u *url.URL) error {
	ctx, cancel := context.WithTimeout(ctx, c.stall)
	defer cancel()
	req, err := c.request(ctx, http.MethodDelete, u, nil)
	if err != nil {
		return err
	}
	resp, err := c.send(req, u, "delete", emptySum, http.StatusOK, http.StatusNoContent, http.StatusNotFound)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Each calls see with the key of every object below u, in order of name, until it returns an error. Keys that appear or go
// meanwhile may be missed.
func (c *Client) Each(ctx context.Context, u *url.URL, see func(key string) error) error {
	token := ""
	for {
		keys, next, err := c.page(ctx, u, token)
		if err != nil {
			return err
		}
		for _, key := range keys {
			if err := see(key); err != nil {
				return err
			}
		}
		if token = next; token == "" {
			return nil
		}
	}
}

func (c *Client) page(ctx context.Context, u *url.URL, token string) (keys []string, next string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.stall)
	defer cancel()
	q := url.Values{"list-type": {"2"}, "prefix": {strings.TrimPrefix(u.Path, "/")}}
	if token != "" {
		q.Set("continuation-token", token)
	}
	req, err := c.request(ctx, http.MethodGet, &url.URL{Scheme: "s3", Host: u.Host, RawQuery: q.Encode()}, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := c.send(req, u, "list", emptySum, http.StatusOK)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	var list struct {
		Contents              []struct{ Key string }
		IsTruncated           bool
		NextContinuationToken string
	}
	if err := xml.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&list); err != nil {
		return nil, "", &Error{Op: "list", Where: Plain(u), Err: err, Ours: true}
	}
	for _, o := range list.Contents {
		keys = append(keys, o.Key)
	}
	if list.IsTruncated {
		next = list.NextContinuationToken
	}
	return keys, next, nil
}

// errStalled ends a transfer that moves nothing.
var errStalled = errors.New("the connection stands still")

// watch ends a context when moved has not been called for the stall timeout.
func (c *Client) watch(ctx context.Context) (watched context.Context, moved func(), stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.stall, func() { cancel(errStalled) })
	return ctx, func() { timer.Reset(c.stall) }, func() { timer.Stop(); cancel(nil) }
}

// moving tells that something is read.
type moving struct {
	io.Reader
	moved func()
}

func (m *moving) Read(p []byte) (int, error) {
	m.moved()
	return m.Reader.Read(p)
}
