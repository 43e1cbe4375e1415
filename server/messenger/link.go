package messenger

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/rpc/reconnect"
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// link is one of the two links of a session, across its connections.
type link struct {
	s    *Session
	kind wire.Link

	// received is the last frame of the stream that was taken in; told is the
	// last one of which some frame that was queued for the peer spoke.
	received atomic.Uint64
	told     atomic.Uint64

	// busy is set while the reader handles what it has read: what waits in the
	// socket meanwhile counts as heard. waiting is how much waited when last
	// looked at.
	busy    atomic.Bool
	waiting atomic.Int64

	sentBytes, sentFrames atomic.Uint64
	recvBytes, recvFrames atomic.Uint64
	throttled             atomic.Uint64 // times that the reader waited for memory
	relieved              atomic.Uint64 // times that a reader was kept by a disk, and another went on
	queued                atomic.Int64

	// mu guards what follows. No system call is made while it is held.
	mu     sync.Mutex
	idle   sync.Cond // st.writing became false
	st     *stream   // nil while the link is cut
	q      queue
	urgent urgent
	arena  arena
	signs  *signer // nil where frames are not signed; set before the session is up
	epoch  uint64  // connectSeq of st
	closed bool
	// A frame of the meta link whose ack will show when the peer was spoken to;
	// pings alone would not do, for other frames take their place.
	sample   uint64 // its number; 0: none
	sampleAt cluster.Instant

	// checks is the reader's, as signs is the sender's.
	checks *signer

	// Of the peer's goroutine.
	connectSeq uint64
	dialing    bool
	held       *stream // admitted, waiting for the other link
	heldFrom   uint64  // what the peer had received, for held
	downSince  time.Time
	hungUp     bool           // the last connection ended as that of a dying process does
	fsm        *reconnect.FSM // counts the failures since the link last worked for a while
	retryAt    time.Time      // when a dial is due, if the link is cut or doubted
	dialledAt  time.Time      // the last dial began
	attachedAt time.Time
	progress   uint64 // received at the last attach
	barren     int    // connections in a row that ended on a protocol fault without progress
}

// urgent is what goes ahead of everything queued, once for all requests.
type urgent struct {
	ping    bool
	promise cluster.Promise
	pong    bool
	echo    uint64
	ack     bool
	bye     *wire.GoodbyeMsg
	hints   [][]byte // payloads of NodeMsg
}

func (u *urgent) any() bool {
	return u.ping || u.pong || u.ack || u.bye != nil || len(u.hints) > 0
}

func newLink(s *Session, kind wire.Link) *link {
	l := &link{s: s, kind: kind, fsm: newFSM(minRedial, maxBackoff)}
	l.idle.L = &l.mu
	return l
}

// enqueue puts one frame into the stream. sum says that h.CRC is the payload's
// checksum already.
func (l *link) enqueue(h *wire.Header, payload []byte, buf *block.Buf, sum bool) {
	s := l.s
	if !sum {
		h.CRC = wire.Checksum(payload)
	}
	h.Version, h.Len = s.version, uint32(len(payload))
	var own *block.Buf // a copy too big for the arena, made outside the lock
	if buf == nil && len(payload) > arenaMax {
		own = s.p.m.dataPool.Get()
		payload, buf = own.B[:copy(own.B, payload)], own
	} else if buf != nil {
		buf.Retain()
	}
	if !l.push(h, payload, buf) {
		if buf != nil {
			buf.Release()
		}
	}
}

// push queues the frame, and reports false if the link is closed.
func (l *link) push(h *wire.Header, payload []byte, buf *block.Buf) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if buf == nil && len(payload) > 0 {
		payload, buf = l.arena.copy(payload)
	}
	h.Seq = l.q.nextSeq()
	l.s.stampAcks(h)
	if l.signs != nil {
		h.Flags |= wire.FlagMAC
	}
	if l.kind == wire.Meta && l.sample == 0 {
		l.sample, l.sampleAt = h.Seq, l.s.p.m.leases.Now()
	}
	l.q.push(h, payload, buf, l.signs)
	l.queued.Store(l.q.bytes)
	if lim := l.s.limit[l.kind]; l.q.bytes > lim.bytes || l.q.frames() > lim.frames {
		l.s.overflow(l.kind)
	} else if l.q.bytes > l.s.p.m.opt.MaxQueuedAll/(2*maxNodes) {
		l.s.p.m.boundAll()
	}
	return true
}

// maxRounds is how many system calls a flusher makes for others before it
// passes the right to write to the writer goroutine: a reader that flushes has
// its own socket to attend to.
const maxRounds = 8

// Flush implements block.Flusher.
func (l *link) Flush(*block.Batch) { l.flush(maxRounds) }

// flush sends what is queued as far as the socket takes it, in so many system
// calls at most; the rest is the writer goroutine's. If somebody is writing
// already, he takes ours along.
func (l *link) flush(rounds int) {
	l.mu.Lock()
	st := l.st
	if st == nil || st.writing || st.err != nil || !l.pendingLocked() {
		l.mu.Unlock()
		return
	}
	st.writing = true
	if st.raw == nil {
		l.pass(st)
		l.mu.Unlock()
		return
	}
	l.drain(st, rounds)
}

// pass gives the right to write to the writer goroutine, or back where that
// has ended. Called with mu held.
func (l *link) pass(st *stream) {
	if st.gone {
		st.writing = false
		l.idle.Broadcast()
		return
	}
	st.wake <- struct{}{} // never blocks: there is one right, and the channel holds it
}

func (l *link) pendingLocked() bool {
	return l.q.next < l.q.tail || len(l.q.urgent) > 0 || l.urgent.any()
}

// untilEmpty as the number of rounds is the writer goroutine's: it waits for
// the socket rather than pass the right on.
const untilEmpty = 0

// drain writes until nothing is left to write. It is called with mu held and
// with the right to write on st, and returns without either; the right passes
// to the writer goroutine if the socket is full, or after so many rounds.
func (l *link) drain(st *stream, rounds int) {
	block := rounds == untilEmpty
	for done := 0; l.st == st && st.err == nil; done++ {
		l.buildUrgent()
		if st.segs = l.q.gather(st.segs[:0]); len(st.segs) == 0 {
			break
		}
		if !block && done == rounds {
			l.pass(st)
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		n, err := st.write(block)
		l.mu.Lock()
		if n > 0 {
			l.wrote(st, n)
		}
		if errors.Is(err, errAgain) {
			l.pass(st)
			l.mu.Unlock()
			return
		}
		if err != nil {
			st.err = fmt.Errorf("sending: %w", err)
			// The reader reports the error, when it has read what the peer said last.
			time.AfterFunc(goodbyeTime, func() { st.close(true) })
		}
	}
	clear(st.segs)
	st.writing = false
	l.idle.Broadcast()
	l.mu.Unlock()
}

// wrote accounts for n bytes that the socket took. Called with mu held.
func (l *link) wrote(st *stream, n int) {
	l.sentBytes.Add(uint64(n))
	if l.st != st {
		return
	}
	frames := l.q.advance(n)
	l.sentFrames.Add(uint64(frames))
	l.queued.Store(l.q.bytes)
	if frames > 0 && l.kind == wire.Meta {
		l.s.sentMeta.Store(int64(l.s.p.m.clock()))
	}
}

// writer is the goroutine that waits for a full socket.
func (l *link) writer(st *stream) {
	for {
		select {
		case <-st.closed:
			l.retire(st)
			return
		case <-st.wake:
			l.mu.Lock()
			l.drain(st, untilEmpty)
		}
	}
}

// retire ends the writer goroutine's part. The right to write ends with it, if
// it has been passed.
func (l *link) retire(st *stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st.gone = true
	select {
	case <-st.wake:
		st.writing = false
		l.idle.Broadcast()
	default:
	}
}

// buildUrgent encodes the frames that were asked for ahead of the queue,
// unless earlier ones are still on their way. Called with mu held, by whoever
// has the right to write.
func (l *link) buildUrgent() {
	u := &l.urgent
	if len(l.q.urgent) > 0 || !u.any() {
		return
	}
	if u.ping {
		p := u.promise
		l.s.sentMeta.Store(int64(l.s.p.m.clock()))
		now := l.s.p.m.leases.Now()
		l.s.lease.Asked(now, p.Tick)
		l.appendUrgent(wire.Ping, nil, uint64(now), uint64(p.Tick.Milliseconds()), uint64(p.Pings))
	}
	if u.pong {
		l.appendUrgent(wire.Pong, nil, u.echo, 0, 0)
	}
	for _, p := range u.hints {
		l.appendUrgent(wire.NodeMsg, p, 0, 0, 0)
	}
	if u.bye != nil {
		l.appendUrgent(wire.Goodbye, u.bye.Append(nil), 0, 0, 0)
	} else if u.ack && !u.ping && !u.pong && len(u.hints) == 0 {
		l.appendUrgent(wire.SessAck, nil, 0, 0, 0)
	}
	*u = urgent{}
}

func (l *link) appendUrgent(t wire.Type, payload []byte, a, b, c uint64) {
	h := wire.Header{Version: l.s.version, Type: t, Len: uint32(len(payload)), Arg: [3]uint64{a, b, c}, CRC: wire.Checksum(payload)}
	l.s.stampAcks(&h)
	var raw [wire.HeaderSize]byte
	if l.signs == nil {
		h.Put(raw[:])
		l.q.urgent = append(append(l.q.urgent, raw[:]...), payload...)
		return
	}
	h.Flags |= wire.FlagMAC
	h.Put(raw[:])
	var mac [wire.FrameMACSize]byte
	l.signs.sum(mac[:], raw[:], payload, l.epoch)
	l.q.urgent = append(append(append(l.q.urgent, raw[:]...), payload...), mac[:]...)
}

// hurry asks for urgent frames and sends them.
func (l *link) hurry(ask func(u *urgent)) {
	l.mu.Lock()
	if !l.closed && l.st != nil {
		ask(&l.urgent)
	}
	l.mu.Unlock()
	l.flush(1)
}

// attach gives the link a connection to a peer that has every frame up to
// received, and starts its goroutines. Called by the peer's goroutine.
func (l *link) attach(st *stream, received uint64) error {
	promise := l.s.p.m.mon.Promise()
	l.mu.Lock()
	if err := l.q.resume(received); err != nil {
		l.mu.Unlock()
		return err
	}
	// What acks an earlier connection lost is said again; and the answer to a
	// ping tells at once how far the peer is away, and begins the lease.
	l.urgent = urgent{}
	if l.kind == wire.Meta {
		l.urgent = urgent{ack: true, ping: true, promise: promise}
	}
	l.st, l.epoch = st, l.connectSeq
	l.queued.Store(l.q.bytes)
	l.mu.Unlock()
	l.hungUp, l.downSince, l.progress, l.attachedAt = false, time.Time{}, l.received.Load(), time.Now()
	l.fsm.ConnectSucceeded(l.attachedAt)
	st.done.Go(func() { l.writer(st) })
	st.done.Add(1) // until the last of those who read it is done
	go l.newReading(st, l.connectSeq).run(false)
	l.flush(maxRounds)
	return nil
}

// detach closes the link's connection, if it has one, and returns when nobody
// reads or writes it any more. Called by the peer's goroutine.
func (l *link) detach(hard bool) {
	l.mu.Lock()
	st := l.st
	l.st = nil
	l.mu.Unlock()
	if st == nil {
		return
	}
	st.close(hard)
	st.done.Wait()
	l.mu.Lock()
	for st.writing {
		l.idle.Wait()
	}
	l.mu.Unlock()
}

// seal refuses everything from now on.
func (l *link) seal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

// discard drops what is queued.
func (l *link) discard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.q.discard()
	l.queued.Store(0)
	l.arena.close()
}

// ack takes note of what the peer has.
func (l *link) ack(seq uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	err := l.q.ack(seq)
	l.queued.Store(l.q.bytes)
	if err == nil && l.sample > 0 && seq >= l.sample {
		l.s.lease.Answered(l.sampleAt)
		l.sample = 0
	}
	return err
}

// arenaMax is the longest payload that is copied into the arena rather than
// into a buffer of its own.
const (
	arenaMax  = 16 << 10
	arenaSize = metaSlab
)

// arena is where payloads are copied whose owner keeps no buffer. Copies lie
// side by side in a slab; each holds it until it is acked.
type arena struct {
	pool *block.Pool
	buf  *block.Buf
	used int
}

func (a *arena) copy(p []byte) ([]byte, *block.Buf) {
	if a.buf != nil && a.buf.Sole() {
		a.used = 0
	}
	if a.buf == nil || a.used+len(p) > len(a.buf.B) {
		a.close()
		a.buf, a.used = a.pool.Get(), 0
	}
	dst := a.buf.B[a.used : a.used+len(p) : a.used+len(p)]
	copy(dst, p)
	a.used += len(p)
	a.buf.Retain()
	return dst, a.buf
}

func (a *arena) close() {
	if a.buf != nil {
		a.buf.Release()
		a.buf = nil
	}
}
