package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
)

// Cache keeps inputs by reference on the local disk, by their SHA-256, and no more than Max bytes of them. One process uses a folder.
//
// An attempt gets a hard link of its own, so that what is removed to make room stays with those who read it. What a killed process
// had fetched in part is gone on with.
type Cache struct {
	Dir    string
	Max    int64
	Allow  []Prefix
	Client *Client

	hits, fetched, failed, bytes atomic.Uint64

	mu     sync.Mutex
	busy   map[string]chan struct{} // being fetched; closed at the end
	booked map[string]int64         // bytes that those may become
	now    func() time.Time
	pauses func(n int) time.Duration
}

// The folders of a cache.
const (
	wholeDir = "whole" // by SHA-256
	partDir  = "part"  // not yet whole
	heldDir  = "held"  // links of attempts
)

// NewCache opens a cache in dir.
func NewCache(dir string, limit int64, allow []Prefix, env Environment) (*Cache, error) {
	c := &Cache{Dir: dir, Max: limit, Allow: allow, busy: map[string]chan struct{}{}, booked: map[string]int64{}, now: time.Now,
		pauses: func(n int) time.Duration { return time.Duration(n) * 500 * time.Millisecond }}
	c.Client = NewClient(env, func(u *url.URL) error {
		if !c.allowed(u) {
			return fmt.Errorf("a redirect to %s %w", Plain(u), ErrNotAllowed)
		}
		return nil
	})
	for _, sub := range []string{wholeDir, partDir, heldDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o777); err != nil {
			return nil, err
		}
	}
	held, err := os.ReadDir(filepath.Join(dir, heldDir)) // of attempts that are no more
	if err != nil {
		return nil, err
	}
	for _, e := range held {
		if err := os.Remove(filepath.Join(dir, heldDir, e.Name())); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Cache) allowed(u *url.URL) bool {
	return slices.ContainsFunc(c.Allow, func(p Prefix) bool { return p.Has(u) })
}

// Fetch brings the payload of a reference to the disk, checked, and returns the path of a link that belongs to attempt until Release.
// progress is called as bytes arrive. Blame tells whether the reference is to blame for an error.
func (c *Cache) Fetch(ctx context.Context, ref item.Reference, attempt string, progress func()) (path string, err error) {
	defer func() {
		if err != nil {
			c.failed.Add(1)
		}
	}()
	u, err := Parse(ref.URL)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotAllowed, err)
	}
	if !c.allowed(u) {
		return "", fmt.Errorf("%s %w", Plain(u), ErrNotAllowed)
	}
	name := ref.SHA256
	switch sum, err := hex.DecodeString(name); {
	case name == "": // nothing to know it by: for this attempt alone
		name = "x-" + attempt
	case err != nil || len(sum) != sha256.Size:
		return "", fmt.Errorf("%w: %q is no SHA-256 in hexadecimal digits", ErrContent, item.Printable(name, 70))
	}
	release, err := c.claim(ctx, name)
	if err != nil {
		return "", err
	}
	defer release()
	held := filepath.Join(c.Dir, heldDir, attempt)
	if err := os.Remove(held); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	whole := filepath.Join(c.Dir, wholeDir, name)
	if ref.SHA256 != "" && c.intact(whole, ref, progress) {
		if err := os.Chtimes(whole, c.now(), c.now()); err != nil {
			return "", err
		}
		c.hits.Add(1)
		return held, os.Link(whole, held)
	}
	part := filepath.Join(c.Dir, partDir, name)
	if err := c.fetch(ctx, u, ref, name, part, progress); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		if ref.SHA256 == "" || Blame(err) {
			os.Remove(part)
		}
		return "", err
	}
	c.fetched.Add(1)
	if err := os.Chmod(part, 0o444); err != nil { // shared by all attempts with this input
		return "", err
	}
	if ref.SHA256 == "" {
		return held, os.Rename(part, held)
	}
	if err := os.Rename(part, whole); err != nil {
		return "", err
	}
	return held, os.Link(whole, held)
}

// Release removes the link of an attempt.
func (c *Cache) Release(attempt string) {
	_ = os.Remove(filepath.Join(c.Dir, heldDir, attempt)) // what stays is removed at the next start
}

// Counts are what happened since the start: inputs that were there, were fetched, could not be had, and the bytes that came.
func (c *Cache) Counts() (hits, fetched, failed, bytes uint64) {
	return c.hits.Load(), c.fetched.Load(), c.failed.Load(), c.bytes.Load()
}

// claim makes the caller the only one who fetches name.
func (c *Cache) claim(ctx context.Context, name string) (func(), error) {
	for {
		c.mu.Lock()
		other := c.busy[name]
		if other == nil {
			done := make(chan struct{})
			c.busy[name] = done
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				delete(c.busy, name)
				delete(c.booked, name)
				close(done)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// intact says whether a file is there and is what the reference says; one that is not is removed.
func (c *Cache) intact(path string, ref item.Reference, progress func()) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, &moving{f, progress}); err == nil && hex.EncodeToString(sum.Sum(nil)) == ref.SHA256 {
		return true
	}
	_ = os.Remove(path) // fetching it replaces it too
	return false
}

// tries is how often in a row a connection may break without having brought anything.
const tries = 3

// fetch completes the file part and checks it.
func (c *Cache) fetch(ctx context.Context, u *url.URL, ref item.Reference, name, part string, progress func()) error {
	f, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return err
	}
	defer f.Close()
	d := &download{cache: c, u: u, ref: ref, name: name, file: f, sum: sha256.New(), progress: progress}
	if d.at, err = io.Copy(d.sum, f); err != nil { // what an earlier try brought
		return err
	}
	resumed := d.at > 0
	for failed := 0; ; {
		before := d.at
		err := d.read(ctx)
		if err == nil {
			err = d.check()
			if errors.Is(err, ErrContent) && resumed { // of another object, perhaps, or of a disk that lost its power
				resumed = false
				if err = d.restart(); err == nil {
					continue
				}
			}
			return err
		}
		var answer *Error
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case Blame(err), errors.Is(err, ErrFull), errors.As(err, &answer) && answer.Status != 0, errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
			return err
		case d.at > before:
			failed = 0
		}
		if failed++; failed >= tries {
			return err
		}
		resumed = resumed || d.at > 0
		select {
		case <-time.After(c.pauses(failed)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// download is one object on its way to a file.
type download struct {
	cache    *Cache
	u        *url.URL
	ref      item.Reference
	name     string
	file     *os.File
	sum      hash.Hash
	at       int64
	etag     string
	progress func()
}

func (d *download) restart() error {
	d.sum.Reset()
	d.at, d.etag = 0, ""
	if err := d.file.Truncate(0); err != nil {
		return err
	}
	_, err := d.file.Seek(0, io.SeekStart)
	return err
}

// read reads as far as the connection goes.
func (d *download) read(ctx context.Context) error {
	if d.ref.Size > 0 && d.at == d.ref.Size {
		return nil
	}
	ctx, moved, stop := d.cache.Client.watch(ctx)
	defer stop()
	body, err := d.cache.Client.Get(ctx, d.u, d.at, d.etag)
	if err != nil {
		return err
	}
	defer body.Close()
	if body.From != d.at {
		if err := d.restart(); err != nil {
			return err
		}
	}
	d.etag = body.ETag
	switch {
	case d.ref.Size > 0 && body.Size >= 0 && body.Size != d.ref.Size:
		return fmt.Errorf("%s %w: it has %d bytes, not %d", Plain(d.u), ErrContent, body.Size, d.ref.Size)
	case body.Size > 0:
		if err := d.cache.book(d.name, body.Size); err != nil {
			return err
		}
	}
	return d.copy(ctx, body, moved)
}

const step = 1 << 20

func (d *download) copy(ctx context.Context, body *Part, moved func()) error {
	buf := make([]byte, 64<<10)
	booked := max(body.Size, 0)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			moved()
			d.progress()
			if d.ref.Size > 0 && d.at+int64(n) > d.ref.Size {
				return fmt.Errorf("%s %w: it has more than %d bytes", Plain(d.u), ErrContent, d.ref.Size)
			}
			if d.at+int64(n) > booked { // its size is not known
				booked += step
				if err := d.cache.book(d.name, booked); err != nil {
					return err
				}
			}
			if _, err := d.file.Write(buf[:n]); err != nil {
				return err
			}
			d.sum.Write(buf[:n])
			d.cache.bytes.Add(uint64(n))
			d.at += int64(n)
		}
		switch {
		case err == io.EOF && body.Size >= 0 && d.at < body.Size:
			return &Error{Op: "get", Where: Plain(d.u), Err: io.ErrUnexpectedEOF, Ours: true}
		case err == io.EOF:
			return nil
		case err != nil:
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return &Error{Op: "get", Where: Plain(d.u), Err: err, Ours: true}
		}
	}
}

func (d *download) check() error {
	sum := hex.EncodeToString(d.sum.Sum(nil))
	switch {
	case d.ref.Size > 0 && d.at != d.ref.Size:
		return fmt.Errorf("%s %w: it has %d bytes, not %d", Plain(d.u), ErrContent, d.at, d.ref.Size)
	case d.ref.SHA256 != "" && sum != d.ref.SHA256:
		return fmt.Errorf("%s %w: its SHA-256 is %s", Plain(d.u), ErrContent, sum)
	}
	return nil
}

// book makes room for a file that becomes size bytes long: what was not used for longest goes, if no attempt has it.
func (c *Cache) book(name string, size int64) error {
	if size > c.Max {
		return fmt.Errorf("an input of %d bytes %w of %d", size, ErrTooLarge, c.Max)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.booked[name] >= size {
		return nil
	}
	var idle []cached
	used := size
	for other, n := range c.booked {
		if other != name {
			used += n
		}
	}
	for _, dir := range []string{partDir, wholeDir, heldDir} {
		files, err := c.files(dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			if dir == partDir && (f.name == name || c.booked[f.name] > 0) || dir == heldDir && f.links > 1 {
				continue // counted
			}
			used += f.size
			if c.busy[f.name] == nil && f.links == 1 && dir != heldDir {
				idle = append(idle, f)
			}
		}
	}
	slices.SortFunc(idle, func(a, b cached) int { return a.used.Compare(b.used) })
	for _, f := range idle {
		if used <= c.Max {
			break
		}
		if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		used -= f.size
	}
	if used > c.Max {
		return fmt.Errorf("%w: %d bytes more are wanted than the %d that it may have", ErrFull, used-c.Max, c.Max)
	}
	c.booked[name] = size
	return nil
}

type cached struct {
	name, path string
	size       int64
	links      uint64
	used       time.Time
}

func (c *Cache) files(dir string) ([]cached, error) {
	entries, err := os.ReadDir(filepath.Join(c.Dir, dir))
	if err != nil {
		return nil, err
	}
	var out []cached
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // it has gone
		}
		f := cached{name: e.Name(), path: filepath.Join(c.Dir, dir, e.Name()), size: info.Size(), links: 1, used: info.ModTime()}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			f.links = uint64(st.Nlink)
		}
		out = append(out, f)
	}
	return out, nil
}
