package device

import (
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// wireTap is a session that keeps the types of what is sent.
type wireTap struct {
	mu   sync.Mutex
	sent map[wire.Type]int
}

func (w *wireTap) Send(h *wire.Header, _ []byte, _ *block.Buf, _ *block.Batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[h.Type]++
}

func (w *wireTap) PeerID() int { return 1 }

// TestAHelloOfADeviceToComeIsKept: a peer has a device before this node; the
// peer's hello counts when this node has it, too.
func TestAHelloOfADeviceToComeIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, tap := NewSet(slog.New(slog.DiscardHandler)), &wireTap{sent: map[wire.Type]int{}}
		s.SessionUp(tap)
		hello := wire.DeviceFacts{Name: "r0", No: 1, Handle: 9, Disk: 1, Primary: wire.NoNode}
		f := &wire.Frame{Header: wire.Header{Type: wire.DevHello}, Payload: hello.Append(nil)}
		s.HandleFrame(tap, f, &block.Batch{})
		d, err := New(Options{Config: Config{Name: "r0", Handle: 1, Size: 1 << 20, Nodes: []Node{{ID: 0, Name: "a", Diskless: true}, {ID: 1, Name: "b", Diskless: true}}}})
		if err != nil {
			t.Fatal(err)
		}
		d.Start()
		defer d.Abandon()
		if err := s.Add(d); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		tap.mu.Lock()
		defer tap.mu.Unlock()
		if tap.sent[wire.DevHello] != 1 || tap.sent[wire.DevAgree] != 1 {
			t.Fatalf("sent %v, want a hello and an agreement", tap.sent)
		}
	})
}
