package simtest

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

// begin submits a request and returns it with what tells of its answer.
func (n *Node) begin(op block.Op, off int64, data []byte) (*block.Request, completion) {
	w := make(completion, 1)
	r := &block.Request{Op: op, Off: off, Data: data, Len: int64(len(data)), Done: w}
	b := &block.Batch{}
	n.Dev.Submit(r, b)
	b.Finish()
	return r, w
}

func answered(w completion) bool { return len(w) > 0 }

// TestNothingIsAnsweredInDoubt: a primary that does not know whether its peers
// still take it for alive answers neither reads nor changes, and goes on with
// both when it hears of them again. Without quorum there is nothing to doubt.
func TestNothingIsAnsweredInDoubt(t *testing.T) {
	for _, c := range []struct {
		name     string
		protocol replication.Protocol
		quorum   replication.QuorumPolicy
		doubts   bool
	}{
		{"C", replication.ProtocolC, majority(), true},
		{"A", replication.ProtocolA, majority(), true},
		{"quorum off", replication.ProtocolC, replication.QuorumPolicy{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, Options{Nodes: 3, Protocol: c.protocol, Quorum: c.quorum}, func(t *testing.T, cl *Cluster) {
				cl.mustSync(t, 0)
				cl.mustPromote(t, 0)
				cl.mustWrite(t, 0, 0, 'a', 4096)
				cl.Doubt(0, true)
				got := make([]byte, 4096)
				read, rd := cl.Nodes[0].begin(block.Read, 0, got)
				write, wr := cl.Nodes[0].begin(block.Write, 4096, bytes.Repeat([]byte{'b'}, 4096))
				_, fl := cl.Nodes[0].begin(block.Flush, 0, nil)
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if answered(rd) == c.doubts || answered(wr) == c.doubts || answered(fl) == c.doubts {
					t.Fatalf("read answered: %t, write: %t, flush: %t\n%s", answered(rd), answered(wr), answered(fl), cl.Describe())
				}
				if st := cl.Nodes[0].Dev.Status(); st.Suspended != c.doubts || st.InDoubt != c.doubts {
					t.Errorf("suspended: %t, in doubt: %t", st.Suspended, st.InDoubt)
				}
				if why := strings.Join(cl.Nodes[0].Dev.Why().Because, "\n"); strings.Contains(why, "answers wait") != c.doubts {
					t.Errorf("it explains: %s", why)
				}
				cl.Doubt(0, false)
				time.Sleep(time.Second)
				synctest.Wait()
				if !answered(rd) || !answered(wr) || !answered(fl) || read.Err != nil || write.Err != nil || got[0] != 'a' {
					t.Fatalf("afterwards: read %t %v %q, write %t %v, flush %t", answered(rd), read.Err, got[:1], answered(wr), write.Err, answered(fl))
				}
			})
		})
	}
}

// TestEnoughLeasesWillDo: one of two peers is no longer certain.
func TestEnoughLeasesWillDo(t *testing.T) {
	bubble(t, Options{Nodes: 3, Quorum: majority()}, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		for _, s := range c.sessionsOf(0) {
			s.lapsed.Store(s.to.ID == 1)
		}
		c.mustWrite(t, 0, 0, 'a', 4096)
		if err := c.Nodes[0].Do(timeout(t, time.Second), block.Read, 0, 0, make([]byte, 4096), 0); err != nil {
			t.Error(err)
		}
	})
}

// TestAPrimaryThatWasGivenUpServesNothing: the others give the primary up
// while it sleeps, and another takes over. What is asked of the old one when
// it wakes, before it has noticed anything, is never answered with success.
func TestAPrimaryThatWasGivenUpServesNothing(t *testing.T) {
	for _, protocol := range []replication.Protocol{replication.ProtocolA, replication.ProtocolB, replication.ProtocolC} {
		for _, failIO := range []bool{false, true} {
			bubble(t, Options{Nodes: 3, Protocol: protocol, Quorum: majority(), FailIO: failIO}, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t) // a new disk has no say before it has seen the others
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 4096)
				c.GiveUp(0)
				c.mustPromote(t, 1)
				c.mustWrite(t, 1, 0, 'b', 4096)
				got := make([]byte, 4096)
				read, rd := c.Nodes[0].begin(block.Read, 0, got)
				write, wr := c.Nodes[0].begin(block.Write, 8192, bytes.Repeat([]byte{'c'}, 4096))
				time.Sleep(10 * time.Second)
				synctest.Wait()
				c.Learn(0)
				time.Sleep(20 * time.Second)
				synctest.Wait()
				for what, x := range map[string]struct {
					r *block.Request
					w completion
				}{"read": {read, rd}, "write": {write, wr}} {
					if !answered(x.w) || x.r.Err == nil || !errors.Is(x.r.Err, block.ErrDropped) && !failIO {
						t.Errorf("protocol %c: the %s was answered %t with %v\n%s", protocol, what, answered(x.w), x.r.Err, c.Describe())
					}
				}
				c.mustSync(t, 1)
				c.mustEqual(t)
			})
		}
	}
}
