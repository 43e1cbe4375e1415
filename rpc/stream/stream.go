// Package stream opens connections and listeners by names in Open vSwitch's
// grammar:
//
//	tcp:HOST:PORT     ptcp:PORT[:IP]     TCP
//	ssl:HOST:PORT     pssl:PORT[:IP]     TLS 1.2 or later, both sides with a certificate
//	unix:FILE         punix:FILE         Unix socket
//	                  pfd:FD             a listening socket that was inherited
//
// An IPv6 address may stand in brackets, and must where a port follows it.
// Links are marked as network control traffic (DSCP CS6) and do not delay
// small packets. Certificate files that change are read again for the next
// connection.
package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/rpc/unixsock"
)

const (
	// DefaultDSCP is the code point CS6, network control.
	DefaultDSCP = 48
	// NoDSCP as a code point leaves packets unmarked.
	NoDSCP = -1
)

// Options say how connections are made. The zero value will do for all but
// TLS.
type Options struct {
	// DefaultPort is taken where a name has no port; 0 makes that an error.
	DefaultPort int

	// Bind is the local address, "IP" or "IP:PORT", that an active TCP or TLS
	// connection comes from.
	Bind string

	// DSCP marks the packets; 0 means DefaultDSCP.
	DSCP int

	// Dir is what relative file names are relative to.
	Dir string

	// TLS is who this side is and whom it trusts; ssl: and pssl: need it.
	TLS *Identity

	// Unix is how a punix: socket is made.
	Unix unixsock.Options
}

// Open connects to an active name. It returns when the connection is usable:
// for TLS, after the handshake.
func Open(ctx context.Context, name string, o Options) (net.Conn, error) {
	n, err := Parse(name)
	if err != nil {
		return nil, err
	}
	nc, err := open(ctx, n, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return nc, nil
}

func open(ctx context.Context, n Name, o Options) (net.Conn, error) {
	switch n.Class {
	case "unix":
		nc, err := unixsock.Dial(ctx, o.path(n.Path))
		if err != nil {
			return nil, err // a nil *net.UnixConn is not a nil net.Conn
		}
		return nc, nil
	case "tcp", "ssl":
		address, err := n.address(o.DefaultPort)
		if err != nil {
			return nil, err
		}
		nc, err := DialTCP(ctx, address, o)
		if err != nil || n.Class == "tcp" {
			return nc, err
		}
		return o.TLS.client(ctx, nc, n.Host)
	}
	return nil, fmt.Errorf("a passive name cannot be connected to: %w", unix.EAFNOSUPPORT)
}

// DialTCP connects to a HOST:PORT with the options' local address and marking.
func DialTCP(ctx context.Context, address string, o Options) (net.Conn, error) {
	local, err := localAddr(o.Bind)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Control: o.mark}
	if local != nil {
		d.LocalAddr = local
	}
	nc, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return nc, nil
}

func localAddr(bind string) (*net.TCPAddr, error) {
	if bind == "" {
		return nil, nil
	}
	if ip, err := netip.ParseAddr(strings.Trim(bind, "[]")); err == nil {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)), nil
	}
	ap, err := netip.ParseAddrPort(bind)
	if err != nil {
		return nil, fmt.Errorf("bad local address %q: expected IP or IP:PORT", bind)
	}
	return net.TCPAddrFromAddrPort(ap), nil
}

// mark sets the code point before the socket connects or listens, so that the
// first packet has it too.
func (o *Options) mark(network, _ string, c syscall.RawConn) error {
	dscp := o.DSCP
	switch {
	case dscp == 0:
		dscp = DefaultDSCP
	case dscp < 0:
		return nil
	case dscp > 63:
		return fmt.Errorf("bad DSCP %d: expected 0 to 63", dscp)
	}
	var failed error
	err := c.Control(func(fd uintptr) {
		if strings.HasSuffix(network, "6") {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscp<<2)
			return
		}
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, dscp<<2)
	})
	return errors.Join(err, failed)
}

func (o *Options) path(file string) string {
	if filepath.IsAbs(file) || o.Dir == "" {
		return file
	}
	return filepath.Join(o.Dir, file)
}

// Listen listens on a passive name. TLS handshakes are left to the first read
// or write on an accepted connection, or to its HandshakeContext, so that a
// client that says nothing does not hold up the next.
func Listen(name string, o Options) (net.Listener, error) {
	n, err := Parse(name)
	if err != nil {
		return nil, err
	}
	ln, err := listen(n, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return ln, nil
}

func listen(n Name, o Options) (net.Listener, error) {
	switch n.Class {
	case "punix":
		ln, err := unixsock.Listen(o.path(n.Path), o.Unix)
		if err != nil {
			return nil, err
		}
		return ln, nil
	case "pfd":
		return inherited(n.FD)
	case "ptcp", "pssl":
		address, err := n.address(o.DefaultPort)
		if err != nil {
			return nil, err
		}
		if n.Class == "ptcp" {
			return ListenTCP(address, o)
		}
		return o.TLS.listen(address, o)
	}
	return nil, fmt.Errorf("an active name cannot be listened on: %w", unix.EAFNOSUPPORT)
}

// ListenTCP listens on an IP:PORT with the options' marking. Port 0 picks one:
// see the listener's Addr.
func ListenTCP(address string, o Options) (net.Listener, error) {
	ln, err := (&net.ListenConfig{Control: o.mark}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return ln, nil
}

// inherited makes a listener of a descriptor that the process was started with.
// The descriptor is the listener's from then on.
func inherited(fd int) (net.Listener, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("not a socket: %w", err)
	}
	if kind != unix.SOCK_STREAM {
		return nil, fmt.Errorf("not a stream socket (type %d): %w", kind, unix.EINVAL)
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return nil, fmt.Errorf("not a listening socket: %w", unix.EINVAL)
	}
	f := os.NewFile(uintptr(fd), "pfd:"+strconv.Itoa(fd))
	defer f.Close() // FileListener has a descriptor of its own
	return net.FileListener(f)
}
