package cmd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
)

// knows holds for a node that sees exactly these peers, all up.
func knows(names ...string) func(cluster.Status) bool {
	return func(s cluster.Status) bool {
		for _, n := range names {
			if s.Peer(n).State != "up" {
				return false
			}
		}
		return len(s.Nodes) == len(names)
	}
}

// TestNodesJoinLeaveAndAreReplaced changes who belongs to a serving cluster by
// nothing but saving the file: its clients do not notice.
func TestNodesJoinLeaveAndAreReplaced(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	cfg := quick()
	cfg.Devices[0].Nodes = []string{"alpha", "beta", "gamma"}
	cfg.Nodes = []string{"alpha", "beta", "gamma", "delta", "epsilon"}
	c := layOut(t, cfg, nil)
	members := func(names ...string) {
		t.Helper()
		next := cfg
		next.Nodes = names
		if err := c.WriteConfig(next); err != nil {
			t.Fatal(err)
		}
	}
	members("alpha", "beta", "gamma")
	for _, n := range c.Nodes[:3] {
		launch(t, n)
	}
	alpha, beta, gamma := c.Node("alpha"), c.Node("beta"), c.Node("gamma")
	everybody := func(what string, also ...string) {
		t.Helper()
		for _, n := range []*cluster.Node{alpha, beta, gamma} {
			peers := also
			for _, p := range []string{"alpha", "beta", "gamma"} {
				if p != n.Name {
					peers = append(peers[:len(peers):len(peers)], p)
				}
			}
			until(t, n, what, knows(peers...))
		}
	}
	everybody("three nodes are up")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	tr.moves(t)

	members("alpha", "beta", "gamma", "delta")
	launch(t, c.Node("delta"))
	everybody("delta has joined", "delta")
	tr.moves(t)

	// At once, as by one edit: delta goes, epsilon comes.
	members("alpha", "beta", "gamma", "", "epsilon")
	launch(t, c.Node("epsilon"))
	everybody("epsilon has taken delta's place", "epsilon")
	until(t, c.Node("epsilon"), "it knows the others", knows("alpha", "beta", "gamma"))
	tr.moves(t)

	members("alpha", "beta", "gamma")
	everybody("epsilon has left")
	tr.moves(t)
	tr.flawless(t)
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	for _, n := range []*cluster.Node{alpha, beta, gamma} {
		for _, peer := range []string{"alpha", "beta", "gamma"} {
			if key := "stats.nodes." + peer + ".connects"; peer != n.Name && stat(t, n, key) != "1" {
				t.Errorf("%s: %s is %s: there was a nodedown", n.Name, key, stat(t, n, key))
			}
		}
	}
}

// identities writes a new authority, and a certificate of it for all nodes,
// into a folder.
func identities(t *testing.T, dir string, nodes ...string) *x509.CertPool {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cert := func(tmpl, parent *x509.Certificate, signer, of *ecdsa.PrivateKey) *x509.Certificate {
		t.Helper()
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &of.PublicKey, signer)
		must(err)
		c, err := x509.ParseCertificate(der)
		must(err)
		return c
	}
	key := func() *ecdsa.PrivateKey {
		t.Helper()
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		return k
	}
	write := func(name, kind string, der []byte) {
		t.Helper()
		must(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	caKey, nodeKey := key(), key()
	caTmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "demo"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca := cert(caTmpl, caTmpl, caKey, caKey)
	node := cert(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: nodes, Subject: pkix.Name{CommonName: "node"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, ca, caKey, nodeKey)
	keyDER, err := x509.MarshalECPrivateKey(nodeKey)
	must(err)
	write("ca.pem", "CERTIFICATE", ca.Raw)
	write("node.pem", "CERTIFICATE", node.Raw)
	write("node.key", "EC PRIVATE KEY", keyDER)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return roots
}

// TestSecuredLinks runs a cluster whose frames are signed, whose links are
// encrypted, or both, under load, and makes its links anew.
func TestSecuredLinks(t *testing.T) {
	const files = "tls = { ca = \"ca.pem\", cert = \"node.pem\", key = \"node.key\" }\n"
	for name, security := range map[string]string{"signed": "sign = true\n", "tls": files, "both": "sign = true\n" + files} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := seed(t)
			cfg := quick()
			cfg.Security = security
			c := layOut(t, cfg, nil)
			identities(t, c.Dir, cfg.Nodes...)
			if err := c.Start(within(t, patience)); err != nil {
				t.Fatal(err)
			}
			inSync(t, c, "r0")
			alpha, beta := c.Node("alpha"), c.Node("beta")
			book := ledger.New(s, faultSize)
			tr := load(t, book, alpha, 0)
			tr.moves(t)
			if name != "signed" {
				// All nodes read the same files: the new authority is everybody's.
				roots := identities(t, c.Dir, cfg.Nodes...)
				conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "beta"}
				if conn, err := tls.Dial("tcp", beta.Address, conf); err != nil {
					t.Errorf("the renewed certificate is not shown: %v", err)
				} else {
					conn.Close()
				}
			}
			for range 3 {
				if _, err := beta.Lockstepctl(within(t, patience), "node", "reconnect"); err != nil {
					t.Fatal(err)
				}
				until(t, beta, "the links are back", knows("alpha", "gamma"))
				tr.moves(t)
			}
			tr.flawless(t)
			for _, n := range c.Nodes {
				for _, peer := range cfg.Nodes {
					if key := fmt.Sprintf("stats.nodes.%s.connects", peer); peer != n.Name && stat(t, n, key) != "1" {
						t.Errorf("%s: %s is %s: there was a nodedown", n.Name, key, stat(t, n, key))
					}
				}
			}
			conn := open(t, alpha)
			verify(t, book, conn, 0)
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
			converged(t, c)
		})
	}
}
