package ctl

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/stream"
)

// authority makes certificates in a folder.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.issue(name, nil)
	return a
}

// issue writes NAME.pem and NAME.key; without an issuer it is the authority.
func (a *authority) issue(name string, issuer *authority) stream.Files {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, IsCA: issuer == nil,
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	if issuer == nil {
		a.key = key
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			a.t.Fatal(err)
		}
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return stream.Files{
		Cert: a.write(name+".pem", "CERTIFICATE", der), Key: a.write(name+".key", "PRIVATE KEY", raw),
		CA: filepath.Join(a.dir, "ca.pem"),
	}
}

func (a *authority) write(name, kind string, der []byte) string {
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// TestOverTheNetwork reaches a daemon on another host by ssl:, and says what is
// missing where it can't.
func TestOverTheNetwork(t *testing.T) {
	ca := newAuthority(t, "ca")
	id, err := stream.NewIdentity(ca.issue("alpha", ca))
	if err != nil {
		t.Fatal(err)
	}
	l, err := stream.Listen("pssl:0:127.0.0.1", stream.Options{TLS: id})
	if err != nil {
		t.Fatal(err)
	}
	reg, err := rpc.NewRegistry(commands()...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- rpc.NewServer(rpc.ServerOptions{Registry: reg, Program: "lockstepd", Version: "9.9",
			Authorize: rpc.Policy{AdminNames: []string{"admin"}}.Role}).Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	target := "-t ssl:" + l.Addr().String()
	mine := ca.issue("admin", ca)
	known := " --certificate " + mine.Cert + " --private-key " + mine.Key + " --ca-cert " + mine.CA
	other := newAuthority(t, "ca")
	foreign := other.issue("admin", other)
	for name, c := range map[string]struct {
		line string
		code int
		says string
	}{
		"known":          {target + known + " status", 0, "alpha (id 0): healthy"},
		"no certificate": {target + " status", 3, "TLS needs to know who you are and whom to trust; give --certificate, --private-key and --ca-cert"},
		"no file":        {target + " --certificate /x --private-key /x --ca-cert /x status", 3, "/x: no such file or directory"},
		"not trusted":    {target + " --certificate " + foreign.Cert + " --private-key " + foreign.Key + " --ca-cert " + foreign.CA + " status", 3, "see whether --ca-cert is the one that signed"},
		"nobody there":   {"-t ssl:127.0.0.1:1" + known + " status", 3, "connection refused; see whether it listens there ([control] listen), or name another address with -t"},
		"odd class":      {"-t foo:bar status", 3, "cannot reach foo:bar: "},
	} {
		var out, errs lockedBuffer
		e := OS(testRelease)
		e.Out, e.Err, e.OutTerm, e.ErrTerm = &out, &errs, nil, nil
		if code := Main(strings.Fields(c.line), e); code != c.code || !strings.Contains(out.String()+errs.String(), c.says) {
			t.Errorf("%s: exit %d\nout: %s\nerr: %s\nwant %s", name, code, out.String(), errs.String(), c.says)
		}
	}
}
