package messenger

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// Tuning of acknowledgements that no other frame carries.
const (
	ackEvery = 256 << 10             // bytes
	ackDelay = 50 * time.Millisecond // after which an ack goes out by itself
)

// maxBarren is how many connections of a link in a row may end on a fault in
// the protocol without a new frame having come, before the session is given
// up: a frame that arrives damaged each time would otherwise be sent for ever.
const maxBarren = 5

// Session is one life of the connection with a peer. It outlives cuts, but
// neither of the two processes.
type Session struct {
	id      uint64
	p       *peer
	ctx     context.Context // ends with the session
	cancel  context.CancelFunc
	links   [2]*link
	version uint8
	feats   uint64
	local   uint64 // incarnation of this node, as the handshake told it
	remote  uint64 // of the peer
	limit   [2]limit

	// What the handshake agreed on; of the peer's goroutine.
	dialer    bool
	cookie    uint64 // chosen by the dialer
	answer    uint64 // chosen by the acceptor; 0: not known yet
	globalSeq uint64
	promise   cluster.Promise // of the peer, at the handshake
	up        bool
	began     time.Time
	upAt      time.Time
	relinking bool // both links are being dialled anew on purpose
	doubtful  bool // the peer has missed pings: the links may be dead, though nothing says so

	dead     atomic.Bool
	ending   atomic.Bool  // somebody asked for the end already
	heard    atomic.Int64 // Instant of the last bytes received
	sentMeta atomic.Int64 // Instant of the last bytes sent on the meta link
	rtt      atomic.Int64
	lease    cluster.Lease // what the peer's answers bind it to
	ackTimer *time.Timer
	ackArmed atomic.Bool
}

func (p *peer) newSession(cookie, local uint64) *Session {
	m := p.m
	ctx, cancel := context.WithCancel(p.ctx)
	s := &Session{
		id: m.lastSession.Add(1), p: p, ctx: ctx, cancel: cancel,
		version: wire.MaxVersion, local: local, cookie: cookie, began: time.Now(),
		limit: [2]limit{
			wire.Data: {m.opt.MaxDataQueue, m.opt.MaxQueuedFrames},
			wire.Meta: {m.opt.MaxMetaQueue, m.opt.MaxQueuedFrames},
		},
	}
	s.links[wire.Data], s.links[wire.Meta] = newLink(s, wire.Data), newLink(s, wire.Meta)
	for _, l := range s.links {
		l.arena.pool = m.metaPool
	}
	s.ackTimer = time.AfterFunc(time.Hour, s.ackDue)
	s.ackTimer.Stop()
	return s
}

// PeerID is the id of the node at the other end.
func (s *Session) PeerID() int { return s.p.id }

// PeerName is the name of the node at the other end.
func (s *Session) PeerName() string { return s.p.name() }

// ID tells the session from all others of this process's life.
func (s *Session) ID() uint64 { return s.id }

// Incarnation returns the numbers of the two processes' lives.
func (s *Session) Incarnation() (local, remote uint64) { return s.local, s.remote }

// Version is the negotiated version of the protocol.
func (s *Session) Version() uint8 { return s.version }

// Features are the feature bits that both sides have.
func (s *Session) Features() uint64 { return s.feats }

// Queued is how many bytes are kept for the peer on a link: not sent yet, or
// not acked yet.
func (s *Session) Queued(l wire.Link) int64 { return s.links[l].queued.Load() }

// RTT is the last measured time of a ping's way there and back; 0: none yet.
func (s *Session) RTT() time.Duration { return time.Duration(s.rtt.Load()) }

// LeaseLeft is for how much longer the peer is certain to take this node for
// alive, by what it answered and this node's clock; nothing or less: it may
// have given this node up. It takes no lock, and is right from the first
// moment after a pause of this process.
func (s *Session) LeaseLeft() time.Duration {
	if s.dead.Load() {
		return 0
	}
	return s.lease.Left(s.p.m.leases.Now())
}

// Alive reports whether the session has not ended. It may be stale at once.
func (s *Session) Alive() bool { return !s.dead.Load() }

// Send queues one frame on the link that its type belongs to, and fills in
// Version, Seq, acks, Len and CRC. It never blocks. Frames of one link arrive
// in the order in which they were sent.
//
// buf owns payload's memory and is retained until the peer has acked the
// frame; without buf, payload is copied. The link is touched in b and sent
// when b finishes; without b it is sent at once. After the end of the session
// Send does nothing.
func (s *Session) Send(h *wire.Header, payload []byte, buf *block.Buf, b *block.Batch) {
	s.send(h, payload, buf, b, false)
}

// SendSummed is Send for a payload whose checksum is in h.CRC already, because
// it was received with it or sent to another peer before.
func (s *Session) SendSummed(h *wire.Header, payload []byte, buf *block.Buf, b *block.Batch) {
	s.send(h, payload, buf, b, true)
}

func (s *Session) send(h *wire.Header, payload []byte, buf *block.Buf, b *block.Batch, sum bool) {
	if s.dead.Load() {
		return
	}
	if most, ok := h.Type.MaxPayload(); !ok || len(payload) > int(most) {
		s.end(Reason{ReasonEnded, fmt.Sprintf("this node tried to send a %v frame of %d bytes", h.Type, len(payload))})
		return
	}
	l := s.links[h.Type.Link()]
	l.enqueue(h, payload, buf, sum)
	if b != nil {
		b.Touch(l)
	} else {
		l.flush(maxRounds)
	}
}

// Bounds of hints.
const (
	maxHints = 16
	maxHint  = 1024
)

// SendHint sends a NodeMsg whose loss does no harm, such as a load figure. It
// goes ahead of what is queued, outside the stream: it is not kept, not sent
// again after a cut, and dropped if the link is cut or too many wait. It
// reports whether it was taken.
func (s *Session) SendHint(m *wire.NodeMsgBody) (taken bool) {
	if s.dead.Load() || len(m.Body) > maxHint {
		return false
	}
	s.links[wire.Meta].hurry(func(u *urgent) {
		if taken = len(u.hints) < maxHints; taken {
			u.hints = append(u.hints, m.Append(nil))
		}
	})
	return taken
}

// Unacked yields the frames of a link that the peer has not acked, oldest
// first. It is for use within SessionDown: nothing is sent then any more, and
// nothing is dropped before SessionDown returns.
func (s *Session) Unacked(l wire.Link) iter.Seq2[*wire.Header, []byte] {
	return s.links[l].q.unacked()
}

// End ends the session because its owner wants it to. It returns at once and
// may be called from anywhere.
func (s *Session) End(text string) { s.end(Reason{ReasonEnded, text}) }

// end asks the peer's goroutine to end the session; the first reason counts.
func (s *Session) end(r Reason) {
	if s.ending.CompareAndSwap(false, true) {
		s.p.post(func() { s.p.endSession(s, r) })
	}
}

// stampAcks fills in what this side has received.
func (s *Session) stampAcks(h *wire.Header) {
	d, m := s.links[wire.Data], s.links[wire.Meta]
	h.AckData, h.AckMeta = d.received.Load(), m.received.Load()
	if d.told.Load() < h.AckData {
		d.told.Store(h.AckData)
	}
	if m.told.Load() < h.AckMeta {
		m.told.Store(h.AckMeta)
	}
}

// Activity implements cluster.Peer. Where a reader is kept from its socket, by
// a disk that hangs or by memory that is all in use, the peer is heard all the
// same: by what arrives in the socket.
func (s *Session) Activity() cluster.Activity {
	now := s.p.m.clock()
	for _, l := range s.links {
		if l.busy.Load() && now-cluster.Instant(s.heard.Load()) > quietWhileBusy && l.arrived() {
			s.heard.Store(int64(now))
		}
	}
	return cluster.Activity{Received: cluster.Instant(s.heard.Load()), Sent: cluster.Instant(s.sentMeta.Load())}
}

// quietWhileBusy is the silence from which on a busy link's socket is asked.
const quietWhileBusy = 50 * time.Millisecond

// current is the link's connection; nil while it is cut.
func (l *link) current() *stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st
}

// arrived reports whether more waits in the link's socket than when last asked.
func (l *link) arrived() bool {
	st := l.current()
	if st == nil {
		return false
	}
	n := int64(st.unread())
	return l.waiting.Swap(n) < n
}

// Ping implements cluster.Peer.
func (s *Session) Ping(p cluster.Promise) {
	s.links[wire.Meta].hurry(func(u *urgent) { u.ping, u.promise = true, p })
}

// Silent implements cluster.Peer.
func (s *Session) Silent(d time.Duration) {
	s.end(Reason{ReasonTimeout, fmt.Sprintf("nothing was heard for %v", d.Round(time.Millisecond))})
}

// ackDue sends the acks that nothing else has carried meanwhile.
func (s *Session) ackDue() {
	s.ackArmed.Store(false)
	if s.owesAck() && !s.dead.Load() {
		s.sendAck()
	}
}

func (s *Session) owesAck() bool {
	d, m := s.links[wire.Data], s.links[wire.Meta]
	return d.received.Load() > d.told.Load() || m.received.Load() > m.told.Load()
}

func (s *Session) sendAck() { s.links[wire.Meta].hurry(func(u *urgent) { u.ack = true }) }

// reading is the reading of one connection of a link. One goroutine at a time
// holds it; while that is kept by a disk, the messenger's watch has another go
// on in its place.
type reading struct {
	l       *link
	st      *stream
	in      receiver
	batch   block.Batch
	post    block.Post
	frame   wire.Frame
	epoch   uint64 // the connection's number
	most    int64  // slabs that may be held
	spin    spinning
	acks    [2]uint64 // the highest that the frames of one read carried
	unacked int       // bytes received since an ack was last sent

	// What the last read brought, for whoever goes on with it.
	n      int // bytes
	frames int
	fault  error // with which they ended
}

// newReading begins to read a connection.
func (l *link) newReading(st *stream, epoch uint64) *reading {
	pool := l.s.p.in[l.kind]
	r := &reading{l: l, st: st, epoch: epoch, in: receiver{pool: pool}, most: l.s.p.m.mostHeld(pool.Size())}
	l.s.p.m.watch.Add(&r.post, r)
	if l.kind == wire.Meta && st.raw != nil {
		l.s.p.m.helped.add(r)
	}
	return r
}

// mostHeld is how many slabs of a size may be held of what one link brought.
// Two it takes to go on.
func (m *Messenger) mostHeld(size int) int64 {
	m.mu.Lock()
	links := int64(2 * len(m.peers))
	m.mu.Unlock()
	return max(2, min(m.opt.MaxHeld, m.opt.MaxHeldAll/max(1, links))/int64(size))
}

// errRelieved ends a goroutine in whose place another reads on.
var errRelieved = errors.New("another goroutine reads on")

// run reads, from after what was handled last where the goroutine takes
// another's place, and reports the end of the connection.
func (r *reading) run(instead bool) {
	l, st := r.l, r.st
	p := l.s.p
	err := r.loop(instead)
	if errors.Is(err, errRelieved) {
		p.away[l.kind].Add(-1)
		return
	}
	p.m.helped.remove(r)
	p.m.watch.Remove(&r.post)
	l.busy.Store(false)
	r.in.close()
	l.mu.Lock()
	if st.err != nil {
		err = st.err
	}
	l.mu.Unlock()
	st.close(true)
	p.post(func() { p.linkDown(l, st, err) })
	st.done.Done()
}

// maxAway is how many goroutines of a peer's link may be kept by disks while
// another reads: one for each device whose disk begins to hang, since what
// comes for it from then on is carried out by goroutines of its own. It holds
// across connections and sessions. Beyond it the link is not read meanwhile.
const maxAway = 64

// MayRelieve implements relief.Holder.
func (r *reading) MayRelieve() bool { return r.l.s.p.away[r.l.kind].Load() < maxAway }

// Relieved implements relief.Holder.
func (r *reading) Relieved() {
	r.l.s.p.away[r.l.kind].Add(1)
	r.l.relieved.Add(1)
	go r.run(true)
}

func (r *reading) loop(instead bool) error {
	spin := time.Duration(0)
	for {
		if !instead {
			if err := r.receive(spin); err != nil {
				return err
			}
		}
		instead = false
		if !r.batch.FinishOn(&r.post) {
			return errRelieved
		}
		if r.fault != nil {
			return r.fault
		}
		if err := r.settle(r.n); err != nil {
			return err
		}
		spin = 0
		if r.frames <= 1 && r.n <= smallRead {
			spin = r.spin.next(r.l.s.p.m.spin(r.l.kind))
		}
	}
}

// receive reads what there is and hands on the frames that are complete.
func (r *reading) receive(spin time.Duration) error {
	if !r.batch.AwaitRoom(r.st.closed, func() { r.l.throttled.Add(1) }) {
		return errStopped
	}
	p, err := r.space()
	if err != nil {
		return err
	}
	r.l.busy.Store(false)
	n, err := r.st.read(p, spin)
	if err != nil {
		return err
	}
	if spin > 0 {
		r.spin.ended(r.st.rd.parked)
	}
	if r.n, r.frames = 0, 0; n > 0 && r.fault == nil {
		r.took(n)
	}
	return nil
}

// took handles what n bytes that were read have made complete.
func (r *reading) took(n int) {
	s := r.l.s
	r.l.busy.Store(true)
	r.l.waiting.Store(0)
	r.in.w += n
	s.heard.Store(int64(s.p.m.clock()))
	r.n = n
	r.frames, r.fault = r.handle()
}

// spinning tells whether it is worth to spin. Where a spin ended in parking
// all the same, the next chances are passed up, twice as many each time: on a
// machine without an idle processor spinning only costs.
type spinning struct {
	skip, penalty int
}

// maxPenalty is the most chances that are passed up in a row.
const maxPenalty = 15

// next returns how long to spin for the next read.
func (g *spinning) next(most time.Duration) time.Duration {
	if g.skip > 0 {
		g.skip--
		return 0
	}
	return most
}

// ended takes note of how a spin ended.
func (g *spinning) ended(parked bool) {
	if !parked {
		g.penalty = 0
		return
	}
	g.penalty = min(2*g.penalty+1, maxPenalty)
	g.skip = g.penalty
}

// errStopped ends a reader that waits when its connection is closed.
var errStopped = errors.New("the connection was closed while the reader waited until more could be taken in")

// space is where to read to. While handlers hold as much as they may of what
// this peer sent, the link is not read, and so the peer not heard on it: it
// keeps what it has to send. Other peers, and the meta link, go on.
func (r *reading) space() ([]byte, error) {
	if !r.in.wants() || r.in.pool.Out() < r.most {
		return r.in.space(), nil
	}
	r.l.throttled.Add(1)
	if !r.in.pool.Wait(r.most, r.st.closed) {
		return nil, errStopped
	}
	return r.in.space(), nil
}

// smallRead is the most that one small frame brings. Only after such a read
// is another one likely to come within the time of a spin.
const smallRead = 16 << 10

// handle handles all that is complete.
func (r *reading) handle() (int, error) {
	for n := 0; ; n++ {
		ok, err := r.in.next(&r.frame, r.l.s.version)
		if !ok || err != nil {
			return n, err
		}
		if err := r.verify(&r.frame); err != nil {
			return n, err
		}
		if err := r.one(&r.frame); err != nil {
			return n, err
		}
	}
}

// verify checks the frame's MAC where the session signs.
func (r *reading) verify(f *wire.Frame) error {
	checks := r.l.checks
	if signed := f.Flags&wire.FlagMAC != 0; signed != (checks != nil) {
		return errMAC
	}
	if checks == nil {
		return nil
	}
	connection := r.epoch
	if f.Seq > 0 {
		connection = 0
	}
	f.Flags &^= wire.FlagMAC
	return checks.check(r.in.mac, r.in.header, f.Payload, connection)
}

// one handles one frame.
func (r *reading) one(f *wire.Frame) error {
	l := r.l
	s := l.s
	r.acks[wire.Data] = max(r.acks[wire.Data], f.AckData)
	r.acks[wire.Meta] = max(r.acks[wire.Meta], f.AckMeta)
	l.recvFrames.Add(1)
	if f.Seq == 0 {
		return s.control(l, r.st, f, &r.batch)
	}
	if f.Type.Link() != l.kind || f.Type < wire.TickSet {
		return fmt.Errorf("%w: %v on the %v link", errUnexpected, f.Type, l.kind)
	}
	switch have := l.received.Load(); {
	case f.Seq <= have:
		return nil // sent again after a cut, though it had arrived
	case f.Seq > have+1:
		return fmt.Errorf("%w: frame %d of the %v link came after %d", errGap, f.Seq, l.kind, have)
	}
	// Taken in before it is handled, so that the answers carry its ack.
	l.received.Store(f.Seq)
	if s.dead.Load() {
		return nil
	}
	if f.Type == wire.TickSet {
		s.p.m.tickAsked(s, &f.Header)
		return nil
	}
	s.p.m.opt.Handler.HandleFrame(s, f, &r.batch)
	return nil
}

var (
	errUnexpected = errors.New("frame out of place")
	errGap        = errors.New("frames are missing")
)

// protocolFault reports whether a connection ended because of what came over
// it, rather than because it was cut.
func protocolFault(err error) bool {
	for _, e := range [...]error{errUnexpected, errGap, errAck, errMAC, wire.ErrMagic, wire.ErrVersion, wire.ErrType, wire.ErrFlags, wire.ErrLength, wire.ErrCRC, wire.ErrPayload} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// control handles a frame outside the stream.
func (s *Session) control(l *link, st *stream, f *wire.Frame, b *block.Batch) error {
	if l.kind != wire.Meta {
		return fmt.Errorf("%w: %v outside the stream of the data link", errUnexpected, f.Type)
	}
	switch f.Type {
	case wire.Ping:
		p := cluster.Promise{Tick: time.Duration(min(f.Arg[1], 1<<32)) * time.Millisecond, Pings: int(min(f.Arg[2], 1<<16))}
		s.p.m.mon.Promised(s.p.id, p)
		l.mu.Lock()
		l.urgent.pong, l.urgent.echo = true, f.Arg[0]
		l.mu.Unlock()
		b.Touch(l)
	case wire.Pong:
		asked := cluster.Instant(f.Arg[0])
		if d := s.p.m.leases.Now() - asked; d >= 0 && d < time.Hour {
			s.rtt.Store(max(1, int64(d)))
			s.lease.Answered(asked)
		}
	case wire.SessAck:
	case wire.NodeMsg:
		if !s.dead.Load() {
			s.p.m.opt.Handler.HandleFrame(s, f, b)
		}
	case wire.Goodbye:
		var bye wire.GoodbyeMsg
		if err := bye.Decode(f.Payload); err != nil {
			return err
		}
		s.p.post(func() { s.p.goodbye(s, st, bye) })
	default:
		return fmt.Errorf("%w: %v outside the stream", errUnexpected, f.Type)
	}
	return nil
}

// settle hands the acks of a read's frames to the queues, and sees to it that
// ours go out.
func (r *reading) settle(n int) error {
	s := r.l.s
	r.l.recvBytes.Add(uint64(n))
	for k := range r.acks {
		if seq := r.acks[k]; seq > 0 {
			r.acks[k] = 0
			if err := s.links[k].ack(seq); err != nil {
				return err
			}
		}
	}
	r.unacked += n
	switch {
	case !s.owesAck():
		r.unacked = 0
	case r.unacked > ackEvery:
		r.unacked = 0
		s.sendAck()
	case s.ackArmed.CompareAndSwap(false, true):
		s.ackTimer.Reset(ackDelay)
	}
	return nil
}
