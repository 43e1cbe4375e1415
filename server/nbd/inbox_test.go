package nbd

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
)

// TestTheInboxKeepsWhatIsShared plays a stream of numbered records through an
// inbox, with holders that let go in any order, and asserts that nobody's
// bytes change while they are held and that no more slabs are in use than may
// be.
func TestTheInboxKeepsWhatIsShared(t *testing.T) {
	type held struct {
		buf  *block.Buf
		data []byte
		seed uint32
	}
	for seed := range uint64(4) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		pool := block.NewPool(slabSize)
		in := inbox{pool: pool, limit: 3}
		var holders []held
		var sent, seen uint32
		var stream []byte // what the other side still has to send
		for range 200 {
			for len(stream) < slabSize {
				stream = appendRecord(stream, sent, rnd.IntN(200<<10))
				sent++
			}
			need := 8
			if b := in.unread(); len(b) >= 8 {
				need = 8 + int(binary.LittleEndian.Uint32(b[4:]))
			}
			room := in.space(need)
			if in.head+need > len(in.cur.B) {
				t.Fatalf("no room for %d bytes in one piece", need)
			}
			n := copy(room[:1+rnd.IntN(len(room))], stream)
			stream = stream[n:]
			in.tail += n
			for {
				b := in.unread()
				if len(b) < 8 || len(b) < 8+int(binary.LittleEndian.Uint32(b[4:])) {
					break
				}
				data := b[8 : 8+binary.LittleEndian.Uint32(b[4:])]
				checkRecord(t, binary.LittleEndian.Uint32(b), seen, data)
				if buf := in.share(); buf != nil && rnd.IntN(3) == 0 {
					holders = append(holders, held{buf, data, seen})
				} else if buf != nil {
					buf.Release()
				}
				in.head += 8 + len(data)
				seen++
			}
			if in.head == in.tail && rnd.IntN(4) == 0 {
				in.rest()
			}
			for len(holders) > 0 && rnd.IntN(3) == 0 {
				i := rnd.IntN(len(holders))
				checkRecord(t, holders[i].seed, holders[i].seed, holders[i].data)
				holders[i].buf.Release()
				holders[i] = holders[len(holders)-1]
				holders = holders[:len(holders)-1]
			}
			if pool.Out() > 4 {
				t.Fatalf("%d slabs in use", pool.Out())
			}
		}
		in.close()
		for _, h := range holders {
			checkRecord(t, h.seed, h.seed, h.data)
			h.buf.Release()
		}
		if pool.Out() != 0 {
			t.Fatalf("%d slabs were not given back", pool.Out())
		}
	}
}

func appendRecord(b []byte, number uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, number)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	for i := range n {
		b = append(b, byte(number)+byte(i))
	}
	return b
}

func checkRecord(t *testing.T, number, want uint32, data []byte) {
	t.Helper()
	if number != want {
		t.Fatalf("record %d where %d was due", number, want)
	}
	for i, v := range data {
		if v != byte(number)+byte(i) {
			t.Fatalf("record %d was changed at %d", number, i)
		}
	}
}

func TestBuffersComeInClasses(t *testing.T) {
	b := newBufs()
	for _, tc := range []struct{ n, want int }{
		{0, 4 << 10}, {1, 4 << 10}, {4096, 4 << 10}, {4097, 8 << 10}, {1 << 20, 1 << 20}, {1<<20 + 1, 2 << 20}, {32 << 20, 32 << 20},
	} {
		buf := b.get(tc.n)
		if len(buf.B) != tc.want {
			t.Errorf("for %d bytes: a buffer of %d, want %d", tc.n, len(buf.B), tc.want)
		}
		buf.Release()
	}
	if b.out() != 0 {
		t.Errorf("%d buffers in use", b.out())
	}
}

func TestExtentsAreBroughtIntoForm(t *testing.T) {
	hole, data := Extent{Hole: true, Zero: true}, Extent{}
	at := func(e Extent, off, n int64) Extent { e.Off, e.Len = off, n; return e }
	for _, tc := range []struct {
		name  string
		found []Extent
		most  int
		want  []uint32 // length and state, in turn
	}{
		{"nothing is data", nil, 10, []uint32{8192, 0}},
		{"cut to the request", []Extent{at(hole, 0, 1<<30)}, 10, []uint32{8192, 3}},
		{"neighbours alike are one", []Extent{at(data, 4096, 4096), at(data, 8192, 100)}, 10, []uint32{4196, 0}},
		{"a gap ends it", []Extent{at(hole, 4096, 100), at(data, 5000, 100)}, 10, []uint32{100, 3}},
		{"a gap at the start", []Extent{at(hole, 5000, 100)}, 10, []uint32{8192, 0}},
		{"empty ones are skipped", []Extent{at(hole, 4096, 0), at(hole, 4096, -5), at(hole, 4096, 10)}, 10, []uint32{10, 3}},
		{"no more than asked for", []Extent{at(hole, 4096, 10), at(data, 4106, 10)}, 1, []uint32{10, 3}},
	} {
		c := &conn{srv: &Server{bufs: newBufs()}}
		o := &op{c: c, Request: block.Request{Off: 4096, Len: 8192}}
		c.encodeExtents(o, tc.found, tc.most)
		want := []byte{0, 0, 0, allocationID}
		for _, v := range tc.want {
			want = binary.BigEndian.AppendUint32(want, v)
		}
		if string(o.Data) != string(want) {
			t.Errorf("%s: %x, want %x", tc.name, o.Data, want)
		}
	}
}
