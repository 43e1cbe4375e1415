package rpc

import (
	"net"
)

// legacyAhead is how many unixctl requests are read ahead of the one in
// progress. What is beyond stays in the socket.
const legacyAhead = 64

// acceptLegacy queues a unixctl request behind those that came before it.
func (c *conn) acceptLegacy(req *legacyRequest) {
	if !c.answering {
		c.answering = true
		c.handlers.Go(c.answerLegacy)
	}
	c.answered.Add(1)
	select {
	case c.queue <- req:
		return
	default:
	}
	enqueue := func() {
		select {
		case c.queue <- req:
		case <-c.ctx.Done():
			c.answered.Done()
		}
	}
	if _, ok := c.nc.(*net.UnixConn); ok {
		c.watchWhile(enqueue) // nobody reads until there is room, so nobody would see the end
		return
	}
	enqueue()
}

// answerLegacy answers unixctl requests, one after the other, until reading
// has ended, which it does when they are all answered. If one had to be
// answered in its handler's stead, another goroutine has taken over by the time
// the handler returns.
func (c *conn) answerLegacy() {
	for {
		select {
		case req := <-c.queue:
			if !c.answerOne(req) {
				return
			}
		case <-c.ended:
			return
		}
	}
}

// answerOne answers a request and reports whether its handler was in time.
func (c *conn) answerOne(req *legacyRequest) bool {
	if req.fault != "" {
		c.s.stats.malformed.Add(1)
		c.out.push(legacyError(req.id, req.fault, c.asJSON.Load()))
		c.answered.Done()
		return true
	}
	return c.call(c.legacyCtx, req.method, input{args: req.args, bad: req.bad}, func(r result, err error) {
		c.out.push(c.legacyReply(req.id, r, err))
		c.answered.Done()
	}, c.answerLegacy)
}

func (c *conn) legacyReply(id []byte, r result, err error) []byte {
	asJSON := c.asJSON.Load()
	if err == nil && !asJSON {
		return legacyText(id, r.text())
	}
	if err == nil {
		var msg []byte
		if msg, err = legacyJSON(id, r); err == nil {
			return msg
		}
	}
	return legacyError(id, wireError(err).Message, asJSON)
}
