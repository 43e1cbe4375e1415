// Package server is the engine: it reads the configuration, opens what is to
// be served, connects the parts, and takes all of it down in the reverse
// order. What surrounds it (the daemonizer, the log, sockets that outlive the
// process) reaches it through Options, as small interfaces.
//
// Every part is a service (services.go); what changes while it runs is put
// into effect by the appliers of a configuration's transaction (apply.go).
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/server/cmap"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/control"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/metrics"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/service"
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
	// Log takes the [log] table; nil where nothing does.
	Log Log
	// Listen returns the listener of a name that survives this process, or
	// makes it with open. Release gives the name up: the listener is closed for
	// good. It may be nil.
	Listen  func(name string, open func() (net.Listener, error)) (net.Listener, error)
	Release func(name string)
	// Control returns the listener of the control socket; nil where there is
	// to be none.
	Control func(open func(path string) (net.Listener, error)) (net.Listener, error)
	// Ready is called once everything serves.
	Ready func() error
	// Exit and Restart ask the surroundings to end, or to restart, this process.
	// Restart fails, and does nothing, where another would not start.
	Exit    func()
	Restart func(context.Context) error
	// Status tells the service manager how things are, in words, and Extend
	// that a stop will take so much longer, from now. Both may be nil.
	Status func(string)
	Extend func(time.Duration)
	// OnDump takes what writes the engine's state where an operator asks for
	// it; nil where nobody does.
	OnDump func(func(io.Writer))
	// Restarting reports that what ends is to be followed by another process
	// at once. HandOver keeps an NBD connection, and what to know of it, for
	// that; Conns are those that an earlier process handed over. All three may
	// be nil.
	Restarting func() bool
	HandOver   func(name string, conn syscall.Conn, state []byte) error
	Conns      func() []Conn
	// Reload delivers requests to read the configuration again; each is
	// answered with Reloaded. Both may be nil.
	Reload   <-chan struct{}
	Reloaded func(error)
	// MonitorGone is closed when nobody would start another process after a
	// crash, though that was asked for. It may be nil.
	MonitorGone <-chan struct{}
	// Runner starts the commands of [[handler]]; nil where none are run.
	Runner events.Runner
	// Vlog, Coverage and Memory are the daemonizer's; the engine only offers
	// their commands, and shows its own counters through them.
	Vlog     control.Vlog
	Coverage control.Coverage
	Memory   control.Memory
}

// A Conn is a connection that an earlier process handed over, with what that
// said of it.
type Conn struct {
	Name  string
	Conn  net.Conn
	State []byte
}

// A Log is what the [log] table sets.
type Log interface {
	// Apply puts the table into effect. With start it is the first time, and
	// what the command line says goes first; an empty Level or Format is then
	// one that the file does not give.
	Apply(l LogSettings, start bool) error
}

// LogSettings is the [log] table.
type LogSettings struct {
	Level, Format string
	File          string // absolute; "" for none
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

// DumpMetadata writes what a device's metadata file says, as JSON. No daemon is
// needed, and nothing is changed.
func DumpMetadata(path string, out io.Writer) error {
	in, err := store.Inspect(path)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(in.Report())
}

// engine is a running engine.
type engine struct {
	opts   Options
	log    *slog.Logger
	events *events.Log
	rev    *events.Revision
	began  time.Time

	conf     *reload.Engine
	cmap     *cmap.DB
	mirror   *reload.Mirror
	services *service.Manager
	handlers *events.Handlers
	secrets  *rotation
	devices  *device.Set
	msgr     *messenger.Messenger
	tls      *messenger.TLSFiles // of the links; nil where they are in the clear
	nbd      *nbd.Server
	control  *control.Control

	// The services that come and go with the configuration, by name. They
	// belong to whoever starts the engine, and then to the configuration's
	// transactions, of which there is one at a time.
	disks     map[string]*diskService
	listeners map[string]*nbdListener
	remotes   map[string]*remote
	scrapes   *metricsService // nil where nobody listens
	figures   *metrics.Metrics
	formers   []former

	// ending is set once the engine stops: listeners then stay with those who
	// hold them for the next process.
	ending  atomic.Bool
	nbdOver sync.Once // ends the NBD server
}

// stopTimeout bounds an orderly stop.
const stopTimeout = 30 * time.Second

// Main runs the engine until ctx ends. An error before Ready was called means
// that it could not start.
func Main(ctx context.Context, o Options) error {
	e, err := newEngine(o)
	if err != nil {
		return err
	}
	if err = e.start(ctx); err == nil {
		e.log.Info("serving", "node", o.Node, "version", o.Version, "devices", len(e.devices.All()))
		err = o.Ready()
	}
	if err == nil {
		err = e.wait(ctx)
	}
	e.ending.Store(true)
	return errors.Join(err, e.stop(ctx))
}

// stop ends everything, in the order in which it was started, reversed.
func (e *engine) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return extending(e.opts.Extend, func() error { return e.services.StopAll(ctx) })
}

// wait waits until the engine is to stop, or cannot go on. Meanwhile the
// service manager is told how things are.
func (e *engine) wait(ctx context.Context) error {
	if e.opts.OnDump != nil {
		e.opts.OnDump(e.control.Dump)
	}
	hctx, cancel := context.WithCancel(ctx)
	var told sync.WaitGroup
	told.Go(func() { e.tellHealth(hctx) })
	told.Go(func() { e.watchMonitor(hctx) })
	defer told.Wait()
	defer cancel()
	select {
	case <-ctx.Done():
		e.log.Info("stopping", "cause", context.Cause(ctx))
		return nil
	case err := <-e.services.Failed():
		e.log.Error("stopping, for a part that lockstep does not work without has failed", "err", err)
		return err
	}
}

// newEngine reads the configuration and makes the parts. Nothing runs yet.
func newEngine(o Options) (*engine, error) {
	e := &engine{
		opts: o, log: o.Logger("server"), events: events.NewLog(events.DefaultCapacity), rev: &events.Revision{}, began: time.Now(),
		cmap: cmap.New(), disks: map[string]*diskService{}, listeners: map[string]*nbdListener{}, remotes: map[string]*remote{},
		devices: device.NewSet(o.Logger("device")),
	}
	e.services = service.New(service.Options{Logger: o.Logger("service"), Observe: e.serviceEvent})
	e.handlers = events.NewHandlers(e.events, o.Runner, o.Logger("events"))
	var err error
	if e.conf, err = reload.New(reload.Options{
		Path: o.Config, Node: o.Node, Env: config.OS(), Appliers: e.appliers(), Logger: o.Logger("config"),
		Store: reload.FileStore(filepath.Join(o.StateDir, "overlay.json")), Observe: e.configEvent,
		History: reload.HistoryFile(filepath.Join(o.StateDir, "revisions.json")),
	}); err != nil {
		return nil, &ConfigError{err}
	}
	e.cmap.ReadOnly(cmap.EnginePrefixes()...)
	if e.mirror, err = reload.NewMirror(e.conf, e.cmap, o.Logger("cmap")); err != nil {
		return nil, fmt.Errorf("cannot show the configuration in the object database: %w", err)
	}
	return e, e.provideKeys()
}

// local is the configuration that holds, as this node sees it.
func (e *engine) local() *config.Local {
	l, err := e.conf.Current().Local(e.opts.Node)
	if err != nil { // no transaction takes this node out of the cluster
		e.log.Error("the configuration has lost this node", "err", err)
		return &config.Local{Config: e.conf.Current(), Node: &config.Node{Name: e.opts.Node}}
	}
	return l
}

// serviceEvent tells of a service's change of state.
func (e *engine) serviceEvent(i service.Info) {
	text := fmt.Sprintf("service %s is %s", i.Name, i.State)
	if i.LastError != "" {
		text += ": " + i.LastError
	}
	e.events.Publish(events.Event{Type: events.Service, Text: text, Data: map[string]any{"service": i.Name, "state": string(i.State)}})
}

// configEvent tells of a configuration that was applied, or was not.
func (e *engine) configEvent(o reload.Outcome) {
	ev := events.Event{Type: events.Config, Text: fmt.Sprintf("configuration revision %d holds", o.Revision.Number),
		Data: map[string]any{"revision": o.Revision.Number, "who": o.Who, "changes": len(o.Revision.Changes)}}
	if o.Err != nil {
		ev.Type, ev.Text = events.ConfigRefused, "the configuration was not applied: "+o.Err.Error()
	}
	e.events.Publish(ev)
	e.mirror.Sync()
	e.rev.Bump()
}
