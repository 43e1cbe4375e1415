package nbd

import (
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// clientInfo says who is at the other end of nc.
func clientInfo(nc net.Conn, id uint64) ClientInfo {
	info := ClientInfo{ID: id, UID: -1}
	if a := nc.RemoteAddr(); a != nil {
		info.Network, info.Addr = a.Network(), a.String()
	}
	if u, ok := nc.(*net.UnixConn); ok {
		info.Addr = "unix"
		if cred, err := peerCredentials(u); err == nil {
			info.PID, info.UID = int(cred.Pid), int(cred.Uid)
			info.Addr = "pid " + strconv.Itoa(info.PID)
		}
	}
	return info
}

func peerCredentials(u *net.UnixConn) (cred *unix.Ucred, err error) {
	rc, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := rc.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); e != nil {
		return nil, e
	}
	return cred, err
}
