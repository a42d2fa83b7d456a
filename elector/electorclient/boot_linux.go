package electorclient

import (
	"syscall"
	"time"
	"unsafe"
)

const clockBoottime = 7 // CLOCK_BOOTTIME of linux/time.h; package syscall does not name it

// bootTime is the time since the machine booted. It goes on while the machine sleeps, which Go's own monotonic clock does not.
func bootTime() time.Duration {
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		// Only a kernel older than 2.6.39 does not have this clock.
		panic("electorclient: CLOCK_BOOTTIME: " + errno.Error())
	}
	return time.Duration(ts.Nano())
}
