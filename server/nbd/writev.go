package nbd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// writev sends iov, which must not be empty, with one system call. The
// function of this name in x/sys takes byte slices and makes the vector anew
// for every call.
func writev(fd int, iov []unix.Iovec) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
