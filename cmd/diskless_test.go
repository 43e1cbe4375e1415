package cmd_test

import (
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
)

// TestDisklessPrimary loads a device on a node that has no disk of its own:
// all that it reads comes from its peers, one of which is lost and comes back.
func TestDisklessPrimary(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	cfg := quick()
	cfg.Devices[0].Extra = "[device.on.alpha]\ndiskless = true\n"
	c := layOut(t, cfg, nil)
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	alpha, beta := c.Node("alpha"), c.Node("beta")
	ready := func(s cluster.Status) bool {
		d := s.Device("r0")
		return d.Disk == "Diskless" && d.Peer("beta").Disk == "UpToDate" && d.Peer("gamma").Disk == "UpToDate"
	}
	until(t, alpha, "both disks are in sync", ready)
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	for range 10 {
		tr.moves(t)
	}
	for _, n := range []*cluster.Node{beta, c.Node("gamma")} {
		n.Kill9()
		until(t, alpha, n.Name+" is down", cluster.PeerDown(n.Name))
		launch(t, n)
		until(t, alpha, "both disks are in sync", ready)
		tr.moves(t)
	}
	tr.flawless(t)
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	for _, n := range c.Nodes[1:] {
		until(t, n, "r0 is secondary everywhere", func(s cluster.Status) bool { return s.Device("r0").Peer("alpha").Role != "primary" })
		if err := book.VerifyFile(n.Disk("r0")); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
	}
}
