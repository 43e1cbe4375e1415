package stream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/rpc/unixsock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	for in, want := range map[string]Name{
		"unix:/run/x":              {Class: "unix", Path: "/run/x", Port: -1},
		"unix:a:b":                 {Class: "unix", Path: "a:b", Port: -1},
		"punix:x":                  {Class: "punix", Path: "x", Port: -1},
		"pfd:3":                    {Class: "pfd", FD: 3, Port: -1},
		"tcp:host:6640":            {Class: "tcp", Host: "host", Port: 6640},
		"tcp:host":                 {Class: "tcp", Host: "host", Port: -1},
		"tcp:host:":                {Class: "tcp", Host: "host", Port: -1},
		"tcp:192.0.2.1:0":          {Class: "tcp", Host: "192.0.2.1", Port: 0},
		"ssl:[2001:db8::1]:65535":  {Class: "ssl", Host: "2001:db8::1", Port: 65535},
		"tcp:2001:db8::1":          {Class: "tcp", Host: "2001:db8::1", Port: -1},
		"tcp:[fe80::1%eth0]:1":     {Class: "tcp", Host: "fe80::1%eth0", Port: 1},
		"tcp:[::1]":                {Class: "tcp", Host: "::1", Port: -1},
		"tcp:host:[6640]":          {Class: "tcp", Host: "host", Port: 6640},
		"ptcp:6640":                {Class: "ptcp", Port: 6640},
		"ptcp:":                    {Class: "ptcp", Port: -1},
		"ptcp:6640:192.0.2.1":      {Class: "ptcp", Host: "192.0.2.1", Port: 6640},
		"pssl:0:[::1]":             {Class: "pssl", Host: "::1", Port: 0},
		"ptcp:[::1]":               {Class: "ptcp", Port: 0, Host: "bad"}, // a port, and not one
		"tcp:":                     {Host: "bad"},
		"tcp::1":                   {Host: "bad"},
		"tcp:a b:1":                {Host: "bad"},
		"tcp:h:65536":              {Host: "bad"},
		"tcp:h:-1":                 {Host: "bad"},
		"tcp:h:+1":                 {Host: "bad"},
		"tcp:h:x":                  {Host: "bad"},
		"tcp:a:b:c":                {Host: "bad"},
		"tcp:[::1":                 {Host: "bad"},
		"ptcp:1:host":              {Host: "bad"},
		"ptcp:1:192.0.2.1%eth0":    {Host: "bad"},
		"unix:":                    {Host: "bad"},
		"unix:a\x00b":              {Host: "bad"},
		"pfd:":                     {Host: "bad"},
		"pfd:-1":                   {Host: "bad"},
		"pfd:x":                    {Host: "bad"},
		"pfd:99999999999999999999": {Host: "bad"},
		"udp:h:1":                  {Host: "bad"},
		"tcp":                      {Host: "bad"},
		"":                         {Host: "bad"},
	} {
		got, err := Parse(in)
		if want.Host == "bad" {
			if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EAFNOSUPPORT) {
				t.Errorf("%q: %+v, %v", in, got, err)
			}
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v\n%s", in, err, diff)
		}
	}
}

func TestErrorsOfNames(t *testing.T) {
	for in, want := range map[string]string{
		"udp:h:1":    `udp:h:1: unknown class "udp": address family not supported by protocol`,
		"tcp":        `tcp: expected CLASS:ADDRESS: address family not supported by protocol`,
		"tcp::1":     `tcp::1: host must be specified: invalid argument`,
		"tcp:h:x":    `tcp:h:x: bad port number "x": invalid argument`,
		"tcp:h":      `tcp:h: port must be specified: invalid argument`,
		"pfd:x":      `pfd:x: bad file descriptor: invalid argument`,
		"ptcp:1":     `ptcp:1: a passive name cannot be connected to: address family not supported by protocol`,
		"ssl:h:1":    `ssl:h:1: TLS needs a certificate, its key and a CA certificate`,
		"unix:/none": `unix:/none: no such file or directory`,
	} {
		if in == "ssl:h:1" {
			in = "ssl:" + listenTCP(t, "ptcp:0:127.0.0.1", Options{}).Addr().String()
			want = in + ": TLS needs a certificate, its key and a CA certificate"
		}
		if _, err := Open(t.Context(), in, Options{}); err == nil || err.Error() != want {
			t.Errorf("Open: %v, want %s", err, want)
		}
	}
	for in, want := range map[string]string{
		"tcp:h:1":          `tcp:h:1: an active name cannot be listened on: address family not supported by protocol`,
		"ptcp:":            `ptcp:: port must be specified: invalid argument`,
		"pssl:0:127.0.0.1": `pssl:0:127.0.0.1: TLS needs a certificate, its key and a CA certificate`,
		"pfd:987654":       `pfd:987654: not a socket: bad file descriptor`,
	} {
		if _, err := Listen(in, Options{}); err == nil || err.Error() != want {
			t.Errorf("Listen: %v, want %s", err, want)
		}
	}
}

func listenTCP(t *testing.T, name string, o Options) net.Listener {
	t.Helper()
	ln, err := Listen(name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// echo greets each connection with its peer's name and ends it.
func echo(t *testing.T, ln net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			nc.SetDeadline(time.Now().Add(20 * time.Second))
			greeting := "hello"
			if c, ok := nc.(Conn); ok {
				c.Handshake()
				greeting += " " + c.PeerName()
			}
			io.WriteString(nc, greeting)
			nc.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
}

func greeting(t *testing.T, name string, o Options) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	nc, err := Open(ctx, name, o)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	text, err := io.ReadAll(nc)
	return string(text), err
}

func port(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

func TestTCPAndUnix(t *testing.T) {
	v4 := listenTCP(t, "ptcp:0:127.0.0.1", Options{})
	echo(t, v4)
	o := Options{Dir: t.TempDir(), DefaultPort: port(v4)}
	un := listenTCP(t, "punix:s", o)
	echo(t, un)
	names := []string{"unix:s", "unix:" + filepath.Join(o.Dir, "s"), "tcp:127.0.0.1", fmt.Sprintf("tcp:localhost:%d", port(v4))}
	if v6, err := Listen("ptcp:0:[::1]", Options{}); err == nil {
		echo(t, v6)
		names = append(names, fmt.Sprintf("tcp:[::1]:%d", port(v6)))
	} else {
		t.Logf("no IPv6 here: %v", err)
	}
	for _, name := range names {
		if got, err := greeting(t, name, o); got != "hello" || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := Listen("punix:s", o); !errors.Is(err, unixsock.ErrInUse) {
		t.Errorf("the same socket twice: %v", err)
	}
}

func TestLocalAddress(t *testing.T) {
	ln := listenTCP(t, "ptcp:0:127.0.0.1", Options{})
	for bind, want := range map[string]string{"127.0.0.2": "127.0.0.2", "127.0.0.3:0": "127.0.0.3"} {
		nc, err := DialTCP(t.Context(), ln.Addr().String(), Options{Bind: bind})
		if err != nil {
			t.Fatal(err)
		}
		if got := nc.LocalAddr().(*net.TCPAddr).IP.String(); got != want {
			t.Errorf("bound to %s, comes from %s", bind, got)
		}
		nc.Close()
	}
	for bind, want := range map[string]string{"[::1]": "::1", "[::1]:5": "::1"} {
		if a, err := localAddr(bind); err != nil || a.IP.String() != want {
			t.Errorf("%s: %v, %v", bind, a, err)
		}
	}
	if _, err := DialTCP(t.Context(), ln.Addr().String(), Options{Bind: "nowhere"}); err == nil {
		t.Error("a bad local address is taken")
	}
}

// dscp returns the code point that a socket marks its packets with.
func dscp(t *testing.T, c any) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	tos := -1
	raw.Control(func(fd uintptr) { tos, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS) })
	if err != nil {
		t.Fatal(err)
	}
	return tos >> 2
}

func TestPacketsAreMarked(t *testing.T) {
	for in, want := range map[int]int{0: 48, NoDSCP: 0, 10: 10, 63: 63} {
		ln := listenTCP(t, "ptcp:0:127.0.0.1", Options{DSCP: in})
		nc, err := DialTCP(t.Context(), ln.Addr().String(), Options{DSCP: in})
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if a, b := dscp(t, nc), dscp(t, accepted); a != want || b != want {
			t.Errorf("asked for %d: %d and %d", in, a, b)
		}
		nc.Close()
		accepted.Close()
	}
	if _, err := Listen("ptcp:0:127.0.0.1", Options{DSCP: 64}); err == nil {
		t.Error("64 is taken")
	}
}

func TestInheritedSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	original, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer original.Close()
	f, err := original.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(f.Fd()))
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	ln := listenTCP(t, fmt.Sprintf("pfd:%d", fd), Options{})
	echo(t, ln)
	if got, err := greeting(t, "unix:"+path, Options{}); got != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	ln.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket's file was not ours to remove: %v", err)
	}
}

func TestInheritedDescriptorsOfOtherKinds(t *testing.T) {
	var pipe [2]int
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	datagram, err2 := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err := errors.Join(err, err2, unix.Pipe(pipe[:])); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{pair[0], pair[1], datagram[0], datagram[1], pipe[0], pipe[1]} {
		defer unix.Close(fd)
	}
	for fd, want := range map[int]string{
		pipe[0]:     "not a socket: socket operation on non-socket",
		datagram[0]: "not a stream socket (type 2): invalid argument",
		pair[0]:     "not a listening socket: invalid argument",
	} {
		if _, err := Listen(fmt.Sprintf("pfd:%d", fd), Options{}); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key = a.newKey()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) pem(name, kind string, der []byte) string {
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// issue writes a certificate for cn, valid for the host 127.0.0.1 if local,
// and its key, to files called file.
func (a *authority) issue(file, cn string, local bool) Files {
	key := a.newKey()
	a.n++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.n), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if local {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	} else {
		template.DNSNames = []string{cn}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return Files{
		Cert: a.pem(file+".pem", "CERTIFICATE", der), Key: a.pem(file+".key", "EC PRIVATE KEY", keyDER),
		CA: filepath.Join(a.dir, "ca.pem"),
	}
}

func identity(t *testing.T, f Files) *Identity {
	t.Helper()
	id, err := NewIdentity(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestTLS(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	ln := listenTCP(t, "pssl:0:127.0.0.1", Options{TLS: identity(t, ca.issue("server", "server", true))})
	echo(t, ln)
	name := fmt.Sprintf("ssl:127.0.0.1:%d", port(ln))
	good := ca.issue("client", "alice", true)
	if got, err := greeting(t, name, Options{TLS: identity(t, good)}); got != "hello alice" || err != nil {
		t.Errorf("%q, %v", got, err)
	}

	// A client of another authority is refused by the server and refuses it.
	stranger := foreign.issue("client", "mallory", true)
	if _, err := greeting(t, name, Options{TLS: identity(t, stranger)}); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a stranger refuses the server: %v", err)
	}
	stranger.CA = good.CA
	if got, err := greeting(t, name, Options{TLS: identity(t, stranger)}); err == nil {
		t.Errorf("a stranger is greeted: %q", got)
	}

	// A server must have the name that was dialled, unless any will do.
	other := listenTCP(t, "pssl:0:127.0.0.1", Options{TLS: identity(t, ca.issue("other", "other.example", false))})
	echo(t, other)
	name = fmt.Sprintf("ssl:127.0.0.1:%d", port(other))
	if _, err := greeting(t, name, Options{TLS: identity(t, good)}); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("a server of another name is trusted: %v", err)
	}
	named, any, anyStranger := good, good, stranger
	named.ServerName = "other.example"
	any.AnyName = true
	anyStranger.AnyName, anyStranger.CA = true, filepath.Join(foreign.dir, "ca.pem")
	for what, f := range map[string]Files{"by its name": named, "by any name": any} {
		if got, err := greeting(t, name, Options{TLS: identity(t, f)}); got != "hello alice" || err != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	if _, err := greeting(t, name, Options{TLS: identity(t, anyStranger)}); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("any name, but another authority: %v", err)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	ca := newAuthority(t)
	ln := listenTCP(t, "pssl:0:127.0.0.1", Options{TLS: identity(t, ca.issue("server", "server", true))})
	echo(t, ln)
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		m, err := identity(t, ca.issue("client", "alice", true)).current()
		if err != nil {
			t.Fatal(err)
		}
		nc, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{
			RootCAs: m.pool, Certificates: []tls.Certificate{m.cert}, MinVersion: tls.VersionTLS10, MaxVersion: version})
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			nc.Close()
		}
	}
}

// serial returns the serial number of the server that answers at address.
func serial(t *testing.T, name string, o Options) int64 {
	t.Helper()
	nc, err := Open(t.Context(), name, o)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	return nc.(Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestChangedFilesAreReadAgain(t *testing.T) {
	ca := newAuthority(t)
	id := identity(t, ca.issue("server", "server", true))
	ln := listenTCP(t, "pssl:0:127.0.0.1", Options{TLS: id})
	echo(t, ln)
	o := Options{TLS: identity(t, ca.issue("client", "alice", true))}
	name := fmt.Sprintf("ssl:127.0.0.1:%d", port(ln))
	first := serial(t, name, o)

	// Half of a change is no change; it is reported.
	f := ca.issue("next", "server", true)
	if err := os.Rename(f.Cert, id.files.Cert); err != nil {
		t.Fatal(err)
	}
	if got := serial(t, name, o); got != first || id.Err() == nil {
		t.Errorf("after half of the change: serial %d, %v", got, id.Err())
	}
	if err := os.Rename(f.Key, id.files.Key); err != nil {
		t.Fatal(err)
	}
	if got := serial(t, name, o); got == first || id.Err() != nil {
		t.Errorf("after the change: serial %d, %v", got, id.Err())
	}

	// So is a file that is gone.
	if err := os.Remove(id.files.Key); err != nil {
		t.Fatal(err)
	}
	if serial(t, name, o); !errors.Is(id.Err(), os.ErrNotExist) {
		t.Errorf("without a key: %v", id.Err())
	}
}

func TestBadIdentities(t *testing.T) {
	ca := newAuthority(t)
	good := ca.issue("a", "a", true)
	other := ca.issue("b", "b", true)
	junk := filepath.Join(ca.dir, "junk")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(ca.dir, "huge")
	if err := os.WriteFile(huge, make([]byte, maxPEM+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		f    Files
		want string
	}{
		{Files{}, "TLS needs a certificate"},
		{Files{Cert: good.Cert, Key: good.Key}, "TLS needs a certificate"},
		{Files{Cert: ca.dir + "/none", Key: good.Key, CA: good.CA}, "reading the certificate"},
		{Files{Cert: good.Cert, Key: ca.dir + "/none", CA: good.CA}, "reading the private key"},
		{Files{Cert: good.Cert, Key: good.Key, CA: ca.dir + "/none"}, "reading the CA certificate"},
		{Files{Cert: good.Cert, Key: other.Key, CA: good.CA}, "private key does not match public key"},
		{Files{Cert: junk, Key: good.Key, CA: good.CA}, "failed to find any PEM data"},
		{Files{Cert: good.Cert, Key: good.Key, CA: junk}, "holds no CA certificate"},
		{Files{Cert: huge, Key: good.Key, CA: good.CA}, "is larger than"},
	} {
		if _, err := NewIdentity(tt.f); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s", tt.f, err, tt.want)
		}
	}
	if err := (*Identity)(nil).Err(); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("no identity: %v", err)
	}
}

// Open gives up when its context does, in the handshake too.
func TestOpenHeedsItsContext(t *testing.T) {
	ln := listenTCP(t, "ptcp:0:127.0.0.1", Options{}) // accepts, in the kernel, and says nothing
	ca := newAuthority(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, fmt.Sprintf("ssl:127.0.0.1:%d", port(ln)), Options{TLS: identity(t, ca.issue("c", "c", true))})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestNeedsProbes(t *testing.T) {
	for name, want := range map[string]bool{"tcp:h:1": true, "ssl:h:1": true, "ptcp:1": true, "pssl:1": true, "unix:x": false, "punix:x": false, "pfd:3": false} {
		n, err := Parse(name)
		if err != nil || n.NeedsProbes() != want || n.Passive() != (name[0] == 'p') {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"tcp:[::1]:6640", "ptcp:6640:127.0.0.1", "unix:/run/x", "pfd:3", "tcp:a:b:c", "pssl:[", "tcp:fe80::1%eth0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		n, err := Parse(name)
		if err != nil {
			return
		}
		if n.Port < -1 || n.Port > 65535 || n.FD < 0 {
			t.Fatalf("%q: %+v", name, n)
		}
		if n.NeedsProbes() && n.Port > 0 {
			address, err := n.address(0)
			if err != nil {
				t.Fatalf("%q: %v", name, err)
			}
			if _, _, err := net.SplitHostPort(address); err != nil {
				t.Fatalf("%q: %v", name, err)
			}
		}
	})
}
