package nbd

import (
	"math/bits"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

const (
	smallestClass = 12 // 4 KiB
	largestClass  = 25 // proto.MaxPayload
)

// bufs hands out buffers in classes of powers of two, from 4 KiB to the
// largest payload. It is shared by all connections of a server.
type bufs struct {
	classes [largestClass - smallestClass + 1]*block.Pool
}

func newBufs() *bufs {
	b := new(bufs)
	for i := range b.classes {
		b.classes[i] = block.NewPool(1 << (i + smallestClass))
	}
	return b
}

// get returns a buffer of at least n bytes, n at most proto.MaxPayload.
func (b *bufs) get(n int) *block.Buf {
	if n > proto.MaxPayload {
		panic("nbd: buffer larger than a payload may be")
	}
	class := bits.Len(uint(max(n, 1)-1)) - smallestClass
	return b.classes[max(class, 0)].Get()
}

// out is how many buffers are held now.
func (b *bufs) out() int64 {
	var n int64
	for _, p := range b.classes {
		n += p.Out()
	}
	return n
}
