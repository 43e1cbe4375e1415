package reload

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// beingWritten reports whether some process has the file open for writing, and
// so may not be done with it. The kernel says so: it gives no lease for reading
// then. Where it gives none to us, or none for such files, nobody knows, and the
// answer is no.
func beingWritten(path string) bool {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close() // which ends the lease, too
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return errors.Is(err, unix.EAGAIN)
}
