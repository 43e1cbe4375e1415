package messenger

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/server/wire"
)

// portRange is an address with n ports that are free.
func portRange(t *testing.T, n int) string {
	t.Helper()
	first := freeRange(t, n)
	return "127.0.0.1:" + strconv.Itoa(first) + "-" + strconv.Itoa(first+n-1)
}

// TestRebindIsANewEntityAtAnotherPort: for its peers a node that moved so is
// not the one that it was. The old session ends on both sides before the new
// one begins, with what was not acked told, and nothing of it comes again.
func TestRebindIsANewEntityAtAnotherPort(t *testing.T) {
	for _, who := range []int{0, 1} { // 1 dials
		t.Run(nodeName(who), func(t *testing.T) {
			at := portRange(t, 3)
			bed := newBed(t, 2, func(i int, o *Options) {
				if i == who {
					must(t, o.Listener.Close())
					o.Listener, o.Listen = nil, Binding{Address: at}
				}
			})
			bed.start(who)
			moved := bed.nodes[who]
			for i := range bed.opts[1-who].Peers {
				bed.opts[1-who].Peers[i].Address = moved.Addr().String()
			}
			other := bed.start(1 - who)
			s := moved.waitUp(1)
			theirs := other.waitUp(1)
			was, life := moved.Addr(), moved.Incarnation()
			const sent = 2000
			told := make(chan uint64, sent)
			moved.record(func() {
				moved.onDown = func(x *Session, r Reason) {
					if x != s {
						return // the end of the test
					}
					if r.Code != ReasonRebound {
						t.Errorf("the owner is told %v", r)
					}
					for h := range x.Unacked(wire.Data) {
						told <- h.Arg[0]
					}
				}
			})
			for i := range uint64(sent) {
				sendNumber(s, wire.Write, i+1, pattern(1000), nil)
			}
			must(t, moved.Rebind(t.Context(), Binding{Address: at}))

			if moved.Addr().String() == was.String() || moved.Incarnation() == life {
				t.Errorf("from %v it moved to %v; life %x, then %x", was, moved.Addr(), life, moved.Incarnation())
			}
			if c, err := net.Dial("tcp", was.String()); err == nil {
				c.Close()
				t.Errorf("the old port %v is still listened at", was)
			}
			other.wait("the old session's end", func() bool { return len(other.log) >= 2 })
			arrived := other.frames(wire.Data)
			checkOrder(t, arrived, len(arrived))
			if n := len(arrived) + len(told); n < sent {
				t.Errorf("of %d frames %d arrived and %d were told as not acked", sent, len(arrived), len(told))
			}
			must(t, other.ChangeNode(t.Context(), Peer{Name: moved.name, ID: who, Address: moved.Addr().String()}))
			fresh := other.waitUp(2)
			moved.waitUp(2)
			if _, now := fresh.Incarnation(); now != moved.Incarnation() {
				t.Errorf("the peer sees life %x of %x", now, moved.Incarnation())
			}
			if _, before := theirs.Incarnation(); before != life {
				t.Errorf("the old session was with life %x, not %x", before, life)
			}
			sendNumber(moved.waitUp(2), wire.WriteAck, 1, nil, nil)
			other.wait("the new session's frame", func() bool { return len(other.got[wire.Meta]) == 1 })
			if got := other.frames(wire.Data); len(got) != len(arrived) {
				t.Errorf("frames of the old session came again: %v", got[len(arrived):])
			}
		})
	}
}

// TestRebindWithoutAnotherPortChangesNothing: the range is named, and the
// session stays.
func TestRebindWithoutAnotherPortChangesNothing(t *testing.T) {
	at := portRange(t, 2)
	bed := newBed(t, 2, func(i int, o *Options) {
		if i == 1 {
			must(t, o.Listener.Close())
			o.Listener, o.Listen = nil, Binding{Address: at}
		}
	})
	a, b := bed.start(0), bed.start(1)
	b.waitUp(1)
	was, life := b.Addr(), b.Incarnation()
	_, second, _ := strings.Cut(at, "-")
	avoid, err := strconv.Atoi(second)
	must(t, err)
	for _, c := range []struct {
		b    Binding
		want string
	}{
		{Binding{Address: at, Avoid: []int{avoid}}, "every port"},
		{Binding{Address: was.String()}, "every port"}, // a fixed one, and it is the present one
		{Binding{Address: "nonsense"}, "nonsense"},
	} {
		if err := b.Rebind(t.Context(), c.b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.b, err)
		}
	}
	if b.Addr() != was || b.Incarnation() != life {
		t.Errorf("at %v it has become %v, life %x %x", was, b.Addr(), life, b.Incarnation())
	}
	sendNumber(b.waitUp(1), wire.Write, 1, nil, nil)
	a.wait("the frame", func() bool { return len(a.got[wire.Data]) == 1 })
	a.waitLog("up 1")
	b.waitLog("up 0")
	must(t, b.Close(t.Context()))
	if err := b.Rebind(t.Context(), Binding{Address: at}); !errors.Is(err, errClosed) {
		t.Errorf("a closed messenger moves: %v", err)
	}
}

// shut makes a socket one that accepts nothing any more, as "ss --kill" does.
func shut(t *testing.T, ln net.Listener) {
	t.Helper()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) }))
	must(t, err)
}

// TestALostSocketIsReplaced: a node that nobody can connect to any more, though
// it runs, listens anew. At the same address sessions do not notice.
func TestALostSocketIsReplaced(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(freeRange(t, 1)))
	must(t, err)
	replaced := make(chan net.Listener, 10)
	refuse := 2
	b := newBed(t, 2, func(i int, o *Options) {
		if i == 1 {
			return
		}
		o.Listener = ln
		o.Relisten = func(ctx context.Context, lost net.Addr) (net.Listener, error) {
			if refuse--; refuse > 0 {
				return nil, syscall.EADDRINUSE // as while somebody else still holds it
			}
			next, err := Bind(ctx, Binding{Address: lost.String()})
			if err == nil {
				replaced <- next
			}
			return next, err
		}
	})
	b.opts[1].Peers[0].Address = ln.Addr().String()
	alpha := b.start(0)
	beta := b.start(1) // who dials
	alpha.waitUp(1)
	s := beta.waitUp(1)
	for round := range uint64(3) {
		shut(t, ln)
		ln = <-replaced
		before, err := beta.Node("alpha")
		must(t, err)
		must(t, beta.Reconnect(t.Context(), "alpha"))
		waitFor(t, "links over the new socket", func() bool {
			i, err := beta.Node("alpha")
			must(t, err)
			return i.Data.State == "connected" && i.Meta.State == "connected" &&
				i.Data.Connections > before.Data.Connections && i.Meta.Connections > before.Meta.Connections
		})
		sendNumber(s, wire.Write, round+1, nil, nil)
		alpha.wait("the frame", func() bool { return len(alpha.got[wire.Data]) == int(round+1) })
	}
	alpha.waitLog("up 1")
	beta.waitLog("up 0")
}

// TestALostSocketReplacedElsewhereIsANewEntity: somebody else has the port, and
// of a range another one is taken.
func TestALostSocketReplacedElsewhereIsANewEntity(t *testing.T) {
	at := portRange(t, 3)
	b := newBed(t, 2, func(i int, o *Options) {
		if i == 1 { // who dials: the peer need not be told
			must(t, o.Listener.Close())
			o.Listener, o.Listen = nil, Binding{Address: at}
		}
	})
	alpha := b.start(0)
	beta := b.start(1)
	alpha.waitUp(1)
	beta.waitUp(1)
	was, life := beta.Addr(), beta.Incarnation()
	beta.mu.Lock() // so that it does not matter who is first
	beta.Messenger.mu.Lock()
	lost := beta.listeners[0]
	beta.binding.Avoid = []int{portOf(lost)}
	beta.Messenger.mu.Unlock()
	beta.mu.Unlock()
	shut(t, lost)
	s := alpha.waitUp(2)
	if _, now := s.Incarnation(); now == life || now != beta.Incarnation() {
		t.Errorf("after life %x it is %x for the peer, %x itself", life, now, beta.Incarnation())
	}
	if beta.Addr().String() == was.String() {
		t.Errorf("it is still at %v", was)
	}
	beta.wait("both sessions", func() bool { return slices.Equal(beta.log, []string{"up 0", "down rebound", "up 0"}) })
}
