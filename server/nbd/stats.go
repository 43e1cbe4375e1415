package nbd

import (
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// commands is how many commands are counted apart, by their number.
const commands = int(proto.CmdBlockStatus) + 1

// CommandStats counts the requests of one command.
type CommandStats struct {
	Requests uint64
	Errors   uint64
	Bytes    uint64 // that requests spoke of
	Nanos    uint64 // spent on them, from read to reply, in sum
	Latency  Latency
}

// Stats counts what passed, by command: Read, Write and the others of the
// protocol.
type Stats struct {
	Read, Write, Flush, Trim, Cache, WriteZeroes, BlockStatus CommandStats
	BytesIn, BytesOut                                         uint64 // on the wire, in the transmission phase
}

// ConnStats describes an open connection.
type ConnStats struct {
	Client   ClientInfo
	Export   string
	Since    time.Time
	Inflight int // requests read and not yet answered
	Stats    Stats
}

// ExportStats sums up what all connections to an export did, open or not.
type ExportStats struct {
	Export string
	Open   int
	Stats  Stats
}

// ServerStats is a snapshot of a server.
type ServerStats struct {
	Connections []ConnStats   // those past the handshake, by id
	Exports     []ExportStats // every export ever opened, by name
	Handshaking int           // connections that have not opened an export yet
	Accepted    uint64        // connections, ever
	Refused     uint64        // of them over the limit
	Buffers     int64         // slabs and buffers in use
}

// counters is Stats while it grows. Its one writer at a time is a
// connection's sender (or reader, for in); anybody reads.
type counters struct {
	cmds    [commands]cmdCounters
	in, out atomic.Uint64
}

type cmdCounters struct {
	errors, bytes, nanos atomic.Uint64
	latency              [LatencyBuckets]atomic.Uint64 // as in Latency
}

func (c *counters) sent(n int)     { c.out.Add(uint64(n)) }
func (c *counters) received(n int) { c.in.Add(uint64(n)) }

// done counts o, whose reply goes out now.
func (c *counters) done(o *op, now int64) {
	if int(o.cmd) >= commands {
		return
	}
	k := &c.cmds[o.cmd]
	took := uint64(max(now-o.arrived, 0))
	k.latency[latencyBucket(took)].Add(1)
	k.nanos.Add(took)
	if o.errno != proto.OK {
		k.errors.Add(1)
	} else if o.asked > 0 {
		k.bytes.Add(uint64(o.asked))
	}
}

func (c *counters) snapshot() Stats {
	s := Stats{BytesIn: c.in.Load(), BytesOut: c.out.Load()}
	for i := range c.cmds {
		if to := s.command(proto.Cmd(i)); to != nil {
			*to = c.cmds[i].snapshot()
		}
	}
	return s
}

func (k *cmdCounters) snapshot() CommandStats {
	s := CommandStats{Errors: k.errors.Load(), Bytes: k.bytes.Load(), Nanos: k.nanos.Load()}
	for i := range k.latency {
		s.Latency[i] = k.latency[i].Load()
		s.Requests += s.Latency[i]
	}
	return s
}

func (s *Stats) command(c proto.Cmd) *CommandStats {
	switch c {
	case proto.CmdRead:
		return &s.Read
	case proto.CmdWrite:
		return &s.Write
	case proto.CmdFlush:
		return &s.Flush
	case proto.CmdTrim:
		return &s.Trim
	case proto.CmdCache:
		return &s.Cache
	case proto.CmdWriteZeroes:
		return &s.WriteZeroes
	case proto.CmdBlockStatus:
		return &s.BlockStatus
	}
	return nil
}

// add sums up.
func (s *Stats) add(t *Stats) {
	s.BytesIn += t.BytesIn
	s.BytesOut += t.BytesOut
	for i := range commands {
		a, b := s.command(proto.Cmd(i)), t.command(proto.Cmd(i))
		if a == nil {
			continue
		}
		a.Requests += b.Requests
		a.Errors += b.Errors
		a.Bytes += b.Bytes
		a.Nanos += b.Nanos
		for j := range a.Latency {
			a.Latency[j] += b.Latency[j]
		}
	}
}
