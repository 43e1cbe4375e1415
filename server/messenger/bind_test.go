package messenger

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/wire"
)

func portOf(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

// freeRange finds n neighbouring ports that are free, below those that the
// kernel gives to outgoing connections: nothing takes one by chance.
func freeRange(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		if first := 20_000 + mathrand.IntN(10_000); rangeIsFree(first, n) {
			return first
		}
	}
	t.Fatal("no range of free ports found")
	return 0
}

func rangeIsFree(first, n int) bool {
	for p := first; p < first+n; p++ {
		ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p))
		if err != nil {
			return false
		}
		ln.Close()
	}
	return true
}

// TestBindTakesTheFirstFreePortOfARange: busy ports and those to avoid are
// passed over, and an exhausted range is named in the error.
func TestBindTakesTheFirstFreePortOfARange(t *testing.T) {
	first := freeRange(t, 4)
	address := "127.0.0.1:" + strconv.Itoa(first) + "-" + strconv.Itoa(first+3)
	busy, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(first))
	must(t, err)
	defer busy.Close()
	ln, err := Bind(t.Context(), Binding{Address: address, Avoid: []int{first + 1}})
	must(t, err)
	defer ln.Close()
	if p := portOf(ln); p != first+2 {
		t.Errorf("took port %d, want %d", p, first+2)
	}
	_, err = Bind(t.Context(), Binding{Address: address, Avoid: []int{first + 1, first + 3}})
	if err == nil || !strings.Contains(err.Error(), strconv.Itoa(first)+" to "+strconv.Itoa(first+3)) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("an exhausted range: %v", err)
	}
	if _, err = Bind(t.Context(), Binding{Address: busy.Addr().String()}); err == nil {
		t.Error("a busy fixed port is no error")
	}
	for _, bad := range []string{"", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:9-3", "127.0.0.1:1-70000"} {
		if _, err := Bind(t.Context(), Binding{Address: bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestBindTriesAgainForAPredecessorOnItsWayOut(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(freeRange(t, 1)))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := Binding{Address: busy.Addr().String(), Retries: 1000, Delay: time.Millisecond}
	got := make(chan error, 1)
	go func() {
		ln, err := Bind(ctx, b)
		if err == nil {
			ln.Close()
		}
		got <- err
	}()
	busy.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestBadOptionsAreRefusedAllAtOnce(t *testing.T) {
	_, err := New(Options{NodeName: "alpha", NodeID: 40, Tick: time.Millisecond, Peers: []Peer{
		{Name: "beta", ID: 99, Address: "x"}, {Name: "gamma", ID: 2}, {Name: "delta", ID: 3, Address: "x"}, {Name: "delta", ID: 4, Address: "x"},
	}})
	if err == nil {
		t.Fatal("they are taken")
	}
	for _, want := range []string{"Handler", "secret", "node id 40", "tick time 1ms", "id 99", "gamma has no address", "used twice"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
}

// authority issues certificates for tests.
type authority struct {
	t    testing.TB
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	next int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	must(t, err)
	a.cert, err = x509.ParseCertificate(der)
	must(t, err)
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) string {
	path := filepath.Join(a.dir, name)
	must(a.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}

// issue writes a certificate for a node name and returns the files.
func (a *authority) issue(file, node string) *TLSFiles {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	a.next++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.next), Subject: pkix.Name{CommonName: node}, DNSNames: []string{node},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	must(a.t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(a.t, err)
	f, err := NewTLSFiles(filepath.Join(a.dir, "ca.pem"), a.write(file+".pem", "CERTIFICATE", der), a.write(file+".key", "EC PRIVATE KEY", keyDER))
	must(a.t, err)
	return f
}

func TestTLSSessionsCarryEverythingAcrossCuts(t *testing.T) {
	ca := newAuthority(t)
	var c cutter
	a, b := pair(t, func(i int, o *Options) { o.Dial, o.TLS = c.dial, ca.issue(o.NodeName, o.NodeName) })
	sa, sb := a.waitUp(1), b.waitUp(1)
	const n = 500
	for i := range uint64(n) {
		sendNumber(sa, wire.Write, i+1, pattern(int(i)*20), nil)
		sendNumber(sb, wire.WriteAck, i+1, nil, nil)
		if i%200 == 50 {
			c.cut()
		}
	}
	b.wait("writes", func() bool { return len(b.got[wire.Data]) == n })
	a.wait("acks", func() bool { return len(a.got[wire.Meta]) == n })
	checkOrder(t, b.frames(wire.Data), n)
	checkOrder(t, a.frames(wire.Meta), n)
	a.waitLog("up 1")
	b.waitLog("up 0")
}

func TestACertificateMustNameItsNode(t *testing.T) {
	for wrong := range 2 {
		ca := newAuthority(t)
		bed := newBed(t, 2, func(i int, o *Options) {
			name := o.NodeName
			if i == wrong {
				name = "mallory"
			}
			o.TLS = ca.issue(o.NodeName, name)
		})
		bed.start(0)
		b := bed.start(1)
		if err := b.WaitUp(t.Context(), "alpha"); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("node %d has another's certificate: %v", wrong, err)
		}
	}
}

func TestATLSNodeRefusesPlainConnections(t *testing.T) {
	ca := newAuthority(t)
	bed := newBed(t, 2, func(i int, o *Options) {
		if i == 0 {
			o.TLS = ca.issue(o.NodeName, o.NodeName)
		}
	})
	bed.start(0)
	b := bed.start(1)
	if err := b.WaitUp(t.Context(), "alpha"); err == nil {
		t.Error("a plain connection is let in")
	}
}

func TestARenewedCertificateIsTakenWithoutARestart(t *testing.T) {
	ca := newAuthority(t)
	f := ca.issue("node", "alpha")
	serial := func() string {
		conf, err := f.Server()
		must(t, err)
		leaf, err := x509.ParseCertificate(conf.Certificates[0].Certificate[0])
		must(t, err)
		return leaf.SerialNumber.String()
	}
	before := serial()
	ca.issue("node", "alpha")
	must(t, os.Chtimes(f.cert, time.Now(), time.Now().Add(time.Minute)))
	if serial() == before {
		t.Error("the old certificate is still shown")
	}
	now := serial()
	must(t, os.WriteFile(f.key, []byte("half written"), 0o600))
	if serial() != now {
		t.Error("a half written key ends what worked")
	}
	conf, err := f.Client("alpha")
	if err != nil || conf.MinVersion != tls.VersionTLS13 || conf.ServerName != "alpha" {
		t.Errorf("%v, %+v", err, conf)
	}
}

func TestWhyExplainsEachState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 2, nil)
		b := bed.start(1)
		check := func(state string, want ...string) {
			t.Helper()
			e, err := b.Why("alpha")
			must(t, err)
			text := strings.Join(append(e.Because, e.Next...), "\n")
			if e.State != state {
				t.Errorf("state %s, want %s", e.State, state)
			}
			for _, w := range want {
				if !strings.Contains(text, w) {
					t.Errorf("%q is not in %q", w, text)
				}
			}
		}
		time.Sleep(20 * time.Second)
		check("down", "refused", "nothing listens at", "next dial of alpha")
		a := bed.start(0)
		b.waitUp(1)
		time.Sleep(5 * time.Second)
		check("up", "last heard", "a ping takes", "down when")
		sn.stop("alpha", "beta")
		sn.reset("alpha", "beta")
		time.Sleep(3 * time.Second)
		check("up", "data link connecting", "the session goes on if")
		sn.heal("alpha", "beta")
		time.Sleep(3 * time.Second)
		must(t, b.Disconnect(t.Context(), "alpha", false))
		check("disconnected", "node connect alpha")
		if _, err := b.Why("nobody"); err == nil {
			t.Error("a node that does not exist is explained")
		}
		a.stop()
		b.stop()
	})
}

// TestAnotherListenerTakesOver: a node is found at a new address, and at the old
// one until that is closed; the session that there is stays throughout.
func TestAnotherListenerTakesOver(t *testing.T) {
	b := newBed(t, 2, nil)
	alpha, beta := b.start(0), b.start(1) // who dials
	alpha.waitUp(1)
	beta.waitUp(1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	before, err := alpha.Listen(ln)
	must(t, err)
	if alpha.Addr() != ln.Addr() {
		t.Errorf("alpha is at %v, not at %v", alpha.Addr(), ln.Addr())
	}
	// found waits until both links lead to an address. A link that is being made
	// when another is asked for is that one, too, so it is asked for again.
	found := func(at string) {
		t.Helper()
		deadline, tick := time.After(testWait), time.NewTicker(20*time.Millisecond)
		defer tick.Stop()
		for {
			i, err := beta.Node("alpha")
			must(t, err)
			if i.Data.Remote == at && i.Meta.Remote == at {
				return
			}
			if i.Data.State == "connected" && i.Meta.State == "connected" {
				must(t, beta.Reconnect(t.Context(), "alpha"))
			}
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("alpha is not found at %s: %+v", at, i)
			}
		}
	}
	must(t, beta.ChangeNode(t.Context(), Peer{Name: "alpha", ID: 0, Address: ln.Addr().String()}))
	found(ln.Addr().String())
	must(t, beta.ChangeNode(t.Context(), Peer{Name: "alpha", ID: 0, Address: before.Addr().String()}))
	found(before.Addr().String()) // which lingers
	must(t, beta.ChangeNode(t.Context(), Peer{Name: "alpha", ID: 0, Address: ln.Addr().String()}))
	must(t, before.Close())
	found(ln.Addr().String())
	alpha.waitLog("up 1")
	beta.waitLog("up 0")
	must(t, alpha.Close(t.Context()))
	if _, err := alpha.Listen(ln); err == nil {
		t.Error("a closed messenger listens")
	}
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		c.Close()
		t.Error("its listener stays open")
	}
}

// TestOtherFilesAreUsed: for the next connection; those that do not fit change nothing.
func TestOtherFilesAreUsed(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	f, g := ca.issue("node", "alpha"), other.issue("node", "alpha")
	show := func() string {
		conf, err := f.Server()
		must(t, err)
		return string(conf.Certificates[0].Certificate[0])
	}
	want := show()
	if err := f.Use(g.ca, g.cert, f.key); err == nil || show() != want {
		t.Errorf("a key of another certificate is taken: %v", err)
	}
	if err := f.Use(g.ca, g.cert, g.key+".none"); err == nil || show() != want {
		t.Errorf("a key that is not there is taken: %v", err)
	}
	must(t, f.Use(g.ca, g.cert, g.key))
	if now := show(); now == want {
		t.Error("the first certificate is still shown")
	}
}
