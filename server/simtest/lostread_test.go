package simtest

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
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
