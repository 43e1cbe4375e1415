package cmd_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
)

// pending is a request that was sent over a connection of its own, and not
// answered yet.
type pending struct {
	what string
	conn net.Conn
	want int // bytes of data in the answer
}

// ask sends a request to a node and returns at once: the request waits in the
// node's socket if it has to.
func ask(t *testing.T, c *nbdio.Conn, what string, cmd uint16, off int64, length int, data []byte) pending {
	t.Helper()
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, 77)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	if _, err := c.Raw().Write(append(b, data...)); err != nil {
		t.Fatal(err)
	}
	p := pending{what: what, conn: c.Raw()}
	if cmd == 0 {
		p.want = length
	}
	return p
}

// answer reads the answer; ok is false for an error, or the connection's end.
func (p pending) answer(t *testing.T) (data []byte, ok bool) {
	t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var h [16]byte
	if _, err := io.ReadFull(p.conn, h[:]); err != nil {
		if ne, late := err.(net.Error); late && ne.Timeout() {
			t.Errorf("the %s is not answered at all", p.what)
		}
		return nil, false
	}
	if binary.BigEndian.Uint32(h[4:]) != 0 {
		return nil, false
	}
	data = make([]byte, p.want)
	_, err := io.ReadFull(p.conn, data)
	return data, err == nil
}

// TestPrimaryThatSleptAnswersNothing stops the primary for more than twice the
// tick time. Another takes over and writes. What clients asked of the old one
// meanwhile, and just before it stopped, is in its sockets when it goes on, so that it
// comes to it before anything has told it that it was away: it must neither read old
// data to them nor acknowledge what they change, or have flushed. Then it is no
// primary, and says so.
func TestPrimaryThatSleptAnswersNothing(t *testing.T) {
	t.Parallel()
	cfg := quick()
	c := start(t, cfg)
	alpha, beta := c.Node("alpha"), c.Node("beta")
	const blocks, size = 8, 4096
	before, after, lost := bytes.Repeat([]byte{'a'}, size), bytes.Repeat([]byte{'b'}, size), bytes.Repeat([]byte{'x'}, size)
	var clients []*nbdio.Conn
	for i := range int64(2 * blocks) {
		conn := open(t, alpha)
		if _, err := conn.WriteAt(before, i*size); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, conn)
	}
	more := []struct {
		what   string
		cmd    uint16
		length int
		conn   *nbdio.Conn
	}{{"flush", 3, 0, open(t, alpha)}, {"trim", 4, size, open(t, alpha)}, {"write of zeroes", 6, size, open(t, alpha)}}
	alpha.Stop()
	stopped := time.Now()
	until(t, beta, "alpha is down, and has slept for twice the tick time", func(s cluster.Status) bool {
		return cluster.PeerDown("alpha")(s) && time.Since(stopped) > 2*cfg.TickTime
	})
	conn := open(t, beta)
	for i := range int64(2 * blocks) {
		if _, err := conn.WriteAt(after, i*size); err != nil {
			t.Fatal(err)
		}
	}
	var reads, writes []pending
	for i := range blocks {
		reads = append(reads, ask(t, clients[i], "read", 0, int64(i)*size, size, nil))
		writes = append(writes, ask(t, clients[blocks+i], "write", 1, int64(blocks+i)*size, size, lost))
	}
	for i, m := range more {
		writes = append(writes, ask(t, m.conn, m.what, m.cmd, int64(blocks+i)*int64(min(m.length, 1))*size, m.length, nil))
	}
	alpha.Cont()
	for i, p := range reads {
		if data, ok := p.answer(t); ok && !bytes.Equal(data, after) {
			t.Errorf("read %d is answered from before alpha slept: %q", i, data[:1])
		}
	}
	for i, p := range writes {
		if _, ok := p.answer(t); ok {
			t.Errorf("request %d, a %s, is acknowledged", i, p.what)
		}
	}
	until(t, alpha, "alpha knows that it is not primary any more", func(s cluster.Status) bool {
		return s.Device("r0").Role == "secondary"
	})
	inSync(t, c, "r0")
	got := make([]byte, size)
	for i := range int64(2 * blocks) {
		if _, err := conn.ReadAt(got, i*size); err != nil || !bytes.Equal(got, after) {
			t.Errorf("block %d is %q at beta: %v", i, got[:1], err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
}
