package simtest

import (
	"bytes"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAReadThatAPeerWasToAnswerGoesOn: a primary without a disk has asked for data
// when it loses all that have it. What it was asked for waits for one of them, or
// fails, as a read that comes a moment later does.
func TestAReadThatAPeerWasToAnswerGoesOn(t *testing.T) {
	for _, fails := range []bool{false, true} {
		o := three()
		o.Diskless, o.FailIO = replication.Of(0), fails
		bubble(t, o, func(t *testing.T, c *Cluster) {
			const length = 3 * mib // which is asked for in parts
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', length)
			c.Stall(1, 0, wire.Data)
			c.Stall(2, 0, wire.Data)
			got := make([]byte, length)
			read := c.Nodes[0].burst([]*block.Request{{Op: block.Read, Len: length, Data: got}})
			time.Sleep(time.Second)
			c.Isolate(0)
			time.Sleep(time.Second)
			if fails {
				if len(read) == 0 {
					t.Fatalf("a read waits, and is to fail\n%s", c.Describe())
				}
				if r := <-read; !errors.Is(r.Err, block.ErrIO) {
					t.Fatal(r.Err)
				}
				return
			}
			if len(read) > 0 {
				t.Fatalf("answered by nobody: %v\n%s", (<-read).Err, c.Describe())
			}
			c.Rejoin(0)
			if r := <-read; r.Err != nil || !bytes.Equal(got, bytes.Repeat([]byte{'a'}, length)) {
				t.Fatalf("read %x…, %v", got[:4], r.Err)
			}
		})
	}
}

// TestAReadOfABadBlockGoesOn: the primary's disk cannot read a block, and the peer
// that is to give it is lost, or the disk fails altogether before the peer is asked.
// The read is made again, when and where it can be.
func TestAReadOfABadBlockGoesOn(t *testing.T) {
	for _, lost := range []bool{false, true} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			time.Sleep(5 * time.Second) // it is stable everywhere
			n, got := c.Nodes[0], make([]byte, 4096)
			n.Disk.Spoil(block.Extent{Len: 4096})
			var write chan *block.Request
			if lost {
				c.Stall(1, 0, wire.Data)
				c.Stall(2, 0, wire.Data)
			} else {
				c.Stall(1, 0, wire.Meta) // a change keeps the range, then
				write = n.asked(0, 'a')
			}
			read := n.burst([]*block.Request{{Op: block.Read, Len: 4096, Data: got}})
			time.Sleep(time.Second)
			if lost {
				c.Isolate(0)
			} else {
				n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
				n.asked(mib, 'b')
			}
			time.Sleep(time.Second)
			if len(read) > 0 {
				t.Fatalf("answered too early: %v\n%s", (<-read).Err, c.Describe())
			}
			if lost {
				c.Rejoin(0)
			} else {
				c.Flow(1, 0, wire.Meta)
				<-write
			}
			if r := <-read; r.Err != nil || got[0] != 'a' {
				t.Fatalf("read %q, %v\n%s", got[0], r.Err, c.Describe())
			}
		})
	}
}
