package cmd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// cachedDisk is a disk with a cache of its own that is lost with its power:
// nbdkit keeps what is written until it is told to flush, and nbdfuse makes a
// file of it.
type cachedDisk struct {
	host      *proc.Host
	dir, file string
	storage   []string // nbdkit's arguments
	nbdkit    *proc.Process
	nbdfuse   *proc.Process
	lives     int
}

func newCachedDisk(t *testing.T, host *proc.Host, dir string, size int64) *cachedDisk {
	return newDisk(t, host, dir, size, "--filter=cache", "file", filepath.Join(dir, "img"), "cache=writeback", "cache-on-read=false")
}

// newDisk is a disk of what nbdkit makes of dir/img by its arguments.
func newDisk(t *testing.T, host *proc.Host, dir string, size int64, storage ...string) *cachedDisk {
	t.Helper()
	d := &cachedDisk{host: host, dir: dir, file: filepath.Join(dir, "disk"), storage: storage}
	for _, err := range []error{
		os.Mkdir(dir, 0o700), os.WriteFile(d.path("img"), nil, 0o600), os.Truncate(d.path("img"), size),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { d.cut(t) })
	d.power(t)
	return d
}

func (d *cachedDisk) path(name string) string { return filepath.Join(d.dir, name) }

// mount is where this life of the disk is mounted: not where one was that may
// be still on its way out.
func (d *cachedDisk) mount() string { return d.path(fmt.Sprintf("mnt%d", d.lives)) }

// power turns the disk on.
func (d *cachedDisk) power(t *testing.T) {
	t.Helper()
	start := func(argv ...string) *proc.Process {
		t.Helper()
		p, err := d.host.Start(proc.Spec{Argv: argv, Log: d.path(argv[0] + ".log")})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	await := func(p *proc.Process, what string, cond func() bool) {
		t.Helper()
		if !poll(within(t, patience), cond) {
			t.Fatalf("there is no %s:\n%s", what, p.LogTail(10))
		}
	}
	d.lives++
	if err := os.Mkdir(d.mount(), 0o700); err != nil {
		t.Fatal(err)
	}
	sock, disk := d.path(fmt.Sprintf("sock%d", d.lives)), filepath.Join(d.mount(), "disk")
	d.nbdkit = start(append([]string{"nbdkit", "-f", "-U", sock}, d.storage...)...)
	await(d.nbdkit, sock, func() bool {
		conn, err := net.Dial("unix", sock) // that it is there does not mean that it listens
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	d.nbdfuse = start("nbdfuse", disk, "nbd+unix:///?socket="+sock)
	await(d.nbdfuse, disk, func() bool { _, err := os.Stat(disk); return err == nil })
	if err := os.Remove(d.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Symlink(disk, d.file); err != nil {
		t.Fatal(err)
	}
}

// cut turns it off: what it was not told to flush is lost.
func (d *cachedDisk) cut(t *testing.T) {
	t.Helper()
	if d.nbdkit == nil {
		return
	}
	d.nbdkit.Kill()
	<-d.nbdkit.Done()
	d.nbdkit = nil
	if d.nbdfuse == nil {
		return
	}
	d.nbdfuse.Kill()
	<-d.nbdfuse.Done()
	d.nbdfuse = nil
	// Lazily: a daemon that was killed may still be let go of. Not under the
	// test's context: that has ended when this cleans up.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := d.host.Run(ctx, "fusermount3", "-u", "-z", d.mount()); err != nil {
		t.Error(err)
	}
}

// TestScenario04DisksThatLoseTheirCaches cuts the power of three nodes whose
// disks have caches: all that was written before a flush is there afterwards on
// every disk, over whatever connection it was written and whatever connection
// flushed; of the rest, every block is old or new.
func TestScenario04DisksThatLoseTheirCaches(t *testing.T) {
	need(t, "nbdkit", "nbdfuse", "fusermount3")
	needRoot(t, "nbdfuse")
	t.Parallel()
	s, rng := seed(t)
	host := proc.NewHost()
	t.Cleanup(host.Close)
	disks := map[string]*cachedDisk{}
	base := t.TempDir()
	cfg := quick()
	for _, n := range cfg.Nodes {
		disks[n] = newCachedDisk(t, host, filepath.Join(base, n), faultSize)
		cfg.Devices[0].Extra += fmt.Sprintf("[device.on.%s]\ndisk = %q\n", n, disks[n].file)
	}
	c := layOut(t, cfg, nil)
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Nodes[0].Lockstepctl(within(t, patience), "device", "create", "r0", "--from-existing"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	inSync(t, c, "r0")
	const half = faultSize / 2
	kept := ledger.New(s, half)
	for range 3 {
		primary := c.Nodes[rng.IntN(3)]
		one, other := section{open(t, primary), 0}, section{open(t, primary), half}
		buf := make([]byte, 256<<10)
		for range 40 {
			if err := kept.Write(one, buf, rng.Int64N((half-int64(len(buf)))/4096)*4096); err != nil {
				t.Fatal(err)
			}
		}
		if err := other.Flush(); err != nil {
			t.Fatal(err)
		}
		for range 40 { // acknowledged, and not flushed
			data := slices.Repeat([]byte{byte(1 + rng.IntN(255))}, 64<<10)
			if _, err := other.WriteAt(data, rng.Int64N(half-int64(len(data)))&^4095); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range c.Nodes {
			n.Kill9()
			disks[n.Name].cut(t)
		}
		for _, id := range rng.Perm(3) {
			disks[c.Nodes[id].Name].power(t)
			launch(t, c.Nodes[id])
		}
		inSync(t, c, "r0")
		conn := open(t, c.Nodes[rng.IntN(3)])
		verify(t, kept, conn, 0)
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		for _, n := range c.Nodes {
			until(t, n, "r0 is secondary everywhere", func(s cluster.Status) bool {
				d := s.Device("r0")
				ok := d.Role == "secondary"
				for _, p := range d.Peers {
					ok = ok && p.Role == "secondary"
				}
				return ok
			})
		}
		inSync(t, c, "r0")
	}
	for _, n := range c.Nodes {
		if err := kept.VerifyFile(disks[n.Name].file); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		if n != c.Nodes[0] {
			if _, err := host.Run(within(t, patience), "cmp", disks["alpha"].file, disks[n.Name].file); err != nil {
				t.Error(err)
			}
		}
	}
	for _, n := range c.Nodes { // before their disks go
		if err := n.Term(within(t, patience)); err != nil {
			t.Error(err)
		}
	}
}

// TestScenario07LossyLinks loses one packet in a hundred between all nodes
// while a client writes.
func TestScenario07LossyLinks(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	n := newNetwork(t, quick())
	alpha := n.Node("alpha")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	tr.moves(t)
	n.nft(`add rule ip cut in ip saddr 127.0.0.0/8 ip daddr 127.0.0.0/8 numgen random mod 100 < 1 drop`)
	for range 5 {
		tr.moves(t)
	}
	n.heal()
	inSync(t, n.Cluster, "r0")
	tr.flawless(t)
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, n.Cluster)
}

// TestScenario42DevicesHaveQuorumsOfTheirOwn: of two devices on the same nodes
// one needs a majority and goes on without a node; the other needs all and
// waits for it.
func TestScenario42DevicesHaveQuorumsOfTheirOwn(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Devices = append(cfg.Devices, cluster.Device{Name: "r1", Size: "8MiB", Quorum: "all"})
	c := start(t, cfg)
	alpha, gamma := c.Node("alpha"), c.Node("gamma")
	if out, err := alpha.Lockstepctl(within(t, patience), "device", "promote", "r1"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conn := open(t, alpha)
	gamma.Kill9()
	until(t, alpha, "r1 waits and r0 does not", func(s cluster.Status) bool {
		return s.Device("r1").Suspended && !s.Device("r1").Quorum && s.Device("r0").Quorum && !s.Device("r0").Suspended
	})
	if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	launch(t, gamma)
	inSync(t, c, "r0")
	inSync(t, c, "r1")
	until(t, alpha, "r1 goes on", func(s cluster.Status) bool { return !s.Device("r1").Suspended })
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// TestScenario57AHundredDevices on three nodes, of which one comes and goes:
// all get in sync again each time, and no descriptor is left behind.
func TestScenario57AHundredDevices(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Devices = nil
	for i := range 100 {
		cfg.Devices = append(cfg.Devices, cluster.Device{Name: fmt.Sprintf("d%02d", i), Size: "1MiB", Quorum: "majority"})
	}
	c := layOut(t, cfg, nil)
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	all := func(s cluster.Status) bool {
		for _, d := range s.Devices {
			if !cluster.InSync(d.Name)(s) {
				return false
			}
		}
		return len(s.Devices) == len(cfg.Devices)
	}
	await := func() {
		t.Helper()
		if err := c.Until(within(t, patience), "all devices are in sync", all); err != nil {
			t.Fatal(err)
		}
	}
	descriptors := func(n *cluster.Node) int {
		t.Helper()
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	await()
	alpha, gamma := c.Node("alpha"), c.Node("gamma")
	for _, d := range cfg.Devices[:10] {
		if out, err := alpha.Lockstepctl(within(t, patience), "device", "promote", d.Name); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	before := descriptors(alpha)
	for range 3 {
		gamma.Kill9()
		until(t, alpha, "gamma is down", cluster.PeerDown("gamma"))
		launch(t, gamma)
		await()
	}
	// The links were made anew; a connection of ours may be on its way out.
	if !poll(within(t, patience), func() bool { return descriptors(alpha) <= before+2 }) {
		t.Errorf("%d descriptors before, %d after", before, descriptors(alpha))
	}
	if log := alpha.Proc().LogTail(2000); strings.Contains(log, "panic") {
		t.Error(log)
	}
}
