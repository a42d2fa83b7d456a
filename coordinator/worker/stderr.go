package worker

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"retinue/coordinator/item"
)

// keptStderr is how much of the end of stderr is kept.
const keptStderr = 4 << 10

// stderr keeps the end of what a command says there. It is a pipe, because a file would be one more to make and remove for each item, and a
// talkative command would fill the disk with it. What a command that ends soon says fits into the pipe; only for one that takes
// longer somebody reads meanwhile.
type stderr struct {
	read, write int
	kept        []byte // at most twice keptStderr

	following *os.File // read, once it is followed
	ended     chan struct{}
}

func openStderr() (*stderr, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(ends[0], true); err != nil {
		unix.Close(ends[0])
		unix.Close(ends[1])
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &stderr{read: ends[0], write: ends[1]}, nil
}

// handed closes this side's copy of what the command has.
func (s *stderr) handed() { unix.Close(s.write) }

// follow reads from now on.
func (s *stderr) follow() {
	s.following, s.ended = os.NewFile(uintptr(s.read), "stderr"), make(chan struct{})
	go func() {
		defer close(s.ended)
		for buf := make([]byte, keptStderr); ; {
			n, err := s.following.Read(buf)
			s.keep(buf[:n])
			if err != nil {
				return
			}
		}
	}()
}

func (s *stderr) keep(said []byte) {
	s.kept = append(s.kept, said...)
	if over := len(s.kept) - keptStderr; over > keptStderr {
		s.kept = append(s.kept[:0], s.kept[over:]...)
	}
}

// most that is read of a pipe that nobody followed: who left the process group may go on writing. A pipe has 64 KiB.
const mostUnfollowed = 256 << 10

// close returns the end of what was said. The command and its process group are gone; who left the group and holds the pipe is not waited for.
func (s *stderr) close() string {
	if s.following != nil {
		_ = s.following.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // a pipe has deadlines
		<-s.ended
		s.following.Close()
		return item.Tail(string(s.kept), keptStderr)
	}
	var buf [keptStderr]byte
	for total := 0; total < mostUnfollowed; {
		n, err := unix.Read(s.read, buf[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 { // the end, or nothing more for now
			break
		}
		s.keep(buf[:n])
		total += n
	}
	unix.Close(s.read)
	return item.Tail(string(s.kept), keptStderr)
}
