// Package server is the engine: it reads the configuration, opens what is to
// be served, connects the parts, and takes all of it down in the reverse
// order. What surrounds it (the daemonizer, the log, sockets that outlive the
// process) reaches it through Options, as small interfaces.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/control"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/store"
)

// Options are what the engine needs of its surroundings.
type Options struct {
	Config   string // path of the configuration file
	Node     string // this node's name
	StateDir string
	RunDir   string
	Version  string

	// Logger returns the log of a module.
	Logger func(module string) *slog.Logger
	// Listen returns the listener of a name that survives this process, or
	// makes it with open.
	Listen func(name string, open func() (net.Listener, error)) (net.Listener, error)
	// Control returns the listener of the control socket; nil where there is
	// to be none.
	Control func(open func(path string) (net.Listener, error)) (net.Listener, error)
	// Ready is called once everything serves.
	Ready func() error
	// Exit and Restart ask the surroundings to end, or to restart, this process.
	Exit, Restart func()
	// Status tells the service manager how things are, in words.
	Status func(string)
	// Vlog, Coverage and Memory are the daemonizer's; the engine only offers
	// their commands.
	Vlog     control.Vlog
	Coverage control.Coverage
	Memory   control.Memory
}

// A ConfigError is a configuration that cannot be used; Err says where and why.
type ConfigError struct{ Err error }

func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// Check validates a configuration file and prints what is wrong with it. It
// reports whether all is well.
func Check(path, node string, out io.Writer) bool {
	cfg, err := config.Load(path)
	if err == nil && node != "" {
		_, err = cfg.Local(node)
	}
	if err != nil {
		fmt.Fprintln(out, err)
		return false
	}
	return true
}

// engine is a running engine.
type engine struct {
	opts   Options
	log    *slog.Logger
	local  *config.Local
	events *events.Log
	rev    *events.Revision

	devices *device.Set
	msgr    *messenger.Messenger
	nbd     *nbd.Server

	// stops undo what was started, last first.
	stops []func(context.Context) error
	// serving are the accept loops; they end when their server closes.
	serving sync.WaitGroup
}

// stopTimeout bounds an orderly stop.
const stopTimeout = 30 * time.Second

// Main runs the engine until ctx ends. An error before Ready was called means
// that it could not start.
func Main(ctx context.Context, o Options) error {
	e := &engine{opts: o, log: o.Logger("server"), events: events.NewLog(events.DefaultCapacity), rev: &events.Revision{}}
	err := e.start(ctx)
	if err == nil {
		e.log.Info("serving", "node", o.Node, "version", o.Version, "devices", len(e.devices.All()))
		err = o.Ready()
	}
	if err == nil {
		<-ctx.Done()
		e.log.Info("stopping", "cause", context.Cause(ctx))
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(err, e.stop(sctx))
}

// start brings everything up, in the order in which things need each other.
func (e *engine) start(ctx context.Context) error {
	cfg, err := config.Load(e.opts.Config)
	if err != nil {
		return &ConfigError{err}
	}
	if e.local, err = cfg.Local(e.opts.Node); err != nil {
		return &ConfigError{err}
	}
	for _, step := range []func(context.Context) error{
		e.lockState, e.openDevices, e.openMessenger, e.openNBD, e.openControl,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := e.msgr.Start(); err != nil {
		return fmt.Errorf("cannot start talking to peers: %w", err)
	}
	return nil
}

// onStop registers the counterpart of a step that was taken.
func (e *engine) onStop(f func(context.Context) error) { e.stops = append(e.stops, f) }

func (e *engine) stop(ctx context.Context) error {
	var errs []error
	for i := len(e.stops) - 1; i >= 0; i-- {
		errs = append(errs, e.stops[i](ctx))
	}
	return errors.Join(errs...)
}

// lockState makes sure that nobody else uses our disks.
func (e *engine) lockState(context.Context) error {
	if err := os.MkdirAll(e.opts.StateDir, 0o750); err != nil {
		return fmt.Errorf("cannot make the state directory: %w", err)
	}
	if err := os.MkdirAll(e.opts.RunDir, 0o755); err != nil {
		return fmt.Errorf("cannot make the runtime directory: %w", err)
	}
	l, err := store.LockStateDir(e.opts.StateDir)
	if err != nil {
		return err
	}
	e.onStop(func(context.Context) error { return l.Unlock() })
	return nil
}

func (e *engine) openDevices(context.Context) error {
	e.devices = device.NewSet(e.opts.Logger("device"))
	for _, ld := range e.local.Devices {
		d, err := e.openDevice(ld)
		if err != nil {
			return err
		}
		d.Start()
		e.onStop(d.Close)
		if err := e.devices.Add(d); err != nil {
			return err
		}
	}
	return nil
}

func (e *engine) openDevice(ld *config.LocalDevice) (*device.Device, error) {
	o, err := deviceOptions(e.local, ld)
	if err != nil {
		return nil, &ConfigError{err}
	}
	o.Handle = e.devices.NextHandle()
	o.Log = e.opts.Logger("device")
	name := ld.Name
	o.Event = func(ev device.Event) {
		e.events.Publish(events.Event{Type: ev.Type, Device: name, Node: ev.Peer, Text: ev.Text, Data: ev.Data})
	}
	o.Changed = func() { e.rev.Bump() }
	bk := device.Backing{Extents: ld.ALExtents, ExtentBytes: int64(ld.ALExtent)}
	if !ld.Diskless {
		bk.Disk = ld.Disk
		if !filepath.IsAbs(bk.Disk) {
			bk.Disk = filepath.Join(e.opts.StateDir, bk.Disk)
		}
		bk.Meta = filepath.Join(e.opts.StateDir, ld.Name+".meta")
	}
	return device.Open(o, bk)
}

func (e *engine) openMessenger(ctx context.Context) error {
	c := &e.local.Cluster
	l, err := e.opts.Listen("peers", func() (net.Listener, error) {
		return messenger.Bind(ctx, messenger.Binding{Address: e.local.Node.ListenAddress(), Retries: 3, Delay: 200 * time.Millisecond})
	})
	if err != nil {
		return fmt.Errorf("cannot listen for peers on %s: %w", e.local.Node.ListenAddress(), err)
	}
	o := messenger.Options{
		Cluster: c.Name, NodeName: e.local.Node.Name, NodeID: e.local.Node.ID,
		Secrets: [][]byte{c.Secret.Reveal()}, Listener: l, Sign: c.Sign,
		Tick: c.TickTime, PingCount: c.MaxPingCount,
		Handler: router{e.devices}, Events: e.nodeEvent, Log: e.opts.Logger("messenger"),
		Store: disconnects{filepath.Join(e.opts.StateDir, "disconnected")},
	}
	if c.TLS.Enabled() {
		if o.TLS, err = messenger.NewTLSFiles(e.local.Resolve(c.TLS.CA), e.local.Resolve(c.TLS.Cert), e.local.Resolve(c.TLS.Key)); err != nil {
			return &ConfigError{err}
		}
	}
	for _, n := range e.local.Peers {
		o.Peers = append(o.Peers, peerOf(e.local.Node, n))
	}
	if e.msgr, err = messenger.New(o); err != nil {
		return errors.Join(fmt.Errorf("cannot set up the links to peers: %w", err), l.Close())
	}
	e.onStop(e.msgr.Close)
	return nil
}

// nodeEvent passes on what happens to nodes.
func (e *engine) nodeEvent(ev cluster.Event) {
	e.events.Publish(events.Event{Type: eventType(ev.Type), Time: ev.Time, Node: ev.Node, Text: ev.Text, Data: eventData(ev)})
	e.rev.Bump()
}

func (e *engine) openNBD(context.Context) error {
	e.nbd = nbd.NewServer(nbd.Options{Backend: exports{e.devices, e.opts.Logger("nbd")}, Logger: e.opts.Logger("nbd")})
	e.onStop(func(context.Context) error {
		e.nbd.Close()
		e.serving.Wait()
		return nil
	})
	for _, ld := range e.local.Devices {
		for _, ls := range ld.Listeners {
			if err := e.listenNBD(ld.Name, ls); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *engine) listenNBD(dev string, ls config.Listener) error {
	name, open := "nbd:"+dev+":"+ls.Network, func() (net.Listener, error) { return net.Listen("tcp", ls.Address) }
	what := ls.Address
	if ls.Network == "unix" {
		what = filepath.Join(e.opts.RunDir, dev+".nbd")
		open = func() (net.Listener, error) { return control.ListenUnix(what, 0o660) }
	} else {
		name += ":" + ls.Address
	}
	l, err := e.opts.Listen(name, open)
	if err != nil {
		return fmt.Errorf("cannot listen for NBD clients of %s on %s: %w", dev, what, err)
	}
	e.serving.Go(func() {
		if err := e.nbd.Serve(context.Background(), l); err != nil && !errors.Is(err, nbd.ErrClosed) {
			e.log.Error("NBD listener ended", "device", dev, "address", what, "err", err)
		}
	})
	return nil
}

func (e *engine) openControl(context.Context) error {
	if e.opts.Control == nil {
		return nil
	}
	c, err := control.New(control.Options{
		Node: e.local.Node.Name, ID: e.local.Node.ID, Version: e.opts.Version, RunDir: e.opts.RunDir,
		Config: e.local, Devices: e.devices, Messenger: e.msgr, NBD: e.nbd, Events: e.events, Revision: e.rev,
		Exit: e.opts.Exit, Restart: e.opts.Restart, Vlog: e.opts.Vlog, Coverage: e.opts.Coverage, Memory: e.opts.Memory,
		Log: e.opts.Logger("control"),
	})
	if err != nil {
		return fmt.Errorf("cannot set up the control socket: %w", err)
	}
	l, err := e.opts.Control(control.Listen)
	if err != nil {
		return fmt.Errorf("cannot open the control socket: %w", err)
	}
	if l == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Serve(ctx, l) }()
	e.onStop(func(context.Context) error {
		cancel()
		return <-done
	})
	return nil
}
