package messenger

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

func pushNumber(q *queue, n uint64, payload []byte, buf *block.Buf, sign *signer) {
	h := wire.Header{Version: 1, Type: wire.Write, Len: uint32(len(payload)), Seq: q.nextSeq(), Arg: [3]uint64{n}, CRC: wire.Checksum(payload)}
	if sign != nil {
		h.Flags |= wire.FlagMAC
	}
	q.push(&h, payload, buf, sign)
}

// TestQueueSendsEveryFrameOnceInOrder drives the queue as a link does, with
// partial writes, acks, cuts and urgent frames at random, and parses what
// comes out with the receiver that links use.
func TestQueueSendsEveryFrameOnceInOrder(t *testing.T) {
	for seed := range uint64(200) {
		for _, sign := range []*signer{nil, newSigner(testSecret, &Session{p: &peer{m: &Messenger{}}}, wire.Data, true)} {
			rng := rand.New(rand.NewPCG(seed, 1))
			runQueue(t, rng, sign)
			if t.Failed() {
				t.Fatalf("seed %d, signed %t", seed, sign != nil)
			}
		}
	}
}

func runQueue(t *testing.T, rng *rand.Rand, sign *signer) {
	t.Helper()
	const frames = 300
	var q queue
	pool := block.NewPool(8192)
	in := receiver{pool: block.NewPool(dataSlab)}
	defer in.close()
	var segs [][]byte
	sent, got, urgent := uint64(0), uint64(0), 0
	for rounds := 0; got < frames; rounds++ {
		if rounds > 100_000 {
			t.Fatalf("only %d of %d frames arrived", got, frames)
		}
		switch r := rng.IntN(10); {
		case r < 4 && sent < frames:
			sent++
			buf := pool.Get()
			payload := buf.B[:rng.IntN(3)*rng.IntN(2000)]
			for i := range payload {
				payload[i] = byte(sent)
			}
			pushNumber(&q, sent, payload, buf, sign)
		case r == 4 && len(q.urgent) == 0:
			var raw [wire.HeaderSize]byte
			(&wire.Header{Version: 1, Type: wire.Ping}).Put(raw[:])
			q.urgent = append(q.urgent, raw[:]...)
		case r == 5:
			if err := q.ack(rng.Uint64N(got + 1)); err != nil {
				t.Fatal(err)
			}
		case r == 6 && rng.IntN(5) == 0: // a cut
			in.close()
			if err := q.resume(got); err != nil {
				t.Fatal(err)
			}
		default:
			segs = q.gather(segs[:0])
			n := take(segs, &in, rng)
			q.advance(n)
			got, urgent = drainFrames(t, &in, got, urgent, sign)
		}
	}
	if err := q.ack(got); err != nil {
		t.Fatal(err)
	}
	if q.frames() != 0 || q.bytes != 0 || pool.Out() != 0 {
		t.Errorf("after all was acked %d frames, %d bytes, %d buffers are kept", q.frames(), q.bytes, pool.Out())
	}
}

// take is a socket that takes a part of what it is given.
func take(segs [][]byte, in *receiver, rng *rand.Rand) int {
	all := bytes.Join(segs, nil)
	if len(all) == 0 {
		return 0
	}
	n := 1 + rng.IntN(len(all))
	return copyIn(in, all[:n])
}

func copyIn(in *receiver, p []byte) int {
	n := copy(in.space(), p)
	in.w += n
	return n
}

func drainFrames(t *testing.T, in *receiver, got uint64, urgent int, sign *signer) (uint64, int) {
	t.Helper()
	for {
		var f wire.Frame
		ok, err := in.next(&f, 1)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return got, urgent
		}
		if f.Seq == 0 {
			urgent++
			continue
		}
		got++
		if f.Seq != got || f.Arg[0] != got {
			t.Fatalf("frame %d has sequence %d and number %d", got, f.Seq, f.Arg[0])
		}
		if len(f.Payload) > 0 && f.Payload[0] != byte(got) {
			t.Fatalf("frame %d has another frame's payload", got)
		}
		if sign != nil {
			if err := sign.check(in.mac, in.header, f.Payload, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestQueueRefusesAcksOfWhatWasNeverSent(t *testing.T) {
	var q queue
	for i := range uint64(10) {
		pushNumber(&q, i, nil, nil, nil)
	}
	if q.ack(1) == nil {
		t.Error("an ack before anything was sent is taken")
	}
	q.gather(nil)
	q.advance(4 * wire.HeaderSize)
	if err := q.ack(4); err != nil {
		t.Error(err)
	}
	if q.ack(11) == nil || q.resume(11) == nil {
		t.Error("an ack of what does not exist is believed")
	}
	// What a new connection's opening says may be older than the last ack.
	if err := q.resume(3); err != nil || q.acked != 4 {
		t.Errorf("%v, acked %d", err, q.acked)
	}
	q.gather(nil)
	if err := q.resume(7); err != nil { // handed to the kernel, and received before the cut
		t.Error(err)
	}
}

func TestUnackedYieldsExactlyWhatTheOwnerMustSendAgain(t *testing.T) {
	var q queue
	for i := range uint64(10) {
		pushNumber(&q, i+1, []byte{byte(i)}, nil, nil)
	}
	q.gather(nil)
	if err := q.ack(6); err != nil {
		t.Fatal(err)
	}
	next := uint64(7)
	for h, p := range q.unacked() {
		if h.Arg[0] != next || len(p) != 1 || p[0] != byte(next-1) {
			t.Errorf("frame %d, payload %v; want %d", h.Arg[0], p, next)
		}
		next++
	}
	if next != 11 {
		t.Errorf("ended before frame %d", next)
	}
}

func TestHeadersWithoutPayloadsTravelInOneSegment(t *testing.T) {
	var q queue
	for i := range uint64(60) {
		pushNumber(&q, i, nil, nil, nil)
	}
	if segs := q.gather(nil); len(segs) != 1 || len(segs[0]) != 60*wire.HeaderSize {
		t.Errorf("%d segments", len(segs))
	}
}

func FuzzReceiver(f *testing.F) {
	var q queue
	for i := range uint64(3) {
		pushNumber(&q, i, pattern(int(i)*100), nil, nil)
	}
	f.Add(bytes.Join(q.gather(nil), nil), uint16(7))
	f.Fuzz(func(t *testing.T, stream []byte, step uint16) {
		in := receiver{pool: block.NewPool(4096 + wire.HeaderSize + 16)}
		defer in.close()
		for len(stream) > 0 {
			n := min(len(stream), int(step)+1)
			n = copyIn(&in, stream[:n])
			if n == 0 {
				t.Fatal("no room to read into")
			}
			stream = stream[n:]
			for {
				var f wire.Frame
				ok, err := in.next(&f, 1)
				if err != nil {
					return
				}
				if !ok {
					break
				}
				if int(f.Len) != len(f.Payload) {
					t.Fatalf("a payload of %d bytes in a frame of %d", len(f.Payload), f.Len)
				}
			}
		}
	})
}
