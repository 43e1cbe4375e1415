package control

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/replication"
)

// TestHealth: each thing that can be wrong is told with what to do about it,
// the gravest first, and what is no fault is not told.
func TestHealth(t *testing.T) {
	up, down := api.Node{Name: "beta", State: "up", LastError: "tick-timeout: long ago"}, api.Node{Name: "beta", State: "down"}
	why, wait := " -> lockstepctl device why r0", " -> lockstepctl device wait r0 synced"
	quorate := replication.Verdict{Quorate: true, Why: "2 of 2 disks in reach"}
	lost := replication.Verdict{Why: "1 of 3 disks in reach, 2 needed"}
	type change func(d *device.Status, p *device.PeerStatus)
	for _, tt := range []struct {
		name    string
		node    api.Node
		change  change
		config  error
		monitor bool   // it is gone
		want    string // the health, and a line for each problem
	}{
		{name: "nothing", node: up, want: "ok"},
		{name: "no disk here by configuration", node: up, change: func(d *device.Status, p *device.PeerStatus) { d.Disk = replication.Diskless }, want: "ok"},
		{name: "no disk there by configuration", node: up, change: func(d *device.Status, p *device.PeerStatus) { p.Disk = replication.Diskless }, want: "ok"},
		{name: "out of sync for a moment", node: up, change: func(d *device.Status, p *device.PeerStatus) { p.OutOfSync = 4096 }, want: "ok"},
		{name: "paused with nothing to resync", node: up, change: func(d *device.Status, p *device.PeerStatus) { p.Held = "here" }, want: "ok"},

		{name: "a peer is down", node: down, change: func(d *device.Status, p *device.PeerStatus) { p.Connected = false },
			want: "degraded|node beta: down -> lockstepctl node why beta"},
		{name: "its error's code is for programs", node: api.Node{Name: "beta", State: "down", LastError: "tick-timeout: nothing was heard for 2s"},
			want: "degraded|node beta: down: nothing was heard for 2s -> lockstepctl node why beta"},
		{name: "an error without a code", node: api.Node{Name: "beta", State: "connecting", LastError: "dial: no route"},
			want: "degraded|node beta: connecting: dial: no route -> lockstepctl node why beta"},
		{name: "up, and not agreed with", node: up, change: func(d *device.Status, p *device.PeerStatus) { p.Connected = false },
			want: "degraded|device r0: not replicated with beta, which is up" + why},
		{name: "split brain", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			p.Connected, p.Refused, p.Decision.Action = false, "both sides were written", replication.SplitBrain
		}, want: "degraded|device r0: split brain with beta: both sides were written" + why},
		{name: "split brain after a restart", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			d.Disk, p.Connected, p.Refused, p.Decision.Action = replication.Consistent, false, "both sides were written", replication.SplitBrain
		}, want: "degraded|device r0: split brain with beta: both sides were written" + why},
		{name: "refused", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			p.Connected, p.Refused, p.Decision.Action = false, "the sizes differ", replication.Refuse
		}, want: "degraded|device r0: not replicated with beta: the sizes differ" + why},
		{name: "configured otherwise", node: up, change: func(d *device.Status, p *device.PeerStatus) { d.Differs = []string{"beta", "gamma"} },
			want: "degraded|device r0: configured otherwise than beta, gamma, in what nodes must agree on" + why},

		{name: "the source of a resync", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			p.Repl, p.Disk, p.OutOfSync = replication.SyncSource, replication.Inconsistent, 1<<20
		}, want: "degraded|device r0: beta is being resynced, 1.0 MiB out of sync" + wait},
		{name: "the target of a resync", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			d.Disk, p.Repl, p.OutOfSync = replication.Inconsistent, replication.SyncTarget, 1<<20
		}, want: "degraded|device r0: the disk is being resynced from beta, 1.0 MiB out of sync" + wait},
		{name: "a resync that waits", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			p.Repl, p.Disk, p.OutOfSync = replication.PausedSyncS, replication.Inconsistent, 1<<20
		}, want: "degraded|device r0: the resync with beta waits, 1.0 MiB out of sync" + why},
		{name: "a resync that is paused", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			p.Repl, p.Disk, p.OutOfSync, p.Held = replication.PausedSyncS, replication.Inconsistent, 1<<20, "on beta"
		}, want: "degraded|device r0: the resync with beta is paused on beta, 1.0 MiB out of sync -> lockstepctl device resync r0"},
		{name: "a disk that is outdated there", node: up, change: func(d *device.Status, p *device.PeerStatus) { p.Disk, p.OutOfSync = replication.Outdated, 4096 },
			want: "degraded|device r0: the disk of beta is Outdated, 4.0 KiB out of sync" + why},
		{name: "what a verify found", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			p.OutOfSync, p.Verified = 4096, &device.Verified{Differ: 4096}
		}, want: "degraded|device r0: a verify found that beta differs in 4.0 KiB -> lockstepctl device resync r0 --node beta"},
		{name: "what a verify found, mended", node: up, change: func(d *device.Status, p *device.PeerStatus) { p.Verified = &device.Verified{Differ: 4096} }, want: "ok"},

		{name: "a disk that is outdated here", node: up, change: func(d *device.Status, p *device.PeerStatus) { d.Disk = replication.Outdated },
			want: "degraded|device r0: the disk is Outdated" + why},
		{name: "a disk that failed", node: up, change: func(d *device.Status, p *device.PeerStatus) {
			d.Disk, d.Detached, d.LastError = replication.Diskless, true, "write: input/output error"
		}, want: "degraded|device r0: the disk failed: write: input/output error" + why},
		{name: "a disk that was detached", node: up, change: func(d *device.Status, p *device.PeerStatus) { d.Disk, d.Detached = replication.Diskless, true },
			want: "degraded|device r0: the disk is detached -> lockstepctl device attach r0"},

		{name: "no quorum, in front", node: down, change: func(d *device.Status, p *device.PeerStatus) { d.Quorum, p.Connected = lost, false },
			want: "failed|device r0: no quorum: 1 of 3 disks in reach, 2 needed" + why + "|node beta: down -> lockstepctl node why beta"},
		{name: "suspended for want of quorum", node: up, change: func(d *device.Status, p *device.PeerStatus) { d.Quorum, d.Suspended = lost, true },
			want: "failed|device r0: I/O is suspended: 1 of 3 disks in reach, 2 needed" + why},
		{name: "suspended for a group's sake", node: up, change: func(d *device.Status, p *device.PeerStatus) { d.Suspended, d.Stalled = true, "r1" },
			want: "failed|device r0: I/O is suspended: that of r1, of the same group, is" + why},
		{name: "suspended in doubt", node: up, change: func(d *device.Status, p *device.PeerStatus) { d.Suspended, d.InDoubt = true, true },
			want: "degraded|device r0: I/O is suspended: too few peers are certain to take this node for alive" + why},
		{name: "suspended for a moment", node: up, change: func(d *device.Status, p *device.PeerStatus) { d.Suspended = true },
			want: "degraded|device r0: I/O is suspended: for a moment" + why},

		{name: "no monitor any more", node: up, monitor: true,
			want: "degraded|monitor: gone: a crash would not be followed by a restart -> lockstepctl restart brings another; clients do not notice"},
		{name: "a file with faults", node: up, config: errors.New("f:1:1: a\nf:2:1: b\nf:3:1: c\nf:4:1: d\nf:5:1: e"),
			want: "degraded|configuration: not applied: f:1:1: a; f:2:1: b; f:3:1: c; and 2 more -> mend the file, then: lockstepctl config check; lockstepctl config reload"},
		{name: "a file that needs a restart", node: up, config: fmt.Errorf("reload: %w", &reload.RefusedError{
			Changes: []config.Change{{Key: "cluster.name", Op: config.Changed, Old: "a", New: "b", How: config.Daemon, File: "lockstep.toml"}}, Restart: true}),
			want: "degraded|configuration: not applied: lockstep.toml: cluster.name: a → b (needs-restart) -> restart the daemon to apply all, or apply the rest: lockstepctl config reload --partial"},
		{name: "a file that asks for what cannot be", node: up, config: &reload.RefusedError{
			Changes: []config.Change{{Key: "device.r0.size", Op: config.Changed, Old: "2GiB", New: "1GiB", How: config.Refused, Why: "it does not shrink", File: "lockstep.toml"}}},
			want: "degraded|configuration: not applied: lockstep.toml: device.r0.size: 2GiB → 1GiB (refused: it does not shrink) -> take it back in the file, or see: lockstepctl config diff"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := device.Status{Name: "r0", Disk: replication.UpToDate, Quorum: quorate,
				Peers: []device.PeerStatus{{Node: "beta", Connected: true, Disk: replication.UpToDate, Repl: replication.Established}}}
			if tt.change != nil {
				tt.change(&d, &d.Peers[0])
			}
			got, ps := health([]api.Node{tt.node}, []device.Status{d}, tt.config, tt.monitor)
			for _, p := range ps {
				got += fmt.Sprintf("|%s: %s -> %s", p.Subject, p.What, p.Do)
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", strings.ReplaceAll(got, "|", "\n     "), strings.ReplaceAll(tt.want, "|", "\n     "))
			}
		})
	}
}

// TestEveryReasonIsWords: the codes end where nodeState thinks they do.
func TestEveryReasonIsWords(t *testing.T) {
	for c := messenger.ReasonClosed; !strings.HasPrefix(c.String(), "reason("); c++ {
		r := messenger.Reason{Code: c, Text: "words"}
		if got := nodeState(api.Node{State: "down", LastError: r.String()}); got != "down: words" {
			t.Errorf("%v: %q", r, got)
		}
	}
}
