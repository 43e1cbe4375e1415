package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/service"
)

// failing is a service whose Run ends when it is told.
type failing struct{ end chan error }

func (failing) Start(context.Context) error { return nil }

func (f failing) Run(ctx context.Context) error {
	select {
	case err := <-f.end:
		return err
	case <-ctx.Done():
		return nil
	}
}

// TestAConfigurationIsLookedAtOnceApplied: what is not so, or has failed since,
// is found; what had failed before is no reason to refuse a change.
func TestAConfigurationIsLookedAtOnceApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &engine{disks: map[string]*diskService{}, listeners: map[string]*nbdListener{}, devices: device.NewSet(slog.New(slog.DiscardHandler))}
		e.services = service.New(service.Options{})
		e.handlers = events.NewHandlers(events.NewLog(4), nil, slog.New(slog.DiscardHandler))
		unix := config.Listener{Network: "unix"}
		to := &config.Local{Config: &config.Config{}, Node: &config.Node{Name: "alpha"}, Devices: []*config.LocalDevice{
			{Device: &config.Device{Name: "r0", Size: 1 << 20, Protocol: "C"}, Listeners: []config.Listener{unix}},
		}}
		look := func(began time.Time, want string) {
			t.Helper()
			if err := e.verifyDevices(to, began); err == nil && want != "" || err != nil && (want == "" || !strings.Contains(err.Error(), want)) {
				t.Errorf("%v, not %q", err, want)
			}
		}
		look(time.Now(), "device r0 is not there")
		e.addDisk(diskSpec{Config: device.Config{Name: "r0"}})
		look(time.Now(), "listener nbd/r0/unix is not there")
		e.addListener("r0", unix)
		look(time.Now(), "there is no service nbd/r0/unix@1")
		f := failing{make(chan error)}
		err := errors.Join(
			e.services.Register(service.Spec{ID: id("nbd/r0/unix"), Service: f, Stoppable: true, Policy: service.Policy{Restart: true, Max: 1}}),
			e.services.StartAll(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		look(time.Now(), "")
		began := time.Now()
		time.Sleep(time.Second)
		f.end <- errors.New("the socket is gone")
		synctest.Wait()
		look(began, "device.r0.nbd: service nbd/r0/unix has failed: the socket is gone")
		look(time.Now(), "")
		e.addDisk(diskSpec{Config: device.Config{Name: "r1"}})
		look(time.Now(), "device r1 is there still")
		to.Config.Handlers = []*config.Handler{{Event: "role", Command: []string{"/bin/true"}}}
		if err := e.verifyHandlers(to, began); err == nil {
			t.Error("a handler is missing, and nobody notices")
		}
		e.handlers.Set(handlersOf(to.Config))
		if err := e.verifyHandlers(to, began); err != nil {
			t.Error(err)
		}
		if err := e.services.StopAll(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
