package server

import (
	"errors"
	"fmt"
	"strings"
)

// vitals are how a service is, and what it has done; either may be nil.
type vitals struct {
	health func() error
	stats  func() map[string]any
}

// Health is nil, or what is wrong.
func (v vitals) Health() error {
	if v.health == nil {
		return nil
	}
	return v.health()
}

// Stats are the service's figures.
func (v vitals) Stats() map[string]any {
	if v.stats == nil {
		return nil
	}
	return v.stats()
}

// clusterVitals tell of the nodes.
func (e *engine) clusterVitals() vitals {
	count := func() (up int, lost []string) {
		for _, n := range e.msgr.Nodes() {
			if n.State == "up" {
				up++
			} else {
				lost = append(lost, n.Name+" is "+n.State)
			}
		}
		return up, lost
	}
	return vitals{
		health: func() error {
			if _, lost := count(); len(lost) > 0 {
				return errors.New(strings.Join(lost, ", "))
			}
			return nil
		},
		stats: func() map[string]any {
			up, lost := count()
			t := e.msgr.GetTick()
			return map[string]any{"nodes_up": up, "nodes_not_up": len(lost), "tick_time_ms": t.Tick.Milliseconds(), "max_ping_count": t.Pings}
		},
	}
}

// messengerVitals tell of the links to all peers together.
func (e *engine) messengerVitals() vitals {
	return vitals{stats: func() map[string]any {
		var connects, frames, bytes uint64
		var queued, held int64
		for _, n := range e.msgr.Nodes() {
			connects += n.Connects
			frames += n.Data.SentFrames + n.Data.RecvFrames + n.Meta.SentFrames + n.Meta.RecvFrames
			bytes += n.Data.SentBytes + n.Data.RecvBytes + n.Meta.SentBytes + n.Meta.RecvBytes
			queued += n.Data.QueuedBytes + n.Meta.QueuedBytes
			held += n.Data.HeldBytes + n.Meta.HeldBytes
		}
		return map[string]any{"connects": connects, "frames": frames, "bytes": bytes, "queued_bytes": queued, "held_bytes": held}
	}}
}

// configVitals tell whether the file is what holds.
func (e *engine) configVitals() vitals {
	return vitals{
		health: func() error {
			if st := e.conf.Status(); st.Err != nil {
				line, _, _ := strings.Cut(st.Err.Error(), "\n")
				return fmt.Errorf("the file is not applied: %s", line)
			}
			return nil
		},
		stats: func() map[string]any {
			st := e.conf.Status()
			return map[string]any{"revision": st.Revision, "waiting_for_restart": len(st.Pending), "set_by_command": len(st.Overlay)}
		},
	}
}

// controlVitals tell of the commands and who sends them.
func (e *engine) controlVitals() vitals {
	return vitals{stats: func() map[string]any {
		c := e.control.Commands()
		return map[string]any{"connections": c.Connections, "in_progress": c.InProgress, "requests": c.Requests, "failures": c.Failures,
			"timeouts": c.Timeouts, "refused": c.Refused, "notifications": c.Notifications, "dropped": c.Dropped}
	}}
}

// Stats tells of all NBD clients together.
func (s *nbdService) Stats() map[string]any {
	st := s.e.nbd.Stats()
	return map[string]any{"connections": len(st.Connections), "handshaking": st.Handshaking, "accepted": st.Accepted,
		"refused": st.Refused, "buffers": st.Buffers}
}
