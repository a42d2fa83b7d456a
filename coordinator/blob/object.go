// Package blob is how the coordinator reaches payloads and records that lie
// in object stores (S3 and what speaks its protocol) and on web servers: a
// client with the classes of failure that the work queue needs, and a cache of
// inputs on the local disk.
//
// What it promises: a file that was fetched has the size and the SHA-256 that
// its reference says; a broken connection is resumed where it broke; nothing is
// read from an address that is not below an allowed prefix, redirects
// included; no error repeats a query string, which may be a signature.
//
// S3 is spoken directly (signature version 4, five operations) because the
// client libraries cost every idle helper more memory than is left: see
// coordinator/source/README.md.
package blob

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"retinue/internal/hint"
)

// Error is a failed request.
type Error struct {
	Op     string // get, put, delete, list
	Where  string // without its query
	Status int    // of the answer; 0: none came
	Code   string // S3's name of the error
	Err    error  // why no answer came, or what it said
	// Ours says that waiting or another attempt may help and the reference itself is not to blame: the store is away or
	// overloaded, or does not take our credentials. Otherwise the reference names what is not there or not ours to read.
	Ours bool
}

func (e *Error) Error() string {
	parts := []string{e.Op + " " + e.Where}
	if e.Status != 0 {
		parts = append(parts, strings.TrimSpace(fmt.Sprint(e.Status, " ", e.Code)))
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

func (e *Error) Unwrap() error { return e.Err }

// Errors of a reference, whatever the store says.
var (
	// ErrNotAllowed: the address is not below an allowed prefix.
	ErrNotAllowed = errors.New("is not below an address that inputs may come from")
	// ErrContent: what was read is not what the reference says.
	ErrContent = errors.New("is not what the message says")
	// ErrTooLarge: it can never fit.
	ErrTooLarge = errors.New("is larger than the cache")
	// ErrFull: there is no room now, because what is there is in use, or the disk is full.
	ErrFull = errors.New("no room in the cache")
)

// Blame says whether the reference is to blame for a failure, so that it counts as an attempt.
func Blame(err error) bool {
	var e *Error
	switch {
	case errors.Is(err, ErrNotAllowed), errors.Is(err, ErrContent), errors.Is(err, ErrTooLarge):
		return true
	case errors.As(err, &e):
		return !e.Ours
	}
	return false
}

// Remote says whether an address is one of this package's.
func Remote(address string) bool {
	scheme, _, ok := strings.Cut(address, "://")
	return ok && (scheme == "http" || scheme == "https" || scheme == "s3")
}

// Parse reads an address: http://, https:// or s3://BUCKET/KEY. One with a step upwards in its path is refused: what it is below
// would depend on who reads it.
func Parse(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the address is not a URL") // url's own error repeats it, and with it a password
	}
	switch {
	case !Remote(address) || u.Host == "" || u.Opaque != "":
		return nil, fmt.Errorf("%s is not an address like https://HOST/PATH or s3://BUCKET/KEY", Plain(u))
	case u.User != nil:
		return nil, fmt.Errorf("%s has a user in it; credentials come from the environment", Plain(u))
	case u.Scheme == "s3" && (u.RawQuery != "" || u.Fragment != ""):
		return nil, fmt.Errorf("%s: a key with ? or # is written as %%3F or %%23", Plain(u))
	}
	for part := range strings.SplitSeq(u.Path, "/") {
		if part == ".." || part == "." {
			return nil, fmt.Errorf("%s has %q in its path", Plain(u), part)
		}
	}
	return u, nil
}

// Plain is an address without what must not be seen.
func Plain(u *url.URL) string {
	p := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return p.String()
}

// Prefix is an address below which inputs may lie.
type Prefix struct{ scheme, host, path string }

// ParsePrefix reads an allowed prefix. It ends at a step of the path: https://a/in allows https://a/in/x and not https://a/inside.
func ParsePrefix(address string) (Prefix, error) {
	u, err := Parse(address)
	if err == nil && u.RawQuery != "" {
		err = fmt.Errorf("%s has a query", Plain(u))
	}
	if err != nil {
		return Prefix{}, hint.Wrap(err, "allow a folder, https://HOST/PATH/ or s3://BUCKET/PREFIX/")
	}
	return Prefix{u.Scheme, strings.ToLower(u.Host), strings.TrimSuffix(path.Clean("/"+u.Path), "/")}, nil
}

// Has says whether u lies below the prefix.
func (p Prefix) Has(u *url.URL) bool {
	if u.Scheme != p.scheme || !strings.EqualFold(u.Host, p.host) {
		return false
	}
	return p.path == "" || u.Path == p.path || strings.HasPrefix(u.Path, p.path+"/")
}

// String is the prefix as it is written.
func (p Prefix) String() string { return p.scheme + "://" + p.host + p.path + "/" }
