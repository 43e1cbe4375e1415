package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// ErrNoIdentity says that TLS was asked for without certificates to do it with.
var ErrNoIdentity = errors.New("TLS needs a certificate, its key and a CA certificate")

// Files are the PEM files of an identity.
type Files struct {
	Cert, Key string // of this side
	CA        string // whom the other side's certificate must be from

	// ServerName is the name that a server's certificate must be for, in
	// place of the host that was dialled.
	ServerName string
	// AnyName takes a server's certificate whatever name it is for: whoever
	// the CA has signed is trusted, as in Open vSwitch.
	AnyName bool
}

// Identity is who this side is and whom it trusts. Files that change are read
// again for the next connection; while they do not fit together (one has been
// replaced, the other not yet) the last good ones stay in use.
type Identity struct {
	files Files

	mu     sync.Mutex
	good   *material // guarded by mu
	tried  [3]stamp  // of the files when they were read last, guarded by mu
	failed error     // why the last reading did not help, guarded by mu
}

// material is what handshakes need. It is never changed.
type material struct {
	cert tls.Certificate
	pool *x509.CertPool
}

// stamp tells whether a file has changed. The inode is part of it because the
// clock of a file system is too coarse for a file replaced within milliseconds.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// NewIdentity reads the files. They must be good to begin with.
func NewIdentity(f Files) (*Identity, error) {
	id := &Identity{files: f}
	if _, err := id.current(); err != nil {
		return nil, err
	}
	return id, nil
}

// Err returns why the files as they are now are not in use, or nil.
func (id *Identity) Err() error {
	if id == nil {
		return ErrNoIdentity
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.failed
}

// current returns the newest good material.
func (id *Identity) current() (*material, error) {
	if id == nil {
		return nil, ErrNoIdentity
	}
	now := id.files.stamps()
	id.mu.Lock()
	fresh := id.good != nil && now == id.tried
	good := id.good
	id.mu.Unlock()
	if fresh {
		return good, nil
	}
	read, err := id.files.read()
	id.mu.Lock()
	defer id.mu.Unlock()
	id.tried, id.failed = now, err
	if err == nil {
		id.good = read
	}
	if id.good == nil {
		return nil, err
	}
	return id.good, nil
}

func (f *Files) stamps() (s [3]stamp) {
	for i, path := range []string{f.Cert, f.Key, f.CA} {
		if info, err := os.Stat(path); err == nil {
			s[i] = stamp{info.ModTime(), info.Size(), info.Sys().(*syscall.Stat_t).Ino}
		}
	}
	return s
}

func (f *Files) read() (*material, error) {
	if f.Cert == "" || f.Key == "" || f.CA == "" {
		return nil, ErrNoIdentity
	}
	cert, err := readPEM(f.Cert)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	key, err := readPEM(f.Key)
	if err != nil {
		return nil, fmt.Errorf("reading the private key: %w", err)
	}
	ca, err := readPEM(f.CA)
	if err != nil {
		return nil, fmt.Errorf("reading the CA certificate: %w", err)
	}
	m := &material{pool: x509.NewCertPool()}
	if m.cert, err = tls.X509KeyPair(cert, key); err != nil {
		return nil, fmt.Errorf("certificate %s and key %s: %w", f.Cert, f.Key, err)
	}
	if !m.pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no CA certificate", f.CA)
	}
	return m, nil
}

// maxPEM bounds what is read of a file.
const maxPEM = 1 << 20

func readPEM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(data) > maxPEM {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxPEM)
	}
	return data, err
}

// client does the handshake of an active connection. It closes nc if it fails.
func (id *Identity) client(ctx context.Context, nc net.Conn, host string) (net.Conn, error) {
	m, err := id.current()
	if err != nil {
		nc.Close()
		return nil, err
	}
	c := Conn{tls.Client(nc, id.clientConfig(m, host))}
	if err := c.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return c, nil
}

func (id *Identity) clientConfig(m *material, host string) *tls.Config {
	cfg := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{m.cert},
		RootCAs:      m.pool,
		ServerName:   host,
	}
	if id.files.ServerName != "" {
		cfg.ServerName = id.files.ServerName
	}
	if id.files.AnyName {
		cfg.InsecureSkipVerify = true // of the name; the chain is verified below
		cfg.VerifyConnection = m.verifyChain
	}
	return cfg
}

// verifyChain does what the TLS library does but for the name.
func (m *material) verifyChain(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the server has no certificate")
	}
	o := x509.VerifyOptions{Roots: m.pool, Intermediates: x509.NewCertPool()}
	for _, cert := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(cert)
	}
	_, err := s.PeerCertificates[0].Verify(o)
	return err
}

// listen listens for TLS connections of clients with a certificate.
func (id *Identity) listen(address string, o Options) (net.Listener, error) {
	if _, err := id.current(); err != nil {
		return nil, err
	}
	ln, err := ListenTCP(address, o)
	if err != nil {
		return nil, err
	}
	return id.Listener(ln), nil
}

// Listener makes TLS connections of those that ln accepts, as Listen does for
// pssl: names.
func (id *Identity) Listener(ln net.Listener) net.Listener {
	return tlsListener{ln, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return id.serverConfig()
		},
	}}
}

// serverConfig is asked for anew in every handshake: that is how changed files
// come into use.
func (id *Identity) serverConfig() (*tls.Config, error) {
	m, err := id.current()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{m.cert},
		ClientCAs:    m.pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}, nil
}

type tlsListener struct {
	net.Listener
	cfg *tls.Config
}

// Accept returns a Conn whose handshake has not been done yet.
func (l tlsListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Conn{tls.Server(nc, l.cfg)}, nil
}

// Conn is a TLS connection.
type Conn struct{ *tls.Conn }

// PeerName returns the common name in the other side's certificate, once the
// handshake is done; "" before that.
func (c Conn) PeerName() string {
	state := c.ConnectionState()
	if !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return ""
	}
	return state.PeerCertificates[0].Subject.CommonName
}
