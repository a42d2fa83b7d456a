package notify

import (
	"golang.org/x/sys/unix"
)

// closeFDs closes the file descriptors that came with a datagram: FDSTORE=1 and BARRIER=1 send some. For BARRIER that is
// the answer; of FDSTORE nothing is kept.
func closeFDs(oob []byte) {
	if len(oob) == 0 {
		return
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}
