package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/nbd"
)

// connName is the name under which NBD connections are handed over.
const connName = "nbd"

// drainPatience bounds the wait for requests in flight on the way to a planned
// restart. A client whose requests hang longer, for want of a quorum say, is
// dropped as at a crash, and asks again.
const drainPatience = 10 * time.Second

// endNBD ends the NBD server, once. Clients are dropped, so that they connect
// again, but where another process follows at once: that gets the
// connections, each between two requests, and its clients see a pause.
func (e *engine) endNBD(ctx context.Context) error {
	var err error
	e.nbdOver.Do(func() {
		if o := &e.opts; o.Restarting == nil || o.HandOver == nil || !o.Restarting() {
			e.nbd.Close()
			return
		}
		ctx, cancel := context.WithTimeout(ctx, drainPatience)
		defer cancel()
		err = e.handOver(e.nbd.HandOver(ctx))
	})
	return err
}

func (e *engine) handOver(conns []nbd.Passed) error {
	var errs []error
	for _, p := range conns {
		state, err := json.Marshal(p.State)
		if err == nil {
			err = e.opts.HandOver(connName, p.File, state)
		}
		errs = append(errs, err, p.File.Close())
	}
	e.log.Info("handing NBD clients over to the next process", "clients", len(conns))
	return errors.Join(errs...)
}

// nbdService is the NBD server, without its listeners.
type nbdService struct {
	e     *engine
	conns []Conn // handed over by an earlier process
}

// Start claims the connections that were handed over: what nobody has claimed
// when everything serves is closed.
func (s *nbdService) Start(context.Context) error {
	if s.e.opts.Conns != nil {
		s.conns = s.e.opts.Conns()
	}
	return nil
}

// Stop ends the server.
func (s *nbdService) Stop(ctx context.Context) error { return s.e.endNBD(ctx) }

// Run goes on with the clients that were handed over, each until it has left.
// A client that cannot be gone on with is dropped.
func (s *nbdService) Run(ctx context.Context) error {
	var clients sync.WaitGroup
	for _, c := range s.conns {
		clients.Go(func() {
			if err := s.e.resume(ctx, c); err != nil && !errors.Is(err, nbd.ErrClosed) {
				s.e.log.Warn("an NBD client that was handed over is dropped, so that it connects again", "err", err)
			}
		})
	}
	s.conns = nil
	clients.Wait()
	<-ctx.Done()
	return nil
}

func (e *engine) resume(ctx context.Context, c Conn) error {
	var st nbd.State
	err := json.Unmarshal(c.State, &st)
	if c.Name != connName {
		err = fmt.Errorf("it is of another kind, %q", c.Name)
	}
	if err != nil {
		return errors.Join(err, c.Conn.Close())
	}
	return e.nbd.Resume(ctx, c.Conn, st)
}
