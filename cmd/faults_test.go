package cmd_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

const faultSize = 64 << 20

// quick is three nodes that notice a silent peer within about a second.
func quick() cluster.Config {
	cfg := cluster.Three("64MiB")
	cfg.TickTime = time.Second
	return cfg
}

// verifying runs fio with verification over and over until stopped; every pass must succeed.
func verifying(t *testing.T, n *cluster.Node) (stop func()) {
	t.Helper()
	return verifyingAt(t, n.URI("r0"))
}

// verifyingAt is verifying by way of an NBD server.
func verifyingAt(t *testing.T, uri string) (stop func()) {
	t.Helper()
	host := proc.NewHost()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	passes := 0
	go func() {
		defer host.Close()
		for ctx.Err() == nil {
			// Not under ctx: the last pass is verified to its end.
			if err := fioVerify(t.Context(), host, uri, "16M"); err != nil {
				result <- err
				return
			}
			passes++
		}
		result <- nil
	}()
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-result; err != nil {
			t.Errorf("after %d passes: %v", passes, err)
		}
		t.Logf("fio: %d passes of write and verify", passes)
	}
	t.Cleanup(stop)
	return stop
}

// fioVerify writes a part of a device at random, with blocks of many sizes, and reads it back by checksum.
func fioVerify(ctx context.Context, h *proc.Host, uri, size string) error {
	_, err := h.Run(ctx, "fio", "--name=v", "--ioengine=nbd", "--uri="+uri, "--rw=randrw", "--bsrange=4k-128k",
		"--iodepth=32", "--size="+size, "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=512", "--fsync=32", "--randrepeat=0", "--verify_state_save=0")
	return err
}

// TestSecondariesLostUnderLoad kills and freezes each secondary in turn while
// fio writes and verifies: it must not notice.
func TestSecondariesLostUnderLoad(t *testing.T) {
	need(t, "fio")
	t.Parallel()
	_, rng := seed(t)
	c := start(t, quick())
	alpha := c.Node("alpha")
	holder := open(t, alpha) // keeps alpha primary between fio's passes
	stop := verifying(t, alpha)
	for _, i := range rng.Perm(4) {
		victim := c.Node([]string{"beta", "gamma"}[i%2])
		if i < 2 {
			victim.Kill9()
			until(t, alpha, victim.Name+" is down", cluster.PeerDown(victim.Name))
			launch(t, victim)
		} else {
			victim.Stop()
			until(t, alpha, victim.Name+" is down", cluster.PeerDown(victim.Name))
			victim.Cont()
		}
		inSync(t, c, "r0")
	}
	stop()
	if err := holder.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
}

// TestPrimaryKilledAndReplaced kills each node in turn while it is the primary
// and goes on at another: nothing acknowledged may be missing there.
func TestPrimaryKilledAndReplaced(t *testing.T) {
	t.Parallel()
	s, rng := seed(t)
	c := start(t, quick())
	book := ledger.New(s, faultSize)
	order := rng.Perm(3)
	for i, id := range order {
		primary, next := c.Nodes[id], c.Nodes[order[(i+1)%3]]
		tr := load(t, book, primary, 0)
		tr.moves(t)
		primary.Kill9()
		tr.onlyLost(t)
		conn := open(t, next)
		verify(t, book, conn, 0)
		again := load(t, book, next, 0)
		again.moves(t)
		launch(t, primary)
		inSync(t, c, "r0")
		again.flawless(t)
		verify(t, book, conn, 0)
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		converged(t, c)
	}
	for _, n := range c.Nodes {
		if err := book.VerifyFile(n.Disk("r0")); err != nil {
			t.Error(err)
		}
	}
}

// TestPrimaryKilledAndRestarted kills the primary and starts it again in the
// same place, three times: its clients reconnect and find all that they were told.
func TestPrimaryKilledAndRestarted(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	c := start(t, quick())
	book := ledger.New(s, faultSize)
	alpha := c.Node("alpha")
	tr := load(t, book, alpha, 0)
	for range 3 {
		tr.moves(t)
		alpha.Kill9()
		launch(t, alpha)
	}
	tr.moves(t)
	tr.onlyLost(t)
	inSync(t, c, "r0")
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
}

// TestPrimaryFrozen freezes the primary until the others give it up, and lets
// it go on: its clients have waited, and that is all.
func TestPrimaryFrozen(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	c := start(t, quick())
	alpha, beta := c.Node("alpha"), c.Node("beta")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	for range 2 {
		tr.moves(t)
		alpha.Stop()
		until(t, beta, "alpha is down", cluster.PeerDown("alpha"))
		alpha.Cont()
		inSync(t, c, "r0")
	}
	tr.moves(t)
	tr.flawless(t)
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
}

// TestPrimaryFrozenAndReplaced freezes the primary until the others give it
// up, lets another take over, and lets it go on: it must not acknowledge
// anything that the new primary does not have.
func TestPrimaryFrozenAndReplaced(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	c := start(t, quick())
	alpha, beta := c.Node("alpha"), c.Node("beta")
	const half = faultSize / 2
	old, young := ledger.New(s, half), ledger.New(s+1, half)
	atAlpha := load(t, old, alpha, 0)
	atAlpha.moves(t)
	alpha.Stop()
	until(t, beta, "alpha is down", cluster.PeerDown("alpha"))
	conn := open(t, beta)
	atBeta := load(t, young, beta, half)
	atBeta.moves(t)
	alpha.Cont()
	inSync(t, c, "r0")
	atBeta.moves(t)
	atBeta.flawless(t)
	atAlpha.end(t)
	verify(t, old, conn, 0)
	verify(t, young, conn, half)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
}

// network is a cluster in a network of its own whose links can be cut.
type network struct {
	*cluster.Cluster
	t *testing.T
}

// newNetwork starts a cluster in a network namespace.
func newNetwork(t *testing.T, cfg cluster.Config) network {
	t.Helper()
	n := layOutNetwork(t, cfg)
	if err := n.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, n.Cluster, "r0")
	return n
}

// layOutNetwork is newNetwork that starts nothing yet.
func layOutNetwork(t *testing.T, cfg cluster.Config) network {
	t.Helper()
	need(t, "nft")
	needRoot(t, "a network namespace")
	host, err := proc.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	n := network{layOut(t, cfg, host), t}
	n.nft("add table ip cut", "add chain ip cut in { type filter hook input priority 0; }")
	return n
}

// nft runs commands of the packet filter.
func (n network) nft(commands ...string) {
	n.t.Helper()
	if _, err := n.Host().Run(within(n.t, patience), "nft", strings.Join(commands, "; ")); err != nil {
		n.t.Fatal(err)
	}
}

// cut drops, or does what verdict says with, all that goes from one node to another.
func (n network) cut(from, to, verdict string) {
	n.t.Helper()
	n.nft(fmt.Sprintf("add rule ip cut in ip saddr %s ip daddr %s %s", n.IP(n.Node(from).ID), n.IP(n.Node(to).ID), verdict))
}

func (n network) heal() { n.t.Helper(); n.nft("flush chain ip cut in") }

// TestLinksCutUnderLoad cuts the links between nodes in many ways, in an order
// by seed, while a client writes on alpha: it may have to wait, and must not
// see an error.
func TestLinksCutUnderLoad(t *testing.T) {
	t.Parallel()
	s, rng := seed(t)
	n := newNetwork(t, quick())
	alpha, beta := n.Node("alpha"), n.Node("beta")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	tr.moves(t)
	down := func(at *cluster.Node, peer string) { until(t, at, peer+" is down", cluster.PeerDown(peer)) }
	const reset = "meta l4proto tcp reject with tcp reset"
	faults := map[string]func(){
		"alpha and beta apart": func() {
			n.cut("alpha", "beta", "drop")
			n.cut("beta", "alpha", "drop")
			down(alpha, "beta")
			down(beta, "alpha")
			tr.moves(t)
		},
		"nothing from gamma to alpha": func() {
			n.cut("gamma", "alpha", "drop")
			down(alpha, "gamma")
			tr.moves(t)
		},
		"nothing from alpha to gamma": func() {
			n.cut("alpha", "gamma", "drop")
			down(alpha, "gamma")
			tr.moves(t)
		},
		"resets between alpha and beta": func() {
			n.cut("alpha", "beta", reset)
			n.cut("beta", "alpha", reset)
			down(alpha, "beta")
			tr.moves(t)
		},
		"beta and gamma apart": func() {
			n.cut("beta", "gamma", "drop")
			n.cut("gamma", "beta", "drop")
			down(beta, "gamma")
			tr.moves(t)
		},
		"alpha alone": func() {
			for _, peer := range []string{"beta", "gamma"} {
				n.cut("alpha", peer, "drop")
				n.cut(peer, "alpha", "drop")
			}
			until(t, alpha, "r0 is suspended", func(s cluster.Status) bool { return s.Device("r0").Suspended })
			down(beta, "alpha")
		},
	}
	names := []string{"alpha and beta apart", "nothing from gamma to alpha", "nothing from alpha to gamma",
		"resets between alpha and beta", "beta and gamma apart", "alpha alone"}
	for _, i := range rng.Perm(len(names)) {
		t.Log(names[i])
		faults[names[i]]()
		n.heal()
		inSync(t, n.Cluster, "r0")
		tr.moves(t)
	}
	tr.flawless(t)
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, n.Cluster)
}

// TestPrimaryCutOffAndReplaced isolates the primary, lets another take over,
// and joins them again: the old one acknowledged nothing in the meantime.
func TestPrimaryCutOffAndReplaced(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	n := newNetwork(t, quick())
	alpha, beta := n.Node("alpha"), n.Node("beta")
	const half = faultSize / 2
	old, young := ledger.New(s, half), ledger.New(s+1, half)
	atAlpha := load(t, old, alpha, 0)
	atAlpha.moves(t)
	for _, peer := range []string{"beta", "gamma"} {
		n.cut("alpha", peer, "drop")
		n.cut(peer, "alpha", "drop")
	}
	until(t, beta, "alpha is down", cluster.PeerDown("alpha"))
	conn := open(t, beta)
	atBeta := load(t, young, beta, half)
	atBeta.moves(t)
	n.heal()
	inSync(t, n.Cluster, "r0")
	atBeta.moves(t)
	atBeta.flawless(t)
	atAlpha.end(t)
	verify(t, old, conn, 0)
	verify(t, young, conn, half)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, n.Cluster)
}
