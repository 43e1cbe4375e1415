package messenger

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLSFiles is a TLS made of three PEM files. They are looked at for each
// connection and read again when one has changed, so that a renewed
// certificate needs no restart; sessions that exist go on. TLS 1.3 only, with
// certificates on both sides; each must name its node as a DNS name.
type TLSFiles struct {
	// mu guards what follows. Files are read while it is held, by connections
	// that are being made and by nothing else.
	mu     sync.Mutex
	ca     string
	cert   string
	key    string
	stamps [3]stamp
	roots  *x509.CertPool
	pair   tls.Certificate
}

// stamp tells whether a file is the one that was read.
type stamp struct {
	at   time.Time
	size int64
}

// NewTLSFiles reads the three files.
func NewTLSFiles(ca, cert, key string) (*TLSFiles, error) {
	f := &TLSFiles{ca: ca, cert: cert, key: key}
	_, _, err := f.current()
	return f, err
}

// Use has connections that are made from now on use three other files. It fails,
// and changes nothing, where they do not fit.
func (f *TLSFiles) Use(ca, cert, key string) error {
	next, err := NewTLSFiles(ca, cert, key)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ca, f.cert, f.key, f.stamps, f.roots, f.pair = ca, cert, key, next.stamps, next.roots, next.pair
	return nil
}

// current returns what the files hold. While they are unreadable or do not
// fit, as in the middle of a renewal, it goes on with what was read before.
func (f *TLSFiles) current() (*x509.CertPool, tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamps, err := f.look()
	if err == nil && (f.roots == nil || stamps != f.stamps) {
		if err = f.read(); err == nil {
			f.stamps = stamps
		}
	}
	if f.roots != nil {
		err = nil
	}
	return f.roots, f.pair, err
}

func (f *TLSFiles) look() (s [3]stamp, err error) {
	for i, path := range [...]string{f.ca, f.cert, f.key} {
		info, err := os.Stat(path)
		if err != nil {
			return s, fmt.Errorf("TLS: %w", err)
		}
		s[i] = stamp{info.ModTime(), info.Size()}
	}
	return s, nil
}

func (f *TLSFiles) read() error {
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("TLS: " + f.ca + " holds no certificate")
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("TLS: certificate %s with key %s: %w", f.cert, f.key, err)
	}
	f.roots, f.pair = roots, pair
	return nil
}

// Client implements TLS.
func (f *TLSFiles) Client(node string) (*tls.Config, error) {
	roots, pair, err := f.current()
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair}, ServerName: node}, nil
}

// Server implements TLS.
func (f *TLSFiles) Server() (*tls.Config, error) {
	roots, pair, err := f.current()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
		Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true,
	}, nil
}
