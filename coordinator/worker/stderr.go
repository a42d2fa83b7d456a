package worker

import (
	"os"
	"time"

	"retinue/coordinator/item"
)

// keptStderr is how much of the end of stderr is kept.
const keptStderr = 4 << 10

// stderr keeps the end of what a command says there. It is a pipe, because a file would be one more to make and remove for each item, and a
// talkative command would fill the disk with it.
type stderr struct {
	read, write *os.File
	ended       chan struct{}
	kept        []byte // at most twice keptStderr
}

func openStderr() (*stderr, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &stderr{read: r, write: w, ended: make(chan struct{})}
	go s.follow()
	return s, nil
}

func (s *stderr) follow() {
	defer close(s.ended)
	buf := make([]byte, keptStderr)
	for {
		n, err := s.read.Read(buf)
		s.kept = append(s.kept, buf[:n]...)
		if over := len(s.kept) - keptStderr; over > keptStderr {
			s.kept = append(s.kept[:0], s.kept[over:]...)
		}
		if err != nil {
			return
		}
	}
}

// close returns the end of what was said. The command and its process group are gone; who left the group and holds the pipe is not waited for.
func (s *stderr) close() string {
	s.write.Close()
	_ = s.read.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // a pipe has deadlines
	<-s.ended
	s.read.Close()
	return item.Tail(string(s.kept), keptStderr)
}
