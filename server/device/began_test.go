package device

import (
	"testing"
	"testing/synctest"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// featured is a wireTap of nodes that speak all there is.
type featured struct{ *wireTap }

func (featured) Features() uint64 { return wire.FeatureBegan }

// TestAWordOfAnAgreementBeforeIsNotTaken: a peer, which was primary then, had agreed
// with our last hello but one, and told on the data link who gets its changes. That
// comes when we have agreed with it again: it is not the primary that we follow, until
// it says that what comes is of this agreement.
func TestAWordOfAnAgreementBeforeIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		session := featured{tap(1)}
		d, err := New(Options{Config: Config{Name: "r0", Handle: 1, Size: 1 << 20, Nodes: []Node{{ID: 0, Name: "a", Diskless: true}, {ID: 1, Name: "b", Diskless: true}}}})
		if err != nil {
			t.Fatal(err)
		}
		d.Start()
		defer d.Abandon()
		d.SessionUp(session)
		comes := func(h wire.Header) {
			b := &block.Batch{}
			d.HandleFrame(session, &wire.Frame{Header: h}, b)
			b.Finish()
			synctest.Wait()
		}
		follows := func() bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.stream == 99 && d.primary == 1
		}
		receivers := wire.Header{Type: wire.Receivers, Dev: 1, Arg: [3]uint64{1, 0, 99}}
		d.HelloReceived(session, wire.DeviceFacts{Name: "r0", No: 2, Handle: 9, Disk: 1, Primary: wire.NoNode})
		synctest.Wait()
		session.mu.Lock()
		began, ours := session.sent[wire.Began], session.agreed.Arg[0]
		session.mu.Unlock()
		if began == 0 || ours == 0 {
			t.Fatalf("the agreement was not told on both links: %v", session.sent)
		}
		comes(wire.Header{Type: wire.Began, Dev: 1, Arg: [3]uint64{1, ours}})
		comes(receivers)
		comes(wire.Header{Type: wire.DevAgree, Dev: 1, Arg: [3]uint64{2, ours, session.agreed.Arg[2]}})
		comes(receivers)
		if follows() {
			t.Fatal("a word of an agreement before was taken")
		}
		comes(wire.Header{Type: wire.Began, Dev: 1, Arg: [3]uint64{2, ours}})
		comes(receivers)
		if !follows() {
			t.Fatal("a word of the present agreement was not taken")
		}
	})
}
