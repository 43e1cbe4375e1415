package rpc

import (
	"fmt"
	"sync"

	"github.com/lockstepd/lockstep/rpc/frame"
)

// batchReply collects the replies of a batch.
type batchReply struct {
	mu    sync.Mutex
	left  int    // replies to come, and one while the batch is being read; guarded by mu
	reply []byte // guarded by mu
}

// beginBatch takes a batch apart. Its bytes are copied: they must outlast the
// next read.
func (c *conn) beginBatch(raw []byte) {
	raw = append([]byte(nil), raw...)
	for e := range frame.Elements(raw) {
		if c.batch = append(c.batch, e); len(c.batch) > c.s.lim.Batch {
			c.batch = nil
			c.reject(nil, nil, fmt.Sprintf("a batch may hold at most %d requests", c.s.lim.Batch))
			return
		}
	}
	if len(c.batch) == 0 {
		c.reject(nil, nil, "the batch is empty")
		return
	}
	c.collecting = &batchReply{left: 1}
}

// endBatch lets go of a batch that was delivered whole; what has been answered
// by now, or all of it later, goes out.
func (c *conn) endBatch() {
	if c.collecting == nil {
		return
	}
	if msg := c.collecting.add(nil); msg != nil {
		c.out.push(append(msg, '\n'))
	}
	c.collecting = nil
}

// expect counts a reply that will come. A request on its own has no batch.
func (b *batchReply) expect() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left++
}

// add adds a reply, or nothing, and returns the whole when it was the last.
func (b *batchReply) add(msg []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if msg != nil {
		sep := byte(',')
		if b.reply == nil {
			sep = '['
		}
		b.reply = append(append(b.reply, sep), msg...)
	}
	if b.left--; b.left > 0 || b.reply == nil {
		return nil
	}
	return append(b.reply, ']')
}
