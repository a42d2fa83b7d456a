package worker

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// notices are what the kernel tells of folders (inotify). It tells nothing of other machines, and not all when too much happens: who listens
// looks now and then all the same. A nil one tells nothing.
type notices struct{ file *os.File }

// openNotices returns nil where the kernel has none to give.
func openNotices() *notices {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	return &notices{os.NewFile(uintptr(fd), "inotify")}
}

// watch asks for notices of a folder, which have the number that it returns.
func (n *notices) watch(path string, mask uint32) (number int32, ok bool) {
	if n == nil {
		return 0, false
	}
	conn, err := n.file.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = conn.Control(func(fd uintptr) {
		wd, err := unix.InotifyAddWatch(int(fd), path, mask)
		number, ok = int32(wd), err == nil
	})
	return number, ok && err == nil
}

// each calls see with every notice, until they are closed.
func (n *notices) each(see func(number int32, mask uint32, name string)) {
	buf := make([]byte, 64<<10)
	for {
		size, err := n.file.Read(buf)
		if err != nil {
			return
		}
		for rest := buf[:size]; len(rest) >= unix.SizeofInotifyEvent; {
			end := min(unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(rest[12:])), len(rest))
			name, _, _ := bytes.Cut(rest[unix.SizeofInotifyEvent:end], []byte{0})
			see(int32(binary.NativeEndian.Uint32(rest)), binary.NativeEndian.Uint32(rest[4:]), string(name))
			rest = rest[end:]
		}
	}
}

func (n *notices) close() {
	if n != nil {
		n.file.Close()
	}
}

// offers tell a worker's slots of what is offered, one slot of each.
type offers struct {
	ready   string
	notices *notices
	watched atomic.Bool
	news    chan struct{}
	ended   chan struct{}
}

func openOffers(work string, slots int) *offers {
	o := &offers{ready: filepath.Join(work, readyDir), notices: openNotices(), news: make(chan struct{}, slots), ended: make(chan struct{})}
	if o.notices == nil {
		close(o.ended)
		return o
	}
	go func() {
		defer close(o.ended)
		o.notices.each(func(_ int32, mask uint32, _ string) {
			if mask&unix.IN_IGNORED != 0 { // the folder is gone
				o.watched.Store(false)
			}
			select {
			case o.news <- struct{}{}:
			default: // all slots are busy, and look before they rest
			}
		})
	}()
	return o
}

// watch is called before every look: the coordinator makes the folder, perhaps later.
func (o *offers) watch() {
	if !o.watched.Load() {
		if _, ok := o.notices.watch(o.ready, unix.IN_MOVED_TO|unix.IN_ONLYDIR); ok {
			o.watched.Store(true)
		}
	}
}

func (o *offers) close() {
	o.notices.close()
	<-o.ended
}
