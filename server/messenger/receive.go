package messenger

import (
	"fmt"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// Sizes of the slabs into which links are read. One holds the largest frame of
// its link, and more.
const (
	dataSlab = 1<<20 + 64<<10
	metaSlab = 256 << 10
	// minRead is the least room that is worth a read; below that the rest of a
	// slab is given up.
	minRead = 32 << 10
)

// receiver cuts the bytes of a link into frames, in place.
type receiver struct {
	pool *block.Pool
	buf  *block.Buf
	r, w int // what was read and not parsed yet is buf.B[r:w]
	need int // length of the frame at r, as far as known

	header, mac []byte // of the frame that next returned, as they came
}

// wants reports whether space may need another slab.
func (v *receiver) wants() bool {
	return v.buf == nil || !v.buf.Sole() && (v.full() || v.r == v.w && len(v.buf.B)-v.w < minRead)
}

// full reports whether the frame that began cannot end within the slab.
func (v *receiver) full() bool { return v.r+max(v.need, wire.HeaderSize) > len(v.buf.B) }

// space returns where to read to. It never returns nothing.
func (v *receiver) space() []byte {
	switch {
	case v.buf == nil:
		v.buf, v.r, v.w = v.pool.Get(), 0, 0
	case v.r == v.w && v.buf.Sole():
		v.r, v.w = 0, 0
	case v.full(), v.r == v.w && len(v.buf.B)-v.w < minRead:
		v.move()
	}
	return v.buf.B[v.w:]
}

// move takes the incomplete frame at the slab's end to the front of a slab
// that nobody else holds.
func (v *receiver) move() {
	old, rest := v.buf, v.buf.B[v.r:v.w]
	if !old.Sole() {
		v.buf = v.pool.Get()
		defer old.Release()
	}
	v.r, v.w = 0, copy(v.buf.B, rest)
}

// next parses the next complete frame, if there is one. The frame lies in the
// slab until the next call of space.
func (v *receiver) next(f *wire.Frame, version uint8) (bool, error) {
	if v.w-v.r < wire.HeaderSize {
		v.need = wire.HeaderSize
		return false, nil
	}
	// The header of a long frame is decoded again for each piece of it that
	// arrives; that is rarer than keeping it would be costly.
	if err := f.Header.Decode(v.buf.B[v.r:], version); err != nil {
		return false, err
	}
	if v.need = frameSize(&f.Header); v.need > len(v.buf.B) {
		return false, fmt.Errorf("%w (%v on a link for small frames)", wire.ErrLength, f.Type)
	}
	if v.w-v.r < v.need {
		return false, nil
	}
	at := v.r + wire.HeaderSize
	f.Payload = v.buf.B[at : at+int(f.Len) : at+int(f.Len)]
	f.Buf = v.buf
	v.header, v.mac = v.buf.B[v.r:at], v.buf.B[at+int(f.Len):v.r+v.need]
	v.r += v.need
	v.need = 0
	return true, f.CheckPayload(f.Payload)
}

// frameSize is how many bytes the frame takes on the wire.
func frameSize(h *wire.Header) int {
	n := wire.HeaderSize + int(h.Len)
	if h.Flags&wire.FlagMAC != 0 {
		n += wire.FrameMACSize
	}
	return n
}

func (v *receiver) close() {
	if v.buf != nil {
		v.buf.Release()
		v.buf = nil
	}
}
