package device

import (
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// Whose changes are discarded is decided between two nodes. Where there are more, a
// policy, or administrators, may have each of three discard its own for the next; if all
// began at once no disk would be complete any more. Where the generations in force are a
// chain that cannot be between generations: every node takes the same one of two disks for
// the later. It can be within one, where who is the source depends on who is primary, has
// received more, or was restarted, and so on when that was asked. Where it can be, a disk
// becomes a mixture only when its source has said that it stays complete until then. There
// is one primary then, and it does; who takes its data lets nobody's waiting keep it.
//
// A disk that another relies on does not pull, and does not ask. One that has asked lets
// only a node of a lower id rely on it. So nobody waits in a circle: each of those that
// wait for an answer waits for a lower id, and of those that have one, each waits for a
// lower id that relies on it.

// stay is what two nodes that have agreed have said about it to each other. It is void
// with the agreement.
type stay struct {
	no, peerNo uint32 // of the agreement, see handshake
	asked      bool   // this node has asked the peer to stay complete,
	stays      bool   // and it has said so
	wanted     bool   // the peer has asked this node,
	relied     bool   // which has said so
}

// stayLocked is what was said in the agreement that is in force.
func (p *peer) stayLocked() *stay {
	if p.stay.no != p.hs.no || p.stay.peerNo != p.hs.peerNo {
		p.stay = stay{no: p.hs.no, peerNo: p.hs.peerNo}
	}
	return &p.stay
}

// reliedLocked reports whether a peer counts on this disk to stay complete.
func (d *Device) reliedLocked() bool {
	for _, p := range d.peers {
		if p != nil && p.agreed && p.stayLocked().relied && (p.repl == replication.SyncSource || p.repl == replication.PausedSyncS) {
			return true
		}
	}
	return false
}

// staysLocked reports whether a source stays complete until this disk has all of it, and
// asks it if that is not known.
func (d *Device) staysLocked(p *peer, b *block.Batch) bool {
	if d.orderedLocked() && (!p.decision.Even || p.role == replication.Primary) || !p.speaks(wire.FeatureStay) || mutate.Is(mutate.PullUnasked) {
		return true
	}
	st := p.stayLocked()
	if d.reliedLocked() {
		return false
	}
	if !st.asked {
		st.asked = true
		d.sendStayLocked(wire.StayReq, p, b)
	}
	return st.stays
}

func (d *Device) sendStayLocked(t wire.Type, p *peer, b *block.Batch) {
	p.send(wire.Header{Type: t, Arg: [3]uint64{uint64(p.hs.no), uint64(p.hs.peerNo)}}, nil, nil, b)
}

// stayReceivedLocked takes a peer's request, or its answer.
func (d *Device) stayReceivedLocked(p *peer, h *wire.Header, b *block.Batch) {
	if !p.agreed || h.Arg[0] != uint64(p.hs.peerNo) || h.Arg[1] != uint64(p.hs.no) {
		return
	}
	if h.Type == wire.StayReq {
		p.stayLocked().wanted = true
		d.answerStaysLocked(b)
		return
	}
	p.stayLocked().stays = true
	d.chooseSourceLocked(b)
}

// answerStaysLocked answers who wants this disk to stay complete, as soon as it does.
func (d *Device) answerStaysLocked(b *block.Batch) {
	if d.disk == nil || d.dstat < replication.Outdated || d.pullingLocked() {
		return
	}
	lowest := replication.MaxNodes // of those that may rely on it
	for _, p := range d.peers {
		if p != nil && p.agreed && p.stayLocked().asked && d.mayPullLocked(p) {
			lowest = d.cfg.Self
		}
	}
	for _, p := range d.peers {
		if p == nil || !p.agreed {
			continue
		}
		source := p.repl == replication.PausedSyncS || p.repl == replication.SyncSource
		if st := p.stayLocked(); source && st.wanted && !st.relied && p.id < lowest {
			st.relied = true
			d.sendStayLocked(wire.StayAck, p, b)
		}
	}
}
