package device

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// wireTap is a session with a peer that keeps the types of what is sent, and the last of
// those that want an answer.
type wireTap struct {
	peer int

	mu     sync.Mutex // guards what is below
	sent   map[wire.Type]int
	agreed wire.Header
	asked  map[wire.Type][]byte // payloads
}

func tap(peer int) *wireTap {
	return &wireTap{peer: peer, sent: map[wire.Type]int{}, asked: map[wire.Type][]byte{}}
}

func (w *wireTap) Send(h *wire.Header, payload []byte, _ *block.Buf, _ *block.Batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[h.Type]++
	switch h.Type {
	case wire.DevAgree:
		w.agreed = *h
	case wire.Prepare, wire.NewGen:
		w.asked[h.Type] = bytes.Clone(payload)
	}
}

// count is how many frames of a type were sent.
func (w *wireTap) count(t wire.Type) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent[t]
}

// vote is the peer's yes to the last promotion that it was asked about.
func (w *wireTap) vote() *wire.Frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	var c wire.Change
	if err := c.Decode(w.asked[wire.Prepare]); err != nil {
		return nil
	}
	c.Yes = true
	return &wire.Frame{Header: wire.Header{Type: wire.Vote, Dev: 1}, Payload: c.Append(nil)}
}

func (w *wireTap) PeerID() int { return w.peer }

// noted is the peer's word that it has noted the last generation that was announced.
func (w *wireTap) noted() *wire.Frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	var g wire.Generation
	if err := g.Decode(w.asked[wire.NewGen]); err != nil {
		return nil
	}
	return &wire.Frame{Header: wire.Header{Type: wire.NewGenAck, Dev: 1, Arg: [3]uint64{g.No}}}
}

// yes is the peer's half of the last agreement.
func (w *wireTap) yes() *wire.Frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.agreed.Arg
	return &wire.Frame{Header: wire.Header{Type: wire.DevAgree, Dev: 1, Arg: [3]uint64{a[1], a[0], uint64(replication.Action(a[2]).Mirror())}}}
}

// told is the action of the last agreement.
func (w *wireTap) told() replication.Action {
	w.mu.Lock()
	defer w.mu.Unlock()
	return replication.Action(w.agreed.Arg[2])
}

// freshFacts is the first that a peer tells whose disk is as on the day that it was made.
func freshFacts(size int64) wire.DeviceFacts {
	return wire.DeviceFacts{
		Name: "r0", No: 1, Handle: 9, Role: uint8(replication.Secondary), Disk: uint8(replication.Consistent), Primary: wire.NoNode, Size: size,
		Current: uint64(replication.DayOne), Base: uint64(replication.DayOne), Noted: uint64(replication.DayOne), Seen: uint64(replication.DayOne),
	}
}

func stateFrame(st wire.DeviceState) *wire.Frame {
	return &wire.Frame{Header: wire.Header{Type: wire.DevState, Dev: 1}, Payload: st.Append(nil)}
}

// handle has a frame handled, and what follows from it done.
func handle(d *Device, s Session, f *wire.Frame) {
	b := &block.Batch{}
	d.HandleFrame(s, f, b)
	b.Finish()
	synctest.Wait()
}

// added starts a device of two nodes without disks, and adds it to a set.
func added(t *testing.T, s *Set) *Device {
	t.Helper()
	d, err := New(Options{Config: Config{Name: "r0", Handle: 1, Size: 1 << 20, Nodes: []Node{{ID: 0, Name: "a", Diskless: true}, {ID: 1, Name: "b", Diskless: true}}}})
	if err != nil {
		t.Fatal(err)
	}
	d.Start()
	if err := s.Add(d); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return d
}

// TestAPeerThatDoesNotOpenTheDeviceIsWaitedForForAWhile: its node is in contact, and its
// disk may not be there.
func TestAPeerThatDoesNotOpenTheDeviceIsWaitedForForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(slog.New(slog.DiscardHandler))
		s.SessionUp(tap(1))
		d := added(t, s)
		defer d.Abandon()
		for _, waits := range []bool{true, false} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := d.Promote(ctx, false)
			cancel()
			if err == nil || strings.Contains(err.Error(), "handshake") != waits {
				t.Errorf("%v", err)
			}
			time.Sleep(handshakeTimeout)
		}
	})
}

// TestAHelloOfADeviceToComeIsKept: a peer has a device before this node; the
// peer's hello counts when this node has it, too.
func TestAHelloOfADeviceToComeIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, session := NewSet(slog.New(slog.DiscardHandler)), tap(1)
		s.SessionUp(session)
		hello := wire.DeviceFacts{Name: "r0", No: 1, Handle: 9, Disk: 1, Primary: wire.NoNode}
		f := &wire.Frame{Header: wire.Header{Type: wire.DevHello}, Payload: hello.Append(nil)}
		s.HandleFrame(session, f, &block.Batch{})
		d := added(t, s)
		defer d.Abandon()
		session.mu.Lock()
		defer session.mu.Unlock()
		if session.sent[wire.DevHello] != 1 || session.sent[wire.DevAgree] != 1 {
			t.Fatalf("sent %v, want a hello and an agreement", session.sent)
		}
	})
}

// prompt is a peer that agrees as soon as our hello has left.
type prompt struct {
	*wireTap
	set  *Set
	left *wire.DeviceFacts
}

func (p *prompt) Send(h *wire.Header, payload []byte, body *block.Buf, b *block.Batch) {
	p.wireTap.Send(h, payload, body, b)
	if h.Type == wire.DevHello && p.left == nil {
		p.left = &wire.DeviceFacts{}
		if err := p.left.Decode(payload); err == nil {
			b.Touch(p)
		}
	}
}

func (p *prompt) Flush(b *block.Batch) {
	f := &wire.Frame{Header: wire.Header{Type: wire.DevAgree, Dev: 1, Arg: [3]uint64{1, uint64(p.left.No), uint64(replication.NoDisk)}}}
	p.set.HandleFrame(p, f, b)
}

// TestAPeersAnswerFindsItsHelloTaken: a peer had a device before this node, and its hello
// was kept. It may agree before whoever adds the device here goes on; that counts.
func TestAPeersAnswerFindsItsHelloTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewSet(slog.New(slog.DiscardHandler))
		session := &prompt{wireTap: tap(1), set: s}
		s.SessionUp(session)
		hello := wire.DeviceFacts{Name: "r0", No: 1, Handle: 9, Role: uint8(replication.Secondary), Disk: uint8(replication.Diskless), Primary: wire.NoNode}
		s.HandleFrame(session, &wire.Frame{Header: wire.Header{Type: wire.DevHello}, Payload: hello.Append(nil)}, &block.Batch{})
		d := added(t, s)
		defer d.Abandon()
		if p := d.Status().Peers[0]; !p.Connected {
			t.Errorf("not agreed with a peer that agreed at once: %+v", p)
		}
	})
}

// TestAHelloOfADeviceThatIsGoneIsNotTheLast: a peer had a device while this node
// had not, closed it, and opens it again once this node has it, too. The second
// opening's hello counts, though it is its first, and so has the number of the
// one that was kept; hellos of the first opening no longer do.
func TestAHelloOfADeviceThatIsGoneIsNotTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, session := NewSet(slog.New(slog.DiscardHandler)), tap(1)
		s.SessionUp(session)
		hello := func(handle, no uint32) {
			facts := wire.DeviceFacts{Name: "r0", No: no, Handle: handle, Disk: 1, Primary: wire.NoNode}
			s.HandleFrame(session, &wire.Frame{Header: wire.Header{Type: wire.DevHello}, Payload: facts.Append(nil)}, &block.Batch{})
			synctest.Wait()
		}
		agreedWith := func(handle uint32, no uint64) {
			t.Helper()
			session.mu.Lock()
			defer session.mu.Unlock()
			if session.agreed.Dev != handle || session.agreed.Arg[1] != no {
				t.Errorf("agreed with hello %d of handle %d, not with %d of %d", session.agreed.Arg[1], session.agreed.Dev, no, handle)
			}
		}
		hello(9, 3)
		d := added(t, s)
		defer d.Abandon()
		agreedWith(9, 3)
		hello(12, 1)
		agreedWith(12, 1)
		session.mu.Lock()
		if n := session.sent[wire.DevHello]; n != 2 {
			t.Errorf("%d hellos were sent: the second opening has seen none", n)
		}
		session.mu.Unlock()
		hello(9, 4)
		agreedWith(12, 1)
	})
}
