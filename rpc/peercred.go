package rpc

import (
	"fmt"
	"net"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// named is a connection whose other side has proved its name (stream.Conn).
type named interface{ PeerName() string }

// identify finds out who is at the other end of nc.
func (s *Server) identify(nc net.Conn) (Actor, error) {
	switch c := nc.(type) {
	case *net.UnixConn:
		a, err := peerCredentials(c)
		if err == nil {
			a.User = s.users.name(a.UID)
		}
		return a, err
	case named:
		return Actor{User: c.PeerName()}, nil
	}
	return Actor{}, nil
}

// peerCredentials asks the kernel who made the connection.
func peerCredentials(c syscall.Conn) (Actor, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Actor{}, err
	}
	a := Actor{Local: true}
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			failed = fmt.Errorf("asking for the peer's credentials: %w", err)
			return
		}
		a.UID, a.GID, a.PID = cred.Uid, cred.Gid, int(cred.Pid)
		a.Groups = peerGroups(int(fd))
	})
	if err != nil {
		return Actor{}, err
	}
	return a, failed
}

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// peerGroups returns the supplementary groups of the peer; none where the
// kernel does not tell (before Linux 4.13).
func peerGroups(fd int) []uint32 {
	groups := make([]uint32, 64)
	for len(groups) <= maxGroups {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4]
		case unix.ERANGE:
			groups = make([]uint32, 2*len(groups))
		default:
			return nil
		}
	}
	return nil
}

// userNames remembers login names: looking one up reads a file.
type userNames struct {
	mu    sync.Mutex
	names map[uint32]string // guarded by mu; bounded by maxUserNames
}

const maxUserNames = 1024

func (u *userNames) name(uid uint32) string {
	u.mu.Lock()
	name, ok := u.names[uid]
	u.mu.Unlock()
	if ok {
		return name
	}
	name = strconv.FormatUint(uint64(uid), 10)
	if found, err := user.LookupId(name); err == nil {
		name = found.Username
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.names) >= maxUserNames || u.names == nil {
		u.names = make(map[uint32]string)
	}
	u.names[uid] = name
	return name
}
