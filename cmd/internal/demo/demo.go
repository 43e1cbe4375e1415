package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
)

const (
	device = "r0"
	mib    = 1 << 20
	// Of the device of 1 GiB: what is written first, and what is written while a node is away, half of it over the first.
	firstBytes  = 256 * mib
	secondStart = 192 * mib
	secondBytes = 128 * mib
)

// demo is one run.
type demo struct {
	c    *cluster.Cluster
	out  io.Writer
	tty  bool
	n    int // steps shown
	book *ledger.Ledger
	disk ledger.Device
}

// step announces a step, does it within a minute, and says how long it took
// and what do says about it.
func (d *demo) step(ctx context.Context, what string, do func(ctx context.Context) (note string, err error)) error {
	d.n++
	fmt.Fprintf(d.out, "%2d  %s", d.n, what)
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it took longer than a minute"))
	defer cancel()
	start := time.Now()
	note, err := do(ctx)
	if err != nil {
		fmt.Fprintln(d.out)
		return fmt.Errorf("step %d, %s: %w", d.n, what, err)
	}
	if note != "" {
		note = "  " + note
	}
	fmt.Fprintf(d.out, "%s %.2f s%s\n", strings.Repeat(" ", max(0, 58-len(what))), time.Since(start).Seconds(), note)
	return nil
}

// show does everything up to the comparison of the disks.
func (d *demo) show(ctx context.Context) error {
	fmt.Fprintf(d.out, "Three nodes on this machine, and one device of 1 GiB that is on the disks of all three.\n\n")
	d.book = ledger.New(uint64(time.Now().UnixNano()), 1<<30)
	alpha, beta := d.c.Node("alpha"), d.c.Node("beta")
	if err := d.step(ctx, "start alpha, beta and gamma", d.start); err != nil {
		return err
	}
	d.processes()
	if err := d.step(ctx, "connect to "+device+" on alpha by NBD", func(ctx context.Context) (note string, err error) {
		d.disk, err = dial(ctx, alpha.NBD(device), device)
		return "auto_promote made alpha primary", err
	}); err != nil {
		return err
	}
	defer d.disk.Close()
	for _, s := range []struct {
		what string
		do   func(context.Context) (string, error)
	}{
		{"write 256 MiB, each write to three disks before its answer", func(ctx context.Context) (string, error) {
			return d.write(ctx, 0, firstBytes)
		}},
		{"read them back and check every block", func(ctx context.Context) (string, error) {
			return d.read(ctx, 0, firstBytes)
		}},
	} {
		if err := d.step(ctx, s.what, s.do); err != nil {
			return err
		}
	}
	if err := d.status(ctx, alpha); err != nil {
		return err
	}
	if err := d.loseBeta(ctx, alpha, beta); err != nil {
		return err
	}
	return d.compare(ctx)
}

func (d *demo) start(ctx context.Context) (string, error) {
	if err := d.c.Start(ctx); err != nil {
		return "", err
	}
	return "new disks are zero everywhere: in sync at once", d.c.Until(ctx, device+" is in sync", cluster.InSync(device))
}

func (d *demo) processes() {
	for _, n := range d.c.Nodes {
		fmt.Fprintf(d.out, "      %-5s  pid %-7d  peers at %s\n", n.Name, n.Pid(), n.Address)
	}
}

// loseBeta kills beta, writes on, and lets it catch up.
func (d *demo) loseBeta(ctx context.Context, alpha, beta *cluster.Node) error {
	if err := d.step(ctx, fmt.Sprintf("kill -9 beta (pid %d)", beta.Pid()), func(ctx context.Context) (string, error) {
		beta.Kill9()
		return "alpha noticed", alpha.Until(ctx, "beta is down", cluster.PeerDown("beta"))
	}); err != nil {
		return err
	}
	if err := d.step(ctx, "write 128 MiB without it, half of them over old data", func(ctx context.Context) (string, error) {
		return d.write(ctx, secondStart, secondBytes)
	}); err != nil {
		return err
	}
	var missed int64
	if err := d.step(ctx, "ask alpha what beta has missed", func(ctx context.Context) (string, error) {
		s, err := alpha.Status(ctx)
		missed = s.Device(device).Peer("beta").OutOfSync
		return fmt.Sprintf("%d MiB", missed/mib), err
	}); err != nil {
		return err
	}
	if err := d.status(ctx, alpha); err != nil {
		return err
	}
	if err := d.step(ctx, "start beta again; it gets what it missed, nothing else", func(ctx context.Context) (string, error) {
		return d.catchUp(ctx, alpha, beta, missed)
	}); err != nil {
		return err
	}
	return d.step(ctx, "read everything back once more", func(ctx context.Context) (string, error) {
		return d.read(ctx, 0, secondStart+secondBytes)
	})
}

// compare closes the connection, and compares the disks with each other and with what was written.
func (d *demo) compare(ctx context.Context) error {
	return d.step(ctx, "compare the three disks byte for byte", func(ctx context.Context) (string, error) {
		if err := errors.Join(d.disk.Flush(), d.disk.Close()); err != nil {
			return "", err
		}
		if err := d.c.Until(ctx, device+" is in sync", cluster.InSync(device)); err != nil {
			return "", err
		}
		if err := d.c.SameDisks(device); err != nil {
			return "", err
		}
		for _, n := range d.c.Nodes {
			if err := d.book.VerifyFile(n.Disk(device)); err != nil {
				return "", err
			}
		}
		return "identical, and what was written", nil
	})
}

// chunks calls do for each piece of a range that one I/O covers.
func chunks(ctx context.Context, off, n int64, do func(buf []byte, off int64) error) error {
	buf := make([]byte, mib)
	for end := off + n; off < end; off += mib {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := do(buf, off); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) write(ctx context.Context, off, n int64) (string, error) {
	start := time.Now()
	err := chunks(ctx, off, n, func(buf []byte, off int64) error { return d.book.Write(d.disk, buf, off) })
	if err == nil {
		err = d.disk.Flush()
	}
	return rate(n, time.Since(start)), err
}

func (d *demo) read(ctx context.Context, off, n int64) (string, error) {
	start := time.Now()
	err := chunks(ctx, off, n, func(buf []byte, off int64) error { return d.book.Read(d.disk, buf, off) })
	return rate(n, time.Since(start)), err
}

func rate(n int64, t time.Duration) string {
	return fmt.Sprintf("%.0f MiB/s", float64(n)/mib/t.Seconds())
}

// status shows what an operator sees.
func (d *demo) status(ctx context.Context, n *cluster.Node) error {
	out, err := n.Lockstepctl(ctx, "status")
	if err != nil {
		return fmt.Errorf("lockstepctl status: %w\n%s", err, out)
	}
	fmt.Fprintf(d.out, "\n    $ lockstepctl -t %s status\n", n.Socket())
	for line := range strings.Lines(strings.TrimRight(out, "\n") + "\n") {
		fmt.Fprint(d.out, "    "+line)
	}
	fmt.Fprintln(d.out)
	return nil
}

// catchUp starts beta and shows the resync until it is over.
func (d *demo) catchUp(ctx context.Context, alpha, beta *cluster.Node, missed int64) (string, error) {
	fmt.Fprintln(d.out)
	start := time.Now()
	if err := beta.Launch(); err != nil {
		return "", err
	}
	b := &bar{out: d.out, tty: d.tty}
	err := alpha.Until(ctx, "beta has caught up", func(s cluster.Status) bool {
		p := s.Device(device).Peer("beta")
		b.draw(missed-p.OutOfSync, missed, p.Replication, time.Since(start))
		return cluster.InSync(device)(s)
	})
	b.end()
	if err == nil {
		err = d.c.Until(ctx, device+" is in sync", cluster.InSync(device))
	}
	return rate(missed, time.Since(start)) + ", its start included", err
}

// howToPlay prints what can be pasted into another terminal.
func (d *demo) howToPlay() {
	alpha, beta := d.c.Node("alpha"), d.c.Node("beta")
	fmt.Fprintf(d.out, `
The cluster stays until Ctrl-C. In another terminal:

  look     %[1]s -t %[2]s status --watch
           %[1]s -t %[2]s device why r0
           ovs-appctl -t %[2]s list-commands
  write    qemu-io -f raw -c 'write -P 0x5a 0 1M' -c flush -c 'read -P 0x5a 0 1M' '%[3]s'
           nbdinfo '%[3]s'
           nbdcopy '%[3]s' copy-of-r0.img
  break    kill -9 %[4]d        # beta; or kill -STOP, and later kill -CONT
           %[1]s -t %[2]s node disconnect gamma
  mend     %[5]s
           %[1]s -t %[2]s node connect gamma
           %[1]s -t %[2]s device wait r0

Logs, disks and configuration are in %[6]s.
`, d.c.Ctl(), alpha.Socket(), alpha.URI(device), beta.Pid(), strings.Join(beta.Args(), " "), d.c.Dir)
}
