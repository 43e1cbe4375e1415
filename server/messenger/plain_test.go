package messenger

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/wire"
)

// TestErrorsAreExplained: as the network, TLS and the handshake make them.
func TestErrorsAreExplained(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := gone.Addr().String()
	must(t, gone.Close())
	_, refused := net.Dial("tcp", address)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, late := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	handshake := func(err error) error { return fmt.Errorf("handshake with alpha at %s: %w", address, err) }
	dial := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)}
	}
	for name, x := range map[string]struct {
		err  error
		want string
	}{
		"refused":          {refused, "nothing listens at " + address},
		"no route":         {dial(syscall.EHOSTUNREACH), "no way from here"},
		"no network":       {dial(syscall.ENETUNREACH), "no way from here"},
		"bind":             {dial(syscall.EADDRNOTAVAIL), "has not the address"},
		"no answer":        {dial(syscall.ETIMEDOUT), "a firewall drops"},
		"no answer yet":    {late, "a firewall drops"},
		"silent":           {handshake(os.ErrDeadlineExceeded), "says nothing"},
		"no such name":     {&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "alpha", IsNotFound: true}}, "cannot be looked up"},
		"our secret":       {handshake(errWrongSecret), "secrets of the two nodes differ"},
		"its secret":       {handshake(&RefusedError{Code: wire.RefuseSecret, Reason: "x"}), "secrets of the two nodes differ"},
		"ended":            {handshake(io.EOF), "ended the connection"},
		"reset":            {handshake(&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}), "ended the connection"},
		"something else":   {handshake(fmt.Errorf("%w (0x48545450)", wire.ErrMagic)), "does not speak as this node does"},
		"has its own word": {handshake(&RefusedError{Code: wire.RefuseCluster, Reason: "it belongs to another"}), ""},
		"not known":        {errors.New("something"), ""},
	} {
		got := explain(x.err, "alpha", address)
		if (got == "") != (x.want == "") || !strings.Contains(got, x.want) {
			t.Errorf("%s: %v: %q, want %q", name, x.err, got, x.want)
		}
		said := (&plain{text: x.err.Error(), means: got}).says(x.err.Error())
		if said != x.err.Error() && !strings.HasSuffix(said, " ("+x.err.Error()+")") {
			t.Errorf("%s: its own text is not behind it: %q", name, said)
		}
	}
	if got := (&plain{text: "one", means: "m"}).says("another"); got != "another" {
		t.Errorf("another error is explained: %q", got)
	}
	if got := (*plain)(nil).says("one"); got != "one" {
		t.Errorf("without a dial: %q", got)
	}
}

// selfSigned is a certificate that names a node, valid from and until.
func selfSigned(t *testing.T, node string, from, until time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{node}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, &key.PublicKey, key)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestTLSErrorsAreExplained: as crypto/tls makes them.
func TestTLSErrorsAreExplained(t *testing.T) {
	now := time.Now()
	good, roots := selfSigned(t, "alpha", now.Add(-time.Hour), now.Add(time.Hour))
	old, oldRoots := selfSigned(t, "alpha", now.Add(-2*time.Hour), now.Add(-time.Hour))
	_, others := selfSigned(t, "alpha", now.Add(-time.Hour), now.Add(time.Hour))
	serve := func(conf *tls.Config) func(net.Conn) {
		return func(c net.Conn) { _ = tls.Server(c, conf).Handshake() }
	}
	plainly := func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n")) }
	for name, x := range map[string]struct {
		serve func(net.Conn)
		conf  *tls.Config
		want  string
	}{
		"another authority": {serve(&tls.Config{Certificates: []tls.Certificate{good}}), &tls.Config{RootCAs: others, ServerName: "alpha"}, "not of the authority"},
		"another node":      {serve(&tls.Config{Certificates: []tls.Certificate{good}}), &tls.Config{RootCAs: roots, ServerName: "beta"}, "another node's"},
		"expired":           {serve(&tls.Config{Certificates: []tls.Certificate{old}}), &tls.Config{RootCAs: oldRoots, ServerName: "alpha"}, "has expired"},
		"no TLS there":      {plainly, &tls.Config{RootCAs: roots, ServerName: "alpha"}, "does not speak TLS"},
		"ours is not taken": {serve(&tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: others}), &tls.Config{RootCAs: roots, ServerName: "alpha"}, "does not accept this node's certificate"},
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := ln.Accept(); err == nil {
				x.serve(c)
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
		}()
		raw, err := net.Dial("tcp", ln.Addr().String())
		must(t, err)
		c := tls.Client(raw, x.conf)
		err = c.Handshake()
		if err == nil { // what the other side thinks of us comes with the first read
			_, err = c.Read(make([]byte, 1))
		}
		raw.Close()
		ln.Close()
		<-done
		if got := explain(fmt.Errorf("TLS: %w", err), "alpha", "127.0.0.1:1"); !strings.Contains(got, x.want) {
			t.Errorf("%s: %v: %q, want %q", name, err, got, x.want)
		}
	}
}
