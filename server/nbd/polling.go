package nbd

import (
	"runtime"
	"time"
)

// polling is how a reader waits without sleeping, where its client sends one
// request at a time. Such a client waits for every wake-up on the way of its
// request; so the reader stays awake, brings on the request that is under way,
// and then looks out for the next one.
type polling struct {
	request, answer spinner

	sock  poller      // nil: it cannot be done
	still func() bool // conn.still: a closure per request would be an allocation
	until time.Time   // when the present poll is in vain
	ends  bool        // it ends when nothing is under way
	n     int         // what it brought
	err   error
}

func (c *conn) initPolling() {
	p := &c.polling
	p.request.limit, p.answer.limit = c.limits.Spin, c.limits.Patience
	p.still = c.still
	// A single processor is needed by whoever answers.
	if runtime.GOMAXPROCS(0) > 1 {
		p.sock, _ = c.sock.(poller)
	}
}

// poll reads what arrives within a moment, if it is worth waiting for.
func (c *conn) poll() (int, error) {
	p := &c.polling
	if !c.calm || p.sock == nil {
		return 0, nil
	}
	p.n, p.err = 0, nil
	if c.inflight() > 0 && !c.awaitAnswer() {
		return p.n, p.err
	}
	if limit := p.request.next(); limit > 0 {
		p.ends = false
		p.until = time.Now().Add(limit)
		for c.still() {
		}
		p.request.polled(p.n == 0 && p.err == nil)
	}
	return p.n, p.err
}

// awaitAnswer waits for the end of what is under way, and reports whether it
// came before the next request and before patience ended.
func (c *conn) awaitAnswer() bool {
	p := &c.polling
	limit := p.answer.next()
	if limit == 0 {
		return false
	}
	p.until, p.ends = time.Now().Add(limit), true
	c.srv.helper.Help(p.still)
	answered := c.inflight() == 0
	p.answer.polled(!answered && p.n == 0 && p.err == nil)
	return answered && p.n == 0 && p.err == nil
}

// still polls once, and reports whether to go on.
func (c *conn) still() bool {
	p := &c.polling
	if p.n, p.err = p.sock.poll(c); p.n > 0 || p.err != nil {
		return false
	}
	if p.ends && c.inflight() == 0 {
		return false
	}
	return time.Now().Before(p.until)
}
