package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// Passed is a connection that another server can go on with: between two
// requests, with nothing in flight, and its client none the wiser.
type Passed struct {
	File  *os.File // the socket; whoever gets it closes it
	State State
}

// HandOver closes the server, but stops each connection between two requests,
// lets what is in flight finish and be answered, and returns them for another
// server to Resume, in another process perhaps. When ctx ends, connections
// that are not there yet are dropped, so that their clients connect again. It
// returns when every connection has left its export; clients that are shaking
// hands have the limit's grace to finish, and are dropped if they don't.
//
// To shut down in good order without a successor, close the files.
func (s *Server) HandOver(ctx context.Context) []Passed {
	conns := s.shut()
	for _, c := range conns {
		c.stopReading()
	}
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.kill(errShutdown)
		}
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) > 0 {
		s.changed.Wait()
	}
	passed := s.passed
	s.passed = nil
	return passed
}

// pass keeps a stopped connection for HandOver to return.
func (s *Server) pass(c *conn) error {
	nc, ok := c.nc.(interface{ File() (*os.File, error) })
	if !ok {
		return errShutdown
	}
	f, err := nc.File()
	if err != nil {
		return fmt.Errorf("hand over the connection: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passed = append(s.passed, Passed{f, c.export()})
	return errPassed
}

// Resume goes on with a connection that another server passed on, in the
// place where that stopped. It returns when the connection has ended: nil, or
// why it could not be gone on with, in which case the client was dropped.
func (s *Server) Resume(ctx context.Context, nc net.Conn, st State) error {
	defer func() { _ = nc.Close() }()
	c, err := s.add(nc)
	if err != nil {
		return err
	}
	defer s.remove(c)
	stop := context.AfterFunc(ctx, func() { c.kill(errShutdown) })
	defer stop()
	c.client.Resumed = true
	c.opened.Store(true)
	c.state, c.prefix, c.skip = st, st.Pending, st.Skip
	c.state.Pending, c.state.Skip = nil, 0
	if err := c.open(ctx); err != nil {
		if c.stop.Load() && errors.Is(c.srv.pass(c), errPassed) {
			return nil // this server hands over in its turn before the export could be opened
		}
		return fmt.Errorf("resume a client of %s: %w", st.Export, err)
	}
	c.transmit()
	return nil
}
