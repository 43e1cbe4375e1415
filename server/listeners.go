package server

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// door is a listener that tells how it is and what has come in by it.
type door struct {
	net.Listener

	// mu guards the fields below; nothing waits under it.
	mu       sync.Mutex
	accepted uint64
	last     time.Time // when somebody came in last
	err      error     // why nobody gets in now
	failures uint64
}

// Accept is the listener's, counted. One that fails is tried again by who
// serves, or is the end of the service; until one succeeds nobody gets in.
func (d *door) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err = err; err != nil {
		d.failures++
		return nil, err
	}
	d.accepted++
	d.last = time.Now()
	return c, nil
}

// health is why nobody gets in.
func (d *door) health() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return fmt.Errorf("nobody gets in: %w", d.err)
	}
	return nil
}

func (d *door) stats() map[string]any {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string]any{"address": d.Addr().String(), "accepted": d.accepted, "accept_failures": d.failures}
	if !d.last.IsZero() {
		out["last_accepted"] = stamp(d.last)
	}
	return out
}
