package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/service"
)

// stutter is a listener whose Accept fails or not, as it is told.
type stutter struct {
	net.Listener
	next []error
}

func (s *stutter) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "/run/x"} }

func (s *stutter) Accept() (net.Conn, error) {
	err := s.next[0]
	s.next = s.next[1:]
	if err != nil {
		return nil, err
	}
	c, _ := net.Pipe()
	return c, nil
}

func TestADoorTellsWhetherAnybodyGetsIn(t *testing.T) {
	d := &door{Listener: &stutter{next: []error{nil, syscall.EMFILE, nil}}}
	for i, healthy := range []bool{true, false, true} {
		c, err := d.Accept()
		if err == nil {
			c.Close()
		}
		if got := d.health(); (got == nil) != healthy || !healthy && !errors.Is(got, syscall.EMFILE) {
			t.Errorf("after accept %d: %v", i+1, got)
		}
	}
	if s := d.stats(); s["accepted"] != uint64(2) || s["accept_failures"] != uint64(1) || s["address"] != "/run/x" || s["last_accepted"] == "" {
		t.Errorf("%v", s)
	}
	var none *door // of a service that is not started
	if none.health() != nil || none.stats() != nil {
		t.Error("no listener is not well")
	}
}

// clumsy is a runner of commands that panics once.
type clumsy struct{ ran int }

func (c *clumsy) Run(context.Context, events.Command) (events.Result, error) {
	if c.ran++; c.ran == 1 {
		panic("boom")
	}
	return events.Result{Text: "exit status 0"}, nil
}

// TestAPanicOfAHandlerIsContained: the service is restarted, as its contract
// says, and serves on; nothing else notices.
func TestAPanicOfAHandlerIsContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, r := events.NewLog(16), &clumsy{}
		e := &engine{opts: Options{Runner: r}}
		e.handlers = events.NewHandlers(log, r, slog.New(slog.DiscardHandler))
		e.handlers.Set([]events.Handler{{Event: events.Role, Command: []string{"/x"}}})
		m := service.New(service.Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
		if err := errors.Join(m.Register(service.Spec{ID: id("events"), Service: plain{}}), m.Register(e.handlerSpec()), m.StartAll(t.Context())); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			synctest.Wait()
			log.Publish(events.Event{Type: events.Role})
			time.Sleep(time.Minute)
		}
		i, err := m.Show("handlers")
		if err != nil || i.State != service.Running || i.Restarts != 1 || i.Health != "ok" || r.ran != 2 {
			t.Errorf("%+v, %v, ran %d", i, err, r.ran)
		}
		if err := m.StopAll(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
