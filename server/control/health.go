package control

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/replication"
)

// health sums up what is wrong and says what to do about it: what keeps data
// from being served first.
func health(nodes []api.Node, devs []device.Status, config error, monitorGone bool) (string, []api.Problem) {
	var ps []api.Problem
	up := make(map[string]bool)
	for _, n := range nodes {
		if up[n.Name] = n.State == "up"; !up[n.Name] {
			ps = append(ps, api.Problem{Subject: "node " + n.Name, What: nodeState(n), Do: "lockstepctl node why " + n.Name})
		}
	}
	for i := range devs {
		ps = append(ps, deviceProblems(&devs[i], up)...)
	}
	if config != nil {
		ps = append(ps, configProblem(config))
	}
	if monitorGone {
		ps = append(ps, api.Problem{Subject: "monitor", What: "gone: a crash would not be followed by a restart", Do: "lockstepctl restart brings another; clients do not notice"})
	}
	slices.SortStableFunc(ps, func(a, b api.Problem) int {
		switch {
		case a.Failed == b.Failed:
			return 0
		case a.Failed:
			return -1
		}
		return 1
	})
	switch {
	case len(ps) == 0:
		return "ok", nil
	case ps[0].Failed:
		return "failed", ps
	}
	return "degraded", ps
}

// nodeState is the state of a node that is not up and, in words, what of. The
// code that the reason begins with is for programs, which find it in the
// node's last_error.
func nodeState(n api.Node) string {
	why := n.LastError
	for c := messenger.ReasonClosed; c <= messenger.ReasonRebound; c++ {
		if words, ok := strings.CutPrefix(why, c.String()+": "); ok {
			why = words
			break
		}
	}
	if why == "" {
		return n.State
	}
	return n.State + ": " + why
}

// deviceProblems is what is wrong with a device: with itself, then with its
// copies on peers. That a peer is not up is a problem of the node's.
func deviceProblems(st *device.Status, up map[string]bool) (ps []api.Problem) {
	why := "lockstepctl device why " + st.Name
	add := func(do, format string, args ...any) *api.Problem {
		ps = append(ps, api.Problem{Subject: "device " + st.Name, What: fmt.Sprintf(format, args...), Do: do})
		return &ps[len(ps)-1]
	}
	switch {
	case st.Suspended:
		add(why, "I/O is suspended: %s", suspendedBy(st)).Failed = !st.Quorum.Quorate || st.Stalled != ""
	case !st.Quorum.Quorate:
		add(why, "no quorum: %s", st.Quorum.Why).Failed = true
	}
	switch {
	case st.Detached && st.LastError != "":
		add(why, "the disk failed: %s", st.LastError)
	case st.Detached:
		add("lockstepctl device attach "+st.Name, "the disk is detached")
	case st.Disk == replication.Consistent && slices.ContainsFunc(st.Peers, split):
		// Whose data counts is what the split brain is about.
	case st.Disk != replication.UpToDate && st.Disk != replication.Diskless && !resynced(st):
		add(why, "the disk is %v", st.Disk)
	}
	if len(st.Differs) > 0 {
		add(why, "configured otherwise than %s, in what nodes must agree on", strings.Join(st.Differs, ", "))
	}
	for i := range st.Peers {
		p := &st.Peers[i]
		if do, what := peerProblem(st.Name, p); what != "" {
			add(do, "%s", what)
		} else if !p.Connected && up[p.Node] {
			add(why, "not replicated with %s, which is up", p.Node)
		}
	}
	return ps
}

// suspendedBy is why a device's I/O is suspended.
func suspendedBy(st *device.Status) string {
	switch {
	case !st.Quorum.Quorate:
		return st.Quorum.Why
	case st.Stalled != "":
		return "that of " + st.Stalled + ", of the same group, is"
	case st.InDoubt:
		return "too few peers are certain to take this node for alive"
	case len(st.Unfenced) > 0:
		return strings.Join(st.Unfenced, ", ") + ": lost, and not fenced yet"
	case st.Few:
		return "too few disks get what is written, until their resync has begun"
	case st.Disk != replication.UpToDate:
		return "no disk with current data is in reach"
	}
	return "for a moment"
}

// resynced reports whether the local disk is getting what it lacks.
func resynced(st *device.Status) bool {
	return slices.ContainsFunc(st.Peers, func(p device.PeerStatus) bool {
		return p.Repl == replication.SyncTarget || p.Repl == replication.PausedSyncT
	})
}

// split reports whether both sides were written since they were last in sync.
func split(p device.PeerStatus) bool {
	return p.Refused != "" && p.Decision.Action == replication.SplitBrain
}

// peerProblem is what is wrong with a device's copy on a peer, or between the
// two, and what to do; "" where nothing is.
func peerProblem(name string, p *device.PeerStatus) (do, what string) {
	why, amount := "lockstepctl device why "+name, block.Amount(p.OutOfSync)
	switch {
	case split(*p):
		return why, fmt.Sprintf("split brain with %s: %s", p.Node, p.Refused)
	case p.Refused != "":
		return why, fmt.Sprintf("not replicated with %s: %s", p.Node, p.Refused)
	case !p.Connected:
		return "", ""
	case p.Held != "" && p.OutOfSync > 0:
		return "lockstepctl device resync " + name, fmt.Sprintf("the resync with %s is paused %s, %s out of sync", p.Node, p.Held, amount)
	case p.Repl == replication.SyncSource:
		return waitFor(name), fmt.Sprintf("%s is being resynced, %s out of sync", p.Node, amount)
	case p.Repl == replication.SyncTarget:
		return waitFor(name), fmt.Sprintf("the disk is being resynced from %s, %s out of sync", p.Node, amount)
	case p.Repl == replication.PausedSyncS || p.Repl == replication.PausedSyncT:
		return why, fmt.Sprintf("the resync with %s waits, %s out of sync", p.Node, amount)
	case p.Disk < replication.UpToDate && p.Disk != replication.Diskless:
		return why, fmt.Sprintf("the disk of %s is %v, %s out of sync", p.Node, p.Disk, amount)
	case p.Repl == replication.Established && p.OutOfSync > 0 && p.Verified != nil && p.Verified.Differ > 0:
		return "lockstepctl device resync " + name + " --node " + p.Node, fmt.Sprintf("a verify found that %s differs in %s", p.Node, amount)
	}
	return "", ""
}

func waitFor(name string) string { return "lockstepctl device wait " + name + " synced" }

// faultsTold is how many faults of a configuration a problem names.
const faultsTold = 3

// configProblem is that the configuration file as it is now is not in effect.
func configProblem(err error) api.Problem {
	faults, do := strings.Split(err.Error(), "\n"), "mend the file, then: lockstepctl config check; lockstepctl config reload"
	if r, ok := errors.AsType[*reload.RefusedError](err); ok {
		faults = faults[:0]
		for _, c := range r.Changes {
			faults = append(faults, c.Where()+": "+c.String())
		}
		do = "take it back in the file, or see: lockstepctl config diff"
		if r.Restart {
			do = "restart the daemon to apply all, or apply the rest: lockstepctl config reload --partial"
		}
	}
	if n := len(faults) - faultsTold; n > 0 {
		faults = append(faults[:faultsTold], fmt.Sprintf("and %d more", n))
	}
	return api.Problem{Subject: "configuration", What: "not applied: " + strings.Join(faults, "; "), Do: do}
}
