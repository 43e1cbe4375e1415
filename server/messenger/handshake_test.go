package messenger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestWrongHandshakesAreRefusedWithTheReason: each fault is told to the
// dialer, remembered and explained on both sides, and is no state change.
func TestWrongHandshakesAreRefusedWithTheReason(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(i int, o *Options)
		code   string // of the refusal that alpha remembers; "": beta refuses
		text   string // in what beta is told
	}{
		{"secret", func(i int, o *Options) {
			if i == 1 {
				o.Secrets = [][]byte{[]byte("quite another secret")}
			}
		}, "secret", "secret"},
		{"cluster", func(i int, o *Options) { o.Cluster = fmt.Sprint("c", i) }, "cluster", "cluster"},
		{"unknown node", func(i int, o *Options) {
			if i == 0 {
				o.Peers[0] = Peer{Name: "gamma", ID: 2, Address: "gamma"}
			}
		}, "unknown-node", "not configured"},
		{"another name for the id", func(i int, o *Options) {
			if i == 0 {
				o.Peers[0].Name = "bertha"
			}
		}, "unknown-node", "called bertha"},
		{"another node at the address", func(i int, o *Options) {
			if i == 1 {
				o.Peers[0].Name = "alfa"
			}
		}, "", "alpha (id 0) answers at the address configured for alfa"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bed, _ := simBed(t, 2, c.change)
				a, b := bed.start(0), bed.start(1)
				time.Sleep(time.Minute)
				a.wait("nothing", func() bool { return len(a.log) == 0 })
				info := b.Nodes()[0]
				if !strings.Contains(info.LastError, c.text) || info.State == "up" {
					t.Errorf("beta is %s, told %q", info.State, info.LastError)
				}
				why, _ := b.Why(info.Name)
				if !strings.Contains(strings.Join(why.Because, "\n"), c.text) {
					t.Errorf("beta explains %q", why.Because)
				}
				if c.code != "" {
					if r := a.Refusals(); len(r) != 1 || r[0].Code != c.code {
						t.Errorf("alpha remembers %+v", r)
					}
					n := a.countEvents(cluster.NodeRefused)
					if n < 1 || n > 2 { // once per cause and minute
						t.Errorf("%d events of refusals in a minute", n)
					}
				}
				a.stop()
				b.stop()
			})
		})
	}
}

// TestANodeThatDialsItself: the address configured for the peer is our own.
func TestANodeThatDialsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, _ := simBed(t, 2, func(i int, o *Options) { o.Peers[0].Address = o.NodeName })
		b := bed.start(1)
		time.Sleep(time.Second)
		if info, _ := b.Node("alpha"); !strings.Contains(info.LastError, "itself") {
			t.Errorf("last error: %q", info.LastError)
		}
		b.stop()
	})
}

// TestResetsAtEveryByteOfTheHandshakeEndInOneSession: whatever is lost of the
// first connections, the next ones succeed, and there is one session.
func TestResetsAtEveryByteOfTheHandshakeEndInOneSession(t *testing.T) {
	for at := 1; at < handshakeBytes; at++ {
		synctest.Test(t, func(t *testing.T) {
			bed, sn := simBed(t, 2, nil)
			broken := 0
			sn.resetAt = func(*simConn) int {
				if broken++; broken <= 3 {
					return at
				}
				return 0
			}
			a, b := bed.start(0), bed.start(1)
			time.Sleep(20 * time.Second)
			for _, n := range []*node{a, b} {
				n.mu.Lock()
				if len(n.up) != 1 {
					t.Errorf("reset after %d bytes: node %s has no session; %q", at, n.name, n.log)
				}
				n.mu.Unlock()
			}
			sendNumber(b.waitUp(1), wire.Write, 1, nil, nil)
			time.Sleep(time.Second)
			if got := a.frames(wire.Data); !slices.Equal(got, []uint64{1}) {
				t.Errorf("reset after %d bytes: frames %v", at, got)
			}
			a.stop()
			b.stop()
		})
	}
}

// handshakeBytes is more than the bytes of a handshake, both ways together.
const handshakeBytes = 900

// TestResetsAtEveryByteOfAResumption: a session whose links are cut goes on,
// whatever is lost of the handshakes that bring them back. The peer may have
// let a connection in that the dialer never saw succeed.
func TestResetsAtEveryByteOfAResumption(t *testing.T) {
	for at := 1; at < handshakeBytes; at++ {
		simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
			sa, sb := a.waitUp(1), b.waitUp(1)
			sn.mu.Lock()
			broken := 0
			sn.resetAt = func(*simConn) int {
				if broken++; broken <= 3 {
					return at
				}
				return 0
			}
			sn.mu.Unlock()
			const n = 20
			for i := range uint64(n) {
				if i == n/2 {
					sn.reset("alpha", "beta")
				}
				sendNumber(sa, wire.Write, i+1, pattern(50), nil)
				sendNumber(sb, wire.WriteAck, i+1, nil, nil)
			}
			time.Sleep(3 * time.Second)
			checkOrder(t, b.frames(wire.Data), n)
			checkOrder(t, a.frames(wire.Meta), n)
			if len(a.log) != 1 || len(b.log) != 1 {
				t.Errorf("reset after %d bytes: %q %q", at, a.log, b.log)
			}
		})
	}
}

// stranger dials alpha of a bed in which beta does not run.
func stranger(t *testing.T, f func(t *testing.T, a *node, dial func() net.Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 2, nil)
		a := bed.start(0)
		dial := sn.dialer("stranger")
		f(t, a, func() net.Conn {
			c, err := dial(t.Context(), "", "alpha")
			if err != nil {
				t.Fatal(err)
			}
			return c
		})
		a.stop()
	})
}

func helloOf(beta identity) wire.HelloMsg {
	return wire.HelloMsg{
		MinVersion: 1, MaxVersion: 1, From: uint8(beta.id), To: 0, Cluster: beta.cluster, Node: beta.name,
		Incarnation: beta.incarnation, Session: 5, ConnectSeq: 1, GlobalSeq: 1, Nonce: newNonce(),
	}
}

var beta = identity{cluster: "test", name: "beta", id: 1, incarnation: 99}

// TestARecordedProofIsWorthNothing: an eavesdropper sends what it has seen.
func TestARecordedProofIsWorthNothing(t *testing.T) {
	stranger(t, func(t *testing.T, a *node, dial func() net.Conn) {
		h := helloOf(beta)
		raw := h.Append(nil)
		c := dial()
		must(t, writeFrame(c, wire.Hello, raw))
		ch, err := readFrame(c, wire.Challenge)
		must(t, err)
		p := wire.ProofMsg{MAC: proof(testSecret, labelDialer, raw, ch)}
		must(t, writeFrame(c, wire.Proof, p.Append(nil)))
		if _, err := readFrame(c, wire.Welcome); err != nil {
			t.Fatalf("the true proof is refused: %v", err)
		}
		c.Close()
		c = dial()
		defer c.Close()
		must(t, writeFrame(c, wire.Hello, raw)) // the same nonce again
		_, err = readFrame(c, wire.Challenge)
		must(t, err)
		must(t, writeFrame(c, wire.Proof, p.Append(nil)))
		_, err = readFrame(c, wire.Welcome)
		if r, ok := errors.AsType[*refuseFrame](err); !ok || r.msg.Code != wire.RefuseSecret {
			t.Errorf("the replayed proof is answered with %v", err)
		}
		synctest.Wait() // it is noted after it is said
		if r := a.Refusals(); len(r) != 1 || r[0].Code != "secret" {
			t.Errorf("refusals: %+v", r)
		}
	})
}

// TestAReflectedProofIsWorthNothing: the acceptor's own MAC, or one made for
// another role, is no proof.
func TestAReflectedProofIsWorthNothing(t *testing.T) {
	for _, label := range []string{labelAcceptor, labelRefuse, labelFrames, ""} {
		stranger(t, func(t *testing.T, a *node, dial func() net.Conn) {
			h := helloOf(beta)
			raw := h.Append(nil)
			c := dial()
			defer c.Close()
			must(t, writeFrame(c, wire.Hello, raw))
			ch, err := readFrame(c, wire.Challenge)
			must(t, err)
			p := wire.ProofMsg{MAC: proof(testSecret, label, raw, ch)}
			must(t, writeFrame(c, wire.Proof, p.Append(nil)))
			if _, err = readFrame(c, wire.Welcome); err == nil {
				t.Errorf("a MAC labelled %q is taken as a dialer's proof", label)
			}
		})
	}
}

// TestAnImpostorIsNotBelieved: an acceptor that does not know the secret
// cannot welcome, and its refusal ends no session.
func TestAnImpostorIsNotBelieved(t *testing.T) {
	for _, answer := range []wire.Type{wire.Welcome, wire.Refuse} {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer far.Close()
			if _, err := readFrame(far, wire.Hello); err != nil {
				return
			}
			ch := wire.ChallengeMsg{Version: 1, From: 0, Incarnation: 7, Cluster: "test", Node: "alpha"}
			_ = writeFrame(far, wire.Challenge, ch.Append(nil))
			if _, err := readFrame(far, wire.Proof); err != nil {
				return
			}
			body := (&wire.WelcomeMsg{Session: 1}).Append(nil)
			if answer == wire.Refuse {
				body = (&wire.RefuseMsg{Code: wire.RefuseSession}).Append(nil)
			}
			_ = writeFrame(far, answer, body)
		}()
		h := helloOf(beta)
		_, err := dialHandshake(near, &h, "alpha", testSecret)
		if answer == wire.Welcome && !errors.Is(err, errWrongSecret) {
			t.Errorf("a welcome without proof is answered with %v", err)
		}
		if _, over := overBecause(err); over {
			t.Errorf("%v without proof ends a session", answer)
		}
		near.Close()
		<-done
	}
}

// TestIdleConnectionsBlockNobody: port scanners that
// connect and say nothing hold no slot beyond the time of a handshake, and
// real peers connect meanwhile.
func TestIdleConnectionsBlockNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 2, nil)
		a := bed.start(0)
		var idle []net.Conn
		for i := range 40 {
			c, err := sn.dialer(fmt.Sprint("scanner", i%2))(t.Context(), "", "alpha")
			must(t, err)
			idle = append(idle, c)
		}
		start := time.Now()
		b := bed.start(1)
		b.waitUp(1)
		if d := time.Since(start); d > time.Second {
			t.Errorf("the real peer waited for %v", d)
		}
		time.Sleep(2 * DefaultHandshakeTimeout)
		for i, c := range idle {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("idle connection %d is still open: %v", i, err)
			}
		}
		a.unproven.mu.Lock()
		if a.unproven.in != 0 {
			t.Errorf("%d slots are still taken", a.unproven.in)
		}
		a.unproven.mu.Unlock()
		a.stop()
		b.stop()
	})
}

// TestUnprovenConnectionsAreBoundedPerAddressAndInAll: who has too many is
// turned away at once, and nobody else is; each has its slot again in the end.
func TestUnprovenConnectionsAreBoundedPerAddressAndInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 2, func(_ int, o *Options) { o.MaxUnproven, o.MaxUnprovenPerAddress = 6, 3 })
		a := bed.start(0)
		open := func(host string, n int) (open int) {
			var conns []net.Conn
			for range n {
				c, err := sn.dialer(host)(t.Context(), "", "alpha")
				must(t, err)
				conns = append(conns, c)
			}
			synctest.Wait()
			for _, c := range conns {
				must(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
				if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
					open++
				}
			}
			return open
		}
		for _, c := range []struct {
			host      string
			n, remain int
		}{{"one", 10, 3}, {"two", 2, 2}, {"three", 5, 1}, {"four", 1, 0}} {
			if got := open(c.host, c.n); got != c.remain {
				t.Errorf("%d of %d connections from %s remain, want %d", got, c.n, c.host, c.remain)
			}
		}
		time.Sleep(2 * DefaultHandshakeTimeout)
		if got := open("four", 1); got != 1 {
			t.Error("the slots were not given back")
		}
		b := bed.start(1)
		b.waitUp(1)
		a.stop()
		b.stop()
	})
}

// TestGarbageOnThePeerPort: whatever is sent, the connection ends, and nothing
// else happens.
func TestGarbageOnThePeerPort(t *testing.T) {
	h := helloOf(beta)
	good := new(bytes.Buffer)
	must(t, writeFrame(good, wire.Hello, h.Append(nil)))
	flip := func(at int) []byte {
		b := bytes.Clone(good.Bytes())
		b[at] ^= 0x40
		return b
	}
	huge := make([]byte, wire.HeaderSize)
	hh := wire.Header{Version: 1, Type: wire.Write, Len: wire.MaxPayload, Seq: 1}
	hh.Put(huge)
	for name, b := range map[string][]byte{
		"http": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n" + strings.Repeat(" ", 100)), "zeroes": make([]byte, 200),
		"flipped magic": flip(0), "flipped length": flip(13), "flipped payload": flip(wire.HeaderSize + 20), "flipped sum": flip(70),
		"a write first": huge, "truncated": good.Bytes()[:100],
	} {
		t.Run(name, func(t *testing.T) {
			stranger(t, func(t *testing.T, a *node, dial func() net.Conn) {
				c := dial()
				defer c.Close()
				_, _ = c.Write(b)
				_ = c.SetReadDeadline(time.Now().Add(2 * DefaultHandshakeTimeout))
				if _, err := io.Copy(io.Discard, c); err != nil {
					t.Errorf("the connection stays open: %v", err)
				}
				a.wait("nothing", func() bool { return len(a.log) == 0 })
			})
		})
	}
}

// TestAnOldSecretIsTakenDuringARotation: one node has the new secret, the
// other both, in either order.
func TestAnOldSecretIsTakenDuringARotation(t *testing.T) {
	older, newer := []byte("the older secret of all"), []byte("the newer secret of all")
	for _, c := range [][2][][]byte{{{older}, {newer, older}}, {{newer, older}, {older}}, {{newer}, {older, newer}}} {
		synctest.Test(t, func(t *testing.T) {
			bed, _ := simBed(t, 2, func(i int, o *Options) { o.Secrets = c[i] })
			a, b := bed.start(0), bed.start(1)
			b.waitUp(1)
			a.waitUp(1)
			must(t, a.SetSecrets(newer))
			must(t, b.SetSecrets(newer))
			must(t, b.Reconnect(context.Background(), "alpha"))
			time.Sleep(time.Second)
			if n, _ := b.Node("alpha"); n.State != "up" || n.Data.Connections != 2 {
				t.Errorf("after the rotation alpha is %s with %d connections", n.State, n.Data.Connections)
			}
			a.stop()
			b.stop()
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
