package worker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
	"retinue/internal/disk"
)

// Folders are where attempts live, and how their outputs leave.
type Folders struct {
	Work  string                         // the folder of the contract
	Allow []string                       // folders below which an input by reference may lie
	To    bool                           // outputs are messages of a next stage
	Final func(task *item.Task) *url.URL // where a committed output lies; nil: its files do not stay
}

// The folders of the contract.
const (
	readyDir = "ready"
	runDir   = "run"
	takenDir = "taken"
)

// Open makes the folders, and clears what an earlier process left: its items come again. One process at a time has a work folder.
func (f Folders) Open() (*os.File, error) {
	for _, dir := range []string{readyDir, runDir, takenDir} {
		if err := os.MkdirAll(filepath.Join(f.Work, dir), 0o777); err != nil {
			return nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(f.Work, ".lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("%s is used by another coordinator", f.Work)
	}
	killLeftovers(f.Work)
	for _, dir := range []string{readyDir, runDir, takenDir} {
		if err := f.clear(dir); err != nil {
			lock.Close()
			return nil, err
		}
	}
	return lock, nil
}

func (f Folders) clear(dir string) error {
	entries, err := os.ReadDir(filepath.Join(f.Work, dir))
	if err != nil {
		return err
	}
	for i, e := range entries {
		// Renamed away first: whoever still works in it must not be able to finish it.
		away := filepath.Join(f.Work, takenDir, fmt.Sprintf(".old-%s-%d-%d", dir, os.Getpid(), i))
		if err := os.Rename(filepath.Join(f.Work, dir, e.Name()), away); err != nil {
			return err
		}
		if err := os.RemoveAll(away); err != nil {
			return err
		}
	}
	return nil
}

// killLeftovers ends processes of attempts whose coordinator died. They are known by a variable in their environment.
func killLeftovers(work string) {
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return
	}
	mark := []byte("RETINUE_OUTPUT=" + filepath.Join(work, runDir) + "/")
	for _, path := range procs {
		env, err := os.ReadFile(path)
		if err != nil || !containsVariable(env, mark) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // it may be gone by now
		}
	}
}

func containsVariable(env, prefix []byte) bool {
	for _, v := range strings.Split(string(env), "\x00") {
		if strings.HasPrefix(v, string(prefix)) {
			return true
		}
	}
	return false
}

// make writes an attempt's folder: input, meta.json and out.
func (f Folders) make(dir string, task *item.Task) error {
	err := unix.Mkdir(dir, 0o777)
	if err == nil {
		err = unix.Mkdir(filepath.Join(dir, "out"), 0o777)
	}
	if err != nil { // the folder around it is gone, or something is in the way: it says what
		if err := os.MkdirAll(filepath.Join(dir, "out"), 0o777); err != nil {
			return err
		}
	}
	if err := f.input(filepath.Join(dir, "input"), task); err != nil {
		return err
	}
	meta, err := json.Marshal(task)
	if err != nil {
		return err
	}
	return disk.Write(filepath.Join(dir, "meta.json"), meta)
}

// errInput: the item's input cannot be had, now or ever.
var errInput = errors.New("input")

func (f Folders) input(path string, task *item.Task) error {
	if task.Input == nil {
		return disk.Write(path, task.Body)
	}
	if task.Path != "" { // a link of its own: it stays when the cache makes room, and needs no path that the worker's container has too
		if err := os.Link(task.Path, path); err == nil {
			return nil
		}
		return os.Symlink(task.Path, path)
	}
	source, err := f.resolve(task.Input)
	if err != nil {
		return fmt.Errorf("%w: %w", errInput, err)
	}
	return os.Symlink(source, path)
}

// resolve finds a reference's file and checks that it is what was meant.
func (f Folders) resolve(ref *item.Reference) (string, error) {
	u, err := url.Parse(ref.URL)
	if err != nil {
		return "", err
	}
	if u.Scheme != "file" || u.Host != "" {
		return "", fmt.Errorf("%s: only file:///… is known here; input { allow = [...] } names the addresses that are fetched", scheme(u))
	}
	path, err := filepath.EvalSymlinks(u.Path)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(f.Allow, func(dir string) bool { return below(dir, path) }) {
		return "", fmt.Errorf("%s is not below a folder that inputs may come from", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, file)
	switch {
	case err != nil:
		return "", err
	case size != ref.Size:
		return "", fmt.Errorf("%s has %d bytes, not %d", path, size, ref.Size)
	case ref.SHA256 != "" && ref.SHA256 != hex.EncodeToString(sum.Sum(nil)):
		return "", fmt.Errorf("%s has another SHA-256 than the message says", path)
	}
	return path, nil
}

// scheme is as much of an address as may be seen: the rest can have a signature in it.
func scheme(u *url.URL) string { return u.Scheme + "://" + u.Host + "/…" }

func below(dir, path string) bool {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	rel, err := filepath.Rel(real, path)
	return err == nil && filepath.IsLocal(rel)
}

// inputVerdict is what a failure to write an attempt's folder means.
func inputVerdict(err error) Verdict {
	if errors.Is(err, errInput) {
		return Verdict{Kind: Retry, Reason: err.Error()}
	}
	return Verdict{Kind: Infra, Reason: err.Error()}
}

// collect reads what an attempt left in its folder, for a verdict that the worker gave in another way (ack where it gave none).
func (f Folders) collect(dir string, task *item.Task, v Verdict) Verdict {
	v.Output = &Output{Dir: dir, Out: filepath.Join(dir, "out")}
	data, err := disk.Read(filepath.Join(dir, "status"), maxStatus)
	if err == nil && v.Kind == Ack {
		said, parseErr := ParseStatus(data)
		if parseErr != nil {
			v.Kind, v.Reason = Retry, parseErr.Error()
		} else {
			v.Kind, v.Reason, v.RetryAfter, v.Stderr = said.Kind, said.Reason, said.RetryAfter, said.Stderr
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.Kind, v.Reason = Retry, "status: "+err.Error()
	}
	if v.Kind != Ack {
		return v
	}
	if err := f.outputs(v.Output, task); err != nil {
		v.Kind, v.Reason = Retry, "output: "+err.Error()
	}
	return v
}

// outputs reads result, files and next messages.
func (f Folders) outputs(o *Output, task *item.Task) error {
	own, err := f.walk(o)
	if err != nil {
		return err
	}
	var result []byte
	if err = fs.ErrNotExist; own["_result.json"] {
		result, err = disk.Read(filepath.Join(o.Out, "_result.json"), MaxResult)
	}
	switch {
	case err == nil && !json.Valid(result):
		return errors.New("_result.json is not JSON")
	case err == nil:
		o.Result, o.ResultType = result, "application/json"
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("_result.json: %w", err)
	case len(o.Files) == 1 && o.Files[0].Size <= MaxResult:
		if o.Result, err = disk.Read(filepath.Join(o.Out, o.Files[0].Name), MaxResult); err != nil {
			return err
		}
	case f.Final == nil && !f.To && len(o.Files) > 0:
		return fmt.Errorf("%d files, which only commit = \"rename\" and artifacts keep", len(o.Files))
	}
	return f.next(o, task, own["_next"])
}

// walk lists the files. What begins with _ is the contract's own, and returned; links are nobody's output.
func (f Folders) walk(o *Output) (own map[string]bool, _ error) {
	err := filepath.WalkDir(o.Out, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(o.Out, path)
		if err != nil || name == "." {
			return err
		}
		if strings.HasPrefix(name, "_") {
			if own == nil {
				own = map[string]bool{}
			}
			own[name] = true
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			o.Files = append(o.Files, item.File{Name: name, Size: info.Size()})
		}
		return nil
	})
	return own, err
}

// next reads the messages for the next stage: those that the worker wrote, or one for each file.
func (f Folders) next(o *Output, task *item.Task, said bool) error {
	dir := filepath.Join(o.Out, "_next")
	var entries []fs.DirEntry
	if said {
		var err error
		if entries, err = os.ReadDir(dir); err != nil {
			return err
		}
	} else if f.To {
		for _, file := range o.Files {
			o.Next = append(o.Next, item.Message{File: file.Name, Headers: map[string]string{"File-Name": item.Printable(file.Name, 200)}})
		}
	}
	for _, e := range entries { // in order of name
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		data, err := disk.Read(filepath.Join(dir, e.Name()), 2*MaxInline)
		if err != nil {
			return fmt.Errorf("_next/%s: %w", e.Name(), err)
		}
		msg, err := ParseNext(data)
		if err != nil {
			return fmt.Errorf("_next/%s: %w", e.Name(), err)
		}
		o.Next = append(o.Next, msg)
	}
	for i := range o.Next {
		if err := f.load(&o.Next[i], o, task); err != nil {
			return err
		}
	}
	return nil
}

// load turns a file of the output into a body, or, where it is large, into a reference to where it will lie.
func (f Folders) load(m *item.Message, o *Output, task *item.Task) error {
	if m.File == "" {
		return nil
	}
	if !filepath.IsLocal(m.File) {
		return fmt.Errorf("a message names the file %q", item.Printable(m.File, 100))
	}
	path := filepath.Join(o.Out, m.File)
	file, size, err := openRegular(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if size <= MaxInline {
		m.Body, err = io.ReadAll(io.LimitReader(file, MaxInline))
		m.File = ""
		return err
	}
	if f.Final == nil {
		return fmt.Errorf("%s has %d bytes; above %d only commit = \"rename\" and artifacts pass it on", m.File, size, MaxInline)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return err
	}
	at := f.Final(task)
	at.Path += "/" + m.File
	m.Input, m.File = &item.Reference{URL: at.String(), Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))}, ""
	return nil
}

// openRegular opens a file that is neither a link, which could lead anywhere, nor a pipe, which could wait for ever.
func openRegular(path string) (*os.File, int64, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", filepath.Base(path))
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// discard removes an attempt's folder.
func discard(o *Output) {
	if o.Dir == "" {
		return
	}
	for _, left := range [][]string{{"input", "meta.json"}, {"status", lockedName}} { // mostly all that is left, of Exec and of Watch
		for _, name := range left {
			_ = unix.Unlink(filepath.Join(o.Dir, name))
		}
		if unix.Rmdir(o.Dir) == nil {
			return
		}
	}
	_ = os.RemoveAll(o.Dir) // what stays is removed at the next start
}
