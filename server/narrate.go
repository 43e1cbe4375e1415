package server

import (
	"strings"
	"sync/atomic"

	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/replication"
)

// narrator passes a device's events on, and adds the ones that handlers and
// scripts wait for where the device speaks in more general terms. The device
// calls it with its lock held, so one call at a time.
type narrator struct {
	device   string
	suspends atomic.Bool // without quorum, requests wait
	publish  func(events.Event) uint64

	primary, noQuorum, suspended bool
}

func (n *narrator) tell(ev device.Event) {
	n.publish(events.Event{Type: ev.Type, Device: n.device, Node: ev.Peer, Text: ev.Text, Data: ev.Data})
	if t := n.more(ev); t != "" {
		n.publish(events.Event{Type: t, Device: n.device, Node: ev.Peer, Text: ev.Text, Data: ev.Data})
	}
	n.watchSuspension(ev.Text)
}

// more is the narrower type of an event, if it has one.
func (n *narrator) more(ev device.Event) string {
	switch ev.Type {
	case events.Quorum:
		n.noQuorum = strings.HasPrefix(ev.Text, "quorum lost")
		if n.noQuorum {
			return events.QuorumLost
		}
		return events.QuorumGained
	case events.Role:
		if ev.Peer == "" {
			n.primary = strings.HasSuffix(ev.Text, " "+replication.Primary.String())
		}
	case events.Resync:
		if strings.Contains(ev.Text, "is complete") {
			return events.ResyncDone
		}
	case events.Disk:
		if ev.Peer != "" && behind(ev.Text) {
			return events.OutOfSync
		}
	}
	return ""
}

// behind reports whether a disk event says that the disk has missed something.
func behind(text string) bool {
	_, state, ok := strings.Cut(text, " -> ")
	return ok && (state == replication.Outdated.String() || state == replication.Inconsistent.String())
}

// watchSuspension tells when the clients' requests begin to wait, and when
// they go on.
func (n *narrator) watchSuspension(why string) {
	now := n.suspends.Load() && n.primary && n.noQuorum
	if now == n.suspended {
		return
	}
	n.suspended = now
	ev := events.Event{Type: events.Resumed, Device: n.device, Text: "requests are answered again: " + why}
	if now {
		ev.Type, ev.Text = events.Suspended, "requests wait: "+why
	}
	n.publish(ev)
}
