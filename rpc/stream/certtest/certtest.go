// Package certtest makes certificates for tests.
package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates and keeps them in a folder: its own is ca.pem,
// that of NAME is NAME.pem with the key NAME.key.
type Authority struct {
	Dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New makes an authority whose folder is dir.
func New(t testing.TB, dir string) *Authority {
	t.Helper()
	a := &Authority{Dir: dir}
	a.Issue(t, "ca")
	return a
}

// CA is the file of the authority's own certificate.
func (a *Authority) CA() string { return a.file("ca.pem") }

// Cert is the file of the certificate of name.
func (a *Authority) Cert(name string) string { return a.file(name + ".pem") }

// Key is the file of its key.
func (a *Authority) Key(name string) string { return a.file(name + ".key") }

func (a *Authority) file(name string) string { return filepath.Join(a.Dir, name) }

// Issue makes a certificate for name, its common name, that holds for clients
// and for servers at these addresses.
func (a *Authority) Issue(t testing.TB, name string, ips ...net.IP) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: ips,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, IsCA: a.key == nil,
	}
	if a.key == nil {
		a.cert, a.key = cert, key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, a.Cert(name), &pem.Block{Type: "CERTIFICATE", Bytes: der})
	write(t, a.Key(name), &pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func write(t testing.TB, path string, block *pem.Block) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}
