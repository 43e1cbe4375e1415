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
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"golang.org/x/sys/unix"
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

// TestThirtyTwoNodesJoinLeaveAndAreReplaced does so with as many nodes as there
// may be, all of them processes: those that stay are connected throughout.
func TestThirtyTwoNodesJoinLeaveAndAreReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("32 daemons at once are not for a quick run")
	}
	s, _ := seed(t)
	cfg := quick()
	cfg.TickTime = 8 * time.Second // two processors for 32 of them
	for i := range 34 {
		cfg.Nodes = append(cfg.Nodes[:i:i], fmt.Sprintf("n%02d", i))
	}
	cfg.Devices[0].Nodes = cfg.Nodes[:3]
	c := layOut(t, cfg, nil)
	members := func(names []string) {
		t.Helper()
		next := cfg
		next.Nodes = names
		if err := c.WriteConfig(next); err != nil {
			t.Fatal(err)
		}
	}
	// complete waits until each of names sees all others up and nobody else.
	complete := func(what string, names []string) {
		t.Helper()
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "" })
		for _, n := range names {
			until(t, c.Node(n), what, knows(slices.DeleteFunc(slices.Clone(names), func(o string) bool { return o == n })...))
		}
	}
	now := slices.Clone(cfg.Nodes[:30])
	members(now)
	for _, n := range now {
		launch(t, c.Node(n))
	}
	complete("30 nodes are up", now)
	book := ledger.New(s, faultSize)
	tr := load(t, book, c.Nodes[0], 0)
	tr.moves(t)

	now = append(now, "n30", "n31")
	members(now)
	for _, n := range now[30:] {
		launch(t, c.Node(n))
	}
	complete("there are 32", now)
	tr.moves(t)

	// Other hosts take the places of two: of one that has ended, and of one that
	// still runs.
	now[5], now[6] = "n32", "n33"
	c.Node("n06").Kill9()
	members(now)
	launch(t, c.Node("n33"))
	c.Node("n05").Kill9()
	launch(t, c.Node("n32"))
	complete("two are replaced", now)
	tr.moves(t)

	// Two leave while another joins again.
	now[20], now[31] = "", ""
	members(now)
	complete("two have left", now)
	now[31] = "n31"
	members(now)
	complete("one is back", now)
	tr.moves(t)
	tr.flawless(t)
	conn := open(t, c.Nodes[0])
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	for _, i := range []int{0, 1, 2, 10, 29, 30} {
		for _, j := range []int{0, 4, 7, 19, 29, 30} {
			if key := "stats.nodes." + now[j] + ".connects"; i != j && stat(t, c.Node(now[i]), key) != "1" {
				t.Errorf("%s: %s is %s: there was a nodedown", now[i], key, stat(t, c.Node(now[i]), key))
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
				otherFiles(t, c)
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

// otherFiles has all nodes use files of other names, by saving the configuration.
func otherFiles(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	dir := filepath.Join(c.Dir, "next")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range c.Nodes {
		names = append(names, n.Name)
	}
	roots := identities(t, dir, names...)
	raw, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(`"ca.pem"`, `"next/ca.pem"`, `"node.pem"`, `"next/node.pem"`, `"node.key"`, `"next/node.key"`).Replace(string(raw))
	if err := os.WriteFile(c.Config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: n.Name}
		var last error
		if !poll(within(t, patience), func() bool {
			conn, err := tls.Dial("tcp", n.Address, conf)
			if last = err; err == nil {
				conn.Close()
			}
			return err == nil
		}) {
			t.Fatalf("%s does not show the other certificate: %v", n.Name, last)
		}
	}
}

// TestNodesMove gives nodes other addresses by saving the file: clients do not
// notice, no node is taken for down, and a daemon that comes back is at the new
// address alone. An address that includes the present one waits for a restart.
func TestNodesMove(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	c := layOut(t, quick(), nil)
	for _, n := range c.Nodes {
		n.Flags = []string{"--monitor"}
	}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	alpha, gamma := c.Node("alpha"), c.Node("gamma")
	raw, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	at := &configured{alpha, c, string(raw)}
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	tr.moves(t)
	for i, n := range []*cluster.Node{gamma, alpha} {
		old, next := n.Address, fmt.Sprintf("%s:%d", c.IP(20+n.ID), 7801+i) // on one host nobody else has gamma's port
		at.edit(t, fmt.Sprintf("address = %q\nbind = %q", old, old), fmt.Sprintf("address = %q\nbind = %q", next, next))
		for _, m := range c.Nodes {
			(&configured{m, c, ""}).untilKey(t, "runtime.config.revision", fmt.Sprint(i+2))
			if m == n {
				continue
			}
			until(t, m, n.Name+" is up at "+next, func(s cluster.Status) bool {
				p := s.Peer(n.Name)
				return p.State == "up" && p.Address == next && p.Data == "connected" && p.Meta == "connected"
			})
		}
		conn, err := net.Dial("tcp", next)
		if err != nil {
			t.Fatalf("%s does not listen at %s: %v", n.Name, next, err)
		}
		conn.Close()
		tr.moves(t)
		inSync(t, c, "r0")
	}
	tr.flawless(t)
	for _, n := range c.Nodes {
		for _, p := range c.Nodes {
			if key := fmt.Sprintf("stats.nodes.%s.connects", p.Name); p != n && stat(t, n, key) != "1" {
				t.Errorf("%s: %s is %s: there was a nodedown", n.Name, key, stat(t, n, key))
			}
		}
	}
	pid, err := gamma.DaemonPid()
	if err != nil {
		t.Fatal(err)
	}
	strike(t, pid, syscall.SIGSEGV)
	until(t, gamma, "another daemon serves", func(cluster.Status) bool { now, err := gamma.DaemonPid(); return err == nil && now != pid })
	inSync(t, c, "r0")
	if conn, err := net.Dial("tcp", gamma.Address); err == nil {
		conn.Close()
		t.Errorf("gamma still listens at %s", gamma.Address)
	}

	// All addresses: not beside the one that is part of them.
	moved := fmt.Sprintf("%s:7801", c.IP(20+gamma.ID))
	at.edit(t, fmt.Sprintf("bind = %q", moved), `bind = "0.0.0.0:7801"`)
	of := &configured{gamma, c, ""}
	of.must(t, []string{"node.gamma.bind", "needs-restart", "at once it cannot"}, "config", "diff")
	before := lives(t, gamma)
	restartByCommand(t, gamma)
	if !poll(within(t, patience), func() bool { return lives(t, gamma) > before }) {
		t.Fatal("gamma does not restart")
	}
	inSync(t, c, "r0")
	conn, err := net.Dial("tcp", fmt.Sprintf("%s:7801", c.IP(200)))
	if err != nil {
		t.Fatalf("gamma does not listen everywhere: %v", err)
	}
	conn.Close()
	r0 := open(t, alpha)
	verify(t, book, r0, 0)
	if err := r0.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
}

// shutListener makes the socket on which a process listens at a port one that
// accepts nothing any more, as "ss --kill" does.
func shutListener(t *testing.T, pid, port int) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	done := false
	for _, e := range fds {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue // closed meanwhile
		}
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listens == 1 {
			if sa, err := unix.Getsockname(fd); err == nil {
				if at, ok := sa.(*unix.SockaddrInet4); ok && at.Port == port {
					done = true
					if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil && err != unix.ENOTCONN {
						t.Error(err)
					}
				}
			}
		}
		unix.Close(fd)
	}
	if !done {
		t.Fatalf("process %d does not listen at port %d", pid, port)
	}
}

// TestNodeOutlivesItsSocket: one on which nobody can connect to a node any more,
// though it runs. It listens anew, sessions stay, and its successor gets the
// socket that works.
func TestNodeOutlivesItsSocket(t *testing.T) {
	needRoot(t, "the socket of another process")
	t.Parallel()
	c := layOut(t, quick(), nil)
	for _, n := range c.Nodes {
		n.Flags = []string{"--monitor"}
	}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	alpha, beta := c.Node("alpha"), c.Node("beta")
	pid, err := alpha.DaemonPid()
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(alpha.Address)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	dial := func() error {
		conn, err := net.Dial("tcp", alpha.Address)
		if err == nil {
			conn.Close()
		}
		return err
	}
	for range 2 {
		shutListener(t, pid, number)
		if !poll(within(t, patience), func() bool { return dial() == nil }) {
			t.Fatalf("alpha does not listen again: %v", dial())
		}
		if _, err := beta.Lockstepctl(within(t, patience), "node", "reconnect", "alpha"); err != nil {
			t.Fatal(err)
		}
		until(t, beta, "the links are back", func(s cluster.Status) bool {
			p := s.Peer("alpha")
			return p.Data == "connected" && p.Meta == "connected"
		})
	}
	if got := stat(t, beta, "stats.nodes.alpha.connects"); got != "1" {
		t.Errorf("beta has connected with alpha %s times: there was a nodedown", got)
	}
	if log := alpha.Proc().LogTail(1000); !strings.Contains(log, "listening anew") {
		t.Errorf("alpha says nothing of it:\n%s", log)
	}
	strike(t, pid, syscall.SIGSEGV)
	until(t, alpha, "another daemon serves", func(cluster.Status) bool { now, err := alpha.DaemonPid(); return err == nil && now != pid })
	inSync(t, c, "r0")
	if err := dial(); err != nil {
		t.Errorf("the successor does not listen: %v", err)
	}
}
