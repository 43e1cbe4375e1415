package messenger

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// hung is work on a disk that does not end before it is told to. It then says
// so to the peer.
type hung struct {
	s   *Session
	no  uint64
	end chan struct{}
}

func (h *hung) TakenOver(*block.Batch) bool { return false }
func (h *hung) Perform()                    { <-h.end }
func (h *hung) Late()                       {}
func (h *hung) Performed(b *block.Batch) {
	h.s.Send(&wire.Header{Type: wire.WriteAck, Arg: [3]uint64{h.no}}, nil, nil, b)
}

// hangs has a node's disk hang on writes of which on says so.
func (n *node) hangs(end chan struct{}, on func(no uint64) bool) {
	n.record(func() {
		n.frame = func(s *Session, f *wire.Frame, b *block.Batch) {
			if f.Type == wire.Write && on(f.Arg[0]) {
				b.Defer(&hung{s, f.Arg[0], end})
			}
		}
	})
}

func (n *node) received(k wire.Link, want int) {
	n.t.Helper()
	n.wait("frames", func() bool { return len(n.got[k]) == want })
}

// TestADiskThatHangsKeepsNoLink: what comes behind a frame whose work hangs is
// handed on, in order, and acked; a cut is mended, and loses nothing; and in
// the end the late work's answer arrives.
func TestADiskThatHangsKeepsNoLink(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		end := make(chan struct{})
		b.hangs(end, func(no uint64) bool { return no == 1 || no == 150 })
		s := a.waitUp(1)
		sent := uint64(0)
		send := func(n int) {
			for range n {
				sent++
				sendNumber(s, wire.Write, sent, pattern(1000), nil)
			}
			b.received(wire.Data, int(sent))
		}
		send(100)
		waitFor(t, "the acks", func() bool { return s.Queued(wire.Data) == 0 })
		sn.reset("alpha", "beta")
		send(100)
		time.Sleep(time.Minute) // many tick times
		checkOrder(t, b.frames(wire.Data), 200)
		if got := a.frames(wire.Meta); len(got) != 0 {
			t.Errorf("answers to %d although the work hangs", got)
		}
		if i, _ := b.Node("alpha"); i.Data.Relieved != 2 || i.Data.Away != 2 {
			t.Errorf("relieved %d, away %d, want 2", i.Data.Relieved, i.Data.Away)
		}
		close(end)
		a.received(wire.Meta, 2)
		a.waitLog("up 1")
		b.waitLog("up 0")
		waitFor(t, "the readers", func() bool { i, _ := b.Node("alpha"); return i.Data.Away == 0 })
	})
}

// TestASessionEndsThoughADiskHangs, and so does the messenger.
func TestASessionEndsThoughADiskHangs(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, _ *simNet) {
		end := make(chan struct{})
		b.hangs(end, func(uint64) bool { return true })
		for range 3 {
			sendNumber(a.waitUp(1), wire.Write, 1, nil, nil)
		}
		b.received(wire.Data, 3)
		a.waitUp(1).End("the test wants it")
		a.waitUp(2)
		b.waitUp(2)
		sendNumber(a.waitUp(2), wire.Write, 1, nil, nil)
		b.received(wire.Data, 4)
		start := time.Now()
		b.stop()
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v", d)
		}
		close(end)
		synctest.Wait()
		if got := a.frames(wire.Meta); len(got) != 0 {
			t.Errorf("answers %d on sessions that are over", got)
		}
	})
}

// TestReadersThatDisksKeepAreBounded: at the limit the link is not read until
// one is back; the meta link goes on, and the peer is heard.
func TestReadersThatDisksKeepAreBounded(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, _ *simNet) {
		end := make(chan struct{})
		b.hangs(end, func(uint64) bool { return true })
		s := a.waitUp(1)
		const n = maxAway + 100
		for i := range uint64(n) {
			sendNumber(s, wire.Write, i+1, nil, nil)
			synctest.Wait() // a read each
		}
		time.Sleep(time.Minute)
		if got := len(b.frames(wire.Data)); got > maxAway+1 {
			t.Errorf("%d frames were handed on", got)
		}
		sendNumber(s, wire.WriteAck, 1, nil, nil)
		b.received(wire.Meta, 1)
		close(end)
		b.received(wire.Data, n)
		checkOrder(t, b.frames(wire.Data), n)
		a.received(wire.Meta, n)
		a.waitLog("up 1")
		b.waitLog("up 0")
	})
}
