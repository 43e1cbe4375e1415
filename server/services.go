package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/cmap"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/control"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/service"
	"github.com/lockstepd/lockstep/server/store"
)

// plain is a service made of functions; either may be nil.
type plain struct {
	start, stop func(context.Context) error
	vitals
}

func (p plain) Start(ctx context.Context) error {
	if p.start == nil {
		return nil
	}
	return p.start(ctx)
}

func (p plain) Stop(ctx context.Context) error {
	if p.stop == nil {
		return nil
	}
	return p.stop(ctx)
}

// runner is a plain service that works on its own once it is started.
type runner struct {
	plain
	run func(context.Context) error
}

func (r runner) Run(ctx context.Context) error { return r.run(ctx) }

// configService follows the configuration, and can be told to read it again.
type configService struct {
	runner
	conf *reload.Engine
}

// Reload applies the file as it is now.
func (s configService) Reload(ctx context.Context) error {
	_, err := s.conf.Reload(ctx, reload.Request{Who: "service"})
	return err
}

// id is the identity of a part of this version of the engine.
func id(name string) service.ID { return service.ID{Name: name, Version: 1} }

func ids(names ...string) []service.ID {
	out := make([]service.ID, len(names))
	for i, n := range names {
		out[i] = id(n)
	}
	return out
}

// start brings everything up, stage by stage: what is in one stage starts side
// by side where it can, and is stopped before anything of an earlier stage.
// The stages are there beside the needs because a device or a listener may be
// stopped by command, which is refused for what others need.
func (e *engine) start(ctx context.Context) error {
	stages := []func() ([]service.Spec, error){
		e.groundStage, e.deviceStage, e.linkStage, e.serveStage, e.listenStage, e.controlStage, e.lastStage,
	}
	for _, stage := range stages {
		specs, err := stage()
		if err != nil {
			return err
		}
		for _, s := range specs {
			if err := e.services.Register(s); err != nil {
				return err
			}
		}
		if err := e.services.StartAll(ctx); err != nil {
			return err
		}
	}
	return nil
}

// groundStage is what holds and tells state.
func (e *engine) groundStage() ([]service.Spec, error) {
	var lock *store.Lock
	return []service.Spec{
		{ID: id("events"), Service: plain{stop: func(context.Context) error { e.events.Close(); return nil },
			vitals: vitals{stats: func() map[string]any { return map[string]any{"events": e.events.Newest()} }}}},
		{ID: id("cmap"), Service: plain{stop: func(context.Context) error { e.cmap.Close(); return nil },
			vitals: vitals{stats: func() map[string]any { return map[string]any{"keys": e.cmap.Len()} }}}},
		{ID: id("state"), Service: plain{
			start: func(context.Context) (err error) { lock, err = e.lockState(); return err },
			stop:  func(context.Context) error { return lock.Unlock() },
		}},
	}, nil
}

// lockState makes sure that nobody else uses our disks.
func (e *engine) lockState() (*store.Lock, error) {
	if err := os.MkdirAll(e.opts.StateDir, 0o750); err != nil {
		return nil, fmt.Errorf("cannot make the state directory: %w", err)
	}
	if err := os.MkdirAll(e.opts.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the runtime directory: %w", err)
	}
	return store.LockStateDir(e.opts.StateDir)
}

// deviceStage is the devices: each is a service.
func (e *engine) deviceStage() ([]service.Spec, error) {
	local := e.local()
	var out []service.Spec
	for _, ld := range local.Devices {
		spec, err := e.diskSpec(local, ld)
		if err != nil {
			return nil, &ConfigError{err}
		}
		out = append(out, e.addDisk(spec))
	}
	return out, nil
}

// diskSpec is all that a device is opened with.
type diskSpec struct {
	Config  device.Config
	Backing device.Backing
}

func (e *engine) diskSpec(local *config.Local, ld *config.LocalDevice) (diskSpec, error) {
	o, err := deviceOptions(local, ld)
	s := diskSpec{Config: o.Config, Backing: device.Backing{Extents: ld.ALExtents, ExtentBytes: int64(ld.ALExtent)}}
	if !ld.Diskless {
		s.Backing.Disk = ld.Disk
		if !filepath.IsAbs(ld.Disk) {
			s.Backing.Disk = filepath.Join(e.opts.StateDir, ld.Disk)
		}
		s.Backing.Meta = filepath.Join(e.opts.StateDir, ld.Name+".meta")
	}
	return s, err
}

// livens reports whether a device that runs by s becomes one by to without
// being closed.
func (s diskSpec) livens(to diskSpec) bool {
	to.Config.Size = s.Config.Size // a device's size is its own: it grows by command
	return s.Backing == to.Backing && device.CanReconfigure(s.Config, to.Config)
}

// diskService is a device.
type diskService struct {
	e    *engine
	spec diskSpec // changed by configuration transactions only
	dev  atomic.Pointer[device.Device]

	narrator *narrator // of the device, while there is one

	// parts: the device closes to open again as something that this node does not agree
	// on with those that have not read the same yet. It keeps its vote: whom it gave that
	// to may be taken out, and nobody uses the device.
	parts bool
}

func diskName(device string) string { return "device/" + device }

// addDisk keeps a device's service and returns its registration.
func (e *engine) addDisk(spec diskSpec) service.Spec {
	s := &diskService{e: e, spec: spec}
	e.disks[spec.Config.Name] = s
	return service.Spec{ID: id(diskName(spec.Config.Name)), Service: s, Needs: ids("state", "events"), Stoppable: true, StopTimeout: stopTimeout}
}

// Start opens the device and introduces it to the peers in contact.
func (s *diskService) Start(context.Context) error {
	e := s.e
	o := device.Options{Config: s.spec.Config, Log: e.opts.Logger("device"), Changed: func() { e.rev.Bump() }}
	if name := o.Name; e.opts.Runner != nil {
		o.Fence = func(ctx context.Context, argv []string, peer string) (int, error) {
			return e.fence(ctx, argv, name, peer)
		}
	}
	tell := &narrator{device: o.Name, publish: e.events.Publish}
	tell.suspends.Store(o.OnNoQuorum == device.SuspendIO)
	o.Event, o.Handle = tell.tell, e.devices.NextHandle()
	d, err := device.Open(o, s.spec.Backing)
	if err != nil {
		return err
	}
	d.Start()
	if err := e.devices.Add(d); err != nil {
		return errors.Join(err, d.Close(context.Background()))
	}
	s.dev.Store(d)
	s.narrator = tell
	e.rev.Bump()
	return nil
}

// reconfigure makes a running device what spec says, and one that is stopped
// open as it says.
func (s *diskService) reconfigure(spec diskSpec) error {
	if d := s.dev.Load(); d != nil {
		s.narrator.suspends.Store(spec.Config.OnNoQuorum == device.SuspendIO)
		if err := d.Reconfigure(spec.Config); err != nil {
			return err
		}
	}
	s.spec = spec
	return nil
}

// fence runs a device's fence-peer handler. Its environment is that of DRBD's
// handlers, as far as there is something to tell.
func (e *engine) fence(ctx context.Context, argv []string, device, peer string) (int, error) {
	res, err := e.opts.Runner.Run(ctx, events.Command{Argv: argv, Env: []string{
		"LOCKSTEP_DEVICE=" + device, "LOCKSTEP_PEER=" + peer,
		"DRBD_RESOURCE=" + device, "DRBD_VOLUME=0", "DRBD_PEER=" + peer, "DRBD_PEERS=" + peer,
	}})
	return res.Status, err
}

// Stop closes the device. It is refused while clients have it open.
func (s *diskService) Stop(ctx context.Context) error {
	d := s.dev.Load()
	if d == nil {
		return nil
	}
	if n := d.Status().Open; n > 0 && !s.e.ending.Load() {
		return fmt.Errorf("%w: %d clients have the device open", service.ErrBusy, n)
	}
	var err error
	if !s.e.ending.Load() {
		if !s.parts {
			err = d.Leave(ctx)
		}
		s.e.devices.Remove(d)
	}
	err = errors.Join(err, d.Close(ctx))
	s.dev.Store(nil)
	s.e.rev.Bump()
	return err
}

// Health says what keeps the device from being whole.
func (s *diskService) Health() error {
	d := s.dev.Load()
	if d == nil {
		return nil
	}
	if st := d.Status(); st.LastError != "" {
		return errors.New(st.LastError)
	} else if !st.Quorum.Quorate {
		return errors.New("no quorum: " + st.Quorum.Why)
	}
	return nil
}

// Stats counts what the device has done.
func (s *diskService) Stats() map[string]any {
	d := s.dev.Load()
	if d == nil {
		return nil
	}
	st := d.Status()
	return map[string]any{
		"reads": st.Stats.Reads, "writes": st.Stats.Writes, "flushes": st.Stats.Flushes, "trims": st.Stats.Trims,
		"read_bytes": st.Stats.ReadBytes, "write_bytes": st.Stats.WriteBytes, "resync_bytes": st.Stats.ResyncBytes, "open": st.Open,
	}
}

// linkStage is what talks with the peers. Nobody is dialled before the rest serves.
func (e *engine) linkStage() ([]service.Spec, error) {
	if err := e.startLog(); err != nil {
		return nil, &ConfigError{err}
	}
	return []service.Spec{{
		ID: id("messenger"), Needs: ids("state", "events"), StopTimeout: stopTimeout,
		Service: plain{start: e.openMessenger, stop: func(ctx context.Context) error { return e.msgr.Close(ctx) }, vitals: e.messengerVitals()},
	}}, nil
}

func (e *engine) openMessenger(ctx context.Context) error {
	local := e.local()
	c := &local.Cluster
	l, err := e.listenForPeers(ctx, local.Node.ListenAddress())
	if err != nil {
		return fmt.Errorf("cannot listen for peers on %s: %w", local.Node.ListenAddress(), err)
	}
	o := messenger.Options{
		Cluster: c.Name, NodeName: local.Node.Name, NodeID: local.Node.ID,
		Secrets: [][]byte{c.Secret.Reveal()}, Listener: l, Relisten: e.relisten, Sign: c.Sign,
		Tick: c.TickTime, PingCount: c.MaxPingCount, SpinData: messenger.DefaultSpin, SpinMeta: messenger.DefaultSpin,
		Handler: router{e.devices}, Events: e.nodeEvent, Log: e.opts.Logger("messenger"),
		Store: disconnects{filepath.Join(e.opts.StateDir, "disconnected")},
	}
	if c.TLS.Enabled() {
		if e.tls, err = messenger.NewTLSFiles(local.Resolve(c.TLS.CA), local.Resolve(c.TLS.Cert), local.Resolve(c.TLS.Key)); err != nil {
			return errors.Join(&ConfigError{err}, l.Close())
		}
		o.TLS = e.tls
	}
	for _, n := range local.Peers {
		o.Peers = append(o.Peers, peerOf(local.Node, n))
	}
	if e.msgr, err = messenger.New(o); err != nil {
		return errors.Join(fmt.Errorf("cannot set up the links to peers: %w", err), l.Close())
	}
	e.secrets = newRotation(e.msgr.SetSecrets, c.Secret.Reveal(), e.opts.Logger("messenger"))
	return nil
}

// nodeEvent passes on what happens to nodes.
func (e *engine) nodeEvent(ev cluster.Event) {
	e.events.Publish(events.Event{Type: eventType(ev.Type), Time: ev.Time, Node: ev.Node, Text: ev.Text, Data: eventData(ev)})
	e.rev.Bump()
}

// serveStage is what serves clients, without any listener yet.
func (e *engine) serveStage() ([]service.Spec, error) {
	e.nbd = nbd.NewServer(nbd.Options{Backend: exports{e.devices, e.opts.Logger("nbd")}, Helper: e.msgr, Logger: e.opts.Logger("nbd")})
	specs := []service.Spec{
		{ID: id("roles"), Needs: ids("messenger"), Service: plain{stop: e.leaveAll}},
		{ID: id("nbd"), Needs: ids("roles"), Service: &nbdService{e: e}},
	}
	e.handlers.Set(handlersOf(e.conf.Current()))
	if e.opts.Runner != nil {
		specs = append(specs, e.handlerSpec())
	}
	return specs, nil
}

// handlerSpec is the service that runs the commands of [[handler]]. What it has
// is its own, so that a panic of it is contained.
func (e *engine) handlerSpec() service.Spec {
	return service.Spec{
		ID: id("handlers"), Needs: ids("events"), Stoppable: true, Contained: true, Policy: service.Policy{Restart: true},
		Service: handlerService{e.handlers},
	}
}

// leaveAll gives the primary role up where it was taken by hand, and then this
// node's votes to the peers that stay, while these can still be told and asked to
// make durable what they have: without them there may be no quorum to do so.
func (e *engine) leaveAll(ctx context.Context) error {
	all := e.devices.All()
	errs := make([]error, 2*len(all))
	for i, d := range all {
		if d.Status().Quorum.Quorate {
			errs[i] = d.Demote(ctx)
		}
	}
	var leaving sync.WaitGroup
	for i, d := range all {
		if errs[i] == nil && d.Status().Role != replication.Primary {
			leaving.Go(func() { errs[len(all)+i] = d.Leave(ctx) })
		}
	}
	leaving.Wait()
	return errors.Join(errs...)
}

// handlerService runs the commands of [[handler]].
type handlerService struct{ h *events.Handlers }

func (handlerService) Start(context.Context) error { return nil }

// Run runs commands until ctx ends.
func (s handlerService) Run(ctx context.Context) error { return s.h.Run(ctx, 0) }

// Health is what is wrong with a handler.
func (s handlerService) Health() error { return s.h.Health() }

// Stats tells what each handler has done.
func (s handlerService) Stats() map[string]any {
	return map[string]any{"handlers": s.h.Stats(), "lost": s.h.Lost()}
}

// listenStage is where NBD clients come in.
func (e *engine) listenStage() ([]service.Spec, error) {
	var out []service.Spec
	for _, ld := range e.local().Devices {
		for _, ls := range ld.Listeners {
			out = append(out, e.addListener(ld.Name, ls))
		}
	}
	return out, nil
}

// nbdListener is one place where a device is served.
type nbdListener struct {
	e      *engine
	device string
	at     config.Listener
	l      atomic.Pointer[door]
}

// holdName is the name under which the surroundings keep the listener.
func (s *nbdListener) holdName() string {
	if s.at.Network == "unix" {
		return "nbd:" + s.device + ":unix"
	}
	return "nbd:" + s.device + ":" + s.at.Network + ":" + s.at.Address
}

// listenerName is the service's name.
func listenerName(device string, at config.Listener) string {
	if at.Network == "unix" {
		return "nbd/" + device + "/unix"
	}
	return "nbd/" + device + "/" + cmap.Name(at.Network+":"+at.Address)
}

// addListener keeps a listener's service and returns its registration.
func (e *engine) addListener(device string, at config.Listener) service.Spec {
	s := &nbdListener{e: e, device: device, at: at}
	name := listenerName(device, at)
	e.listeners[name] = s
	return service.Spec{ID: id(name), Service: s, Needs: ids("nbd", diskName(device)), Stoppable: true, Policy: service.Policy{Restart: true}}
}

// Start listens.
func (s *nbdListener) Start(context.Context) error {
	what, open := s.at.Address, func() (net.Listener, error) { return net.Listen("tcp", s.at.Address) }
	if s.at.Network == "unix" {
		what = filepath.Join(s.e.opts.RunDir, s.device+".nbd")
		open = func() (net.Listener, error) { return control.ListenUnix(what, 0o660) }
	}
	l, err := s.e.opts.Listen(s.holdName(), open)
	if err != nil {
		return fmt.Errorf("cannot listen for NBD clients of %s on %s: %w", s.device, what, err)
	}
	s.l.Store(&door{Listener: l})
	return nil
}

// Health says why no client gets in.
func (s *nbdListener) Health() error { return s.l.Load().health() }

// Stats counts the clients that came in here.
func (s *nbdListener) Stats() map[string]any { return s.l.Load().stats() }

// Stop leaves the clients to the end of Run, but where the engine ends: then
// all of them are handed over or dropped at once, those of other listeners too.
func (s *nbdListener) Stop(ctx context.Context) error {
	if s.e.ending.Load() {
		return s.e.endNBD(ctx)
	}
	return nil
}

// Run serves clients until ctx ends. A listener that is stopped while the
// rest goes on is given up, so that clients are refused and do not wait.
func (s *nbdListener) Run(ctx context.Context) error {
	err := s.e.nbd.Serve(ctx, s.l.Load())
	if !s.e.ending.Load() && s.e.opts.Release != nil {
		s.e.opts.Release(s.holdName())
	}
	if errors.Is(err, nbd.ErrClosed) {
		return nil
	}
	return err
}

// controlStage is the socket on which commands come in.
func (e *engine) controlStage() ([]service.Spec, error) {
	local := e.local()
	var err error
	e.control, err = control.New(control.Options{
		Node: local.Node.Name, ID: local.Node.ID, Version: e.opts.Version, RunDir: e.opts.RunDir,
		Config: e.local, Reload: e.conf, Cmap: e.cmap, Services: e.services,
		Metrics: func(ctx context.Context) (string, error) { return e.figures.Text(ctx) },
		Devices: e.devices, Messenger: e.msgr, NBD: e.nbd, Events: e.events, Revision: e.rev,
		Exit: e.opts.Exit, Restart: e.opts.Restart, MonitorGone: e.opts.MonitorGone, Vlog: e.opts.Vlog, Coverage: e.opts.Coverage, Memory: e.opts.Memory,
		Log: e.opts.Logger("control"),
	})
	if err != nil {
		return nil, fmt.Errorf("cannot set up the control socket: %w", err)
	}
	if e.opts.Control == nil {
		return e.metricsStage(nil)
	}
	var l net.Listener
	specs := []service.Spec{{
		ID: id("control"), Needs: ids("messenger", "nbd", "cmap", "events"),
		Service: runner{
			plain{start: func(context.Context) (err error) { l, err = e.listenControl(); return err }, vitals: e.controlVitals()},
			func(ctx context.Context) error {
				if l == nil {
					e.control.Measure(ctx)
					return nil
				}
				ctx, cancel := context.WithCancel(ctx)
				var measuring sync.WaitGroup
				defer measuring.Wait()
				defer cancel()
				measuring.Go(func() { e.control.Measure(ctx) })
				return e.control.Serve(ctx, l)
			},
		},
	}}
	for _, at := range local.Control.Addresses() {
		specs = append(specs, e.remoteSpec(at, certificates(local)))
	}
	return e.metricsStage(specs)
}

// metricsStage adds the metrics to the services of a stage.
func (e *engine) metricsStage(specs []service.Spec) (_ []service.Spec, err error) {
	if e.figures, err = e.newMetrics(); err != nil {
		return nil, err
	}
	e.attach()
	if at := e.conf.Current().Metrics.Listen; at != "" {
		specs = append(specs, e.metricsSpec(at))
	}
	return specs, nil
}

func (e *engine) listenControl() (net.Listener, error) {
	gone, err := control.CleanStale(e.opts.RunDir)
	if err != nil {
		e.log.Warn("cannot look for sockets that dead daemons left", "err", err)
	} else if len(gone) > 0 {
		e.log.Info("removed sockets that dead daemons left", "sockets", gone)
	}
	l, err := e.opts.Control(control.Listen)
	if err != nil {
		return nil, fmt.Errorf("cannot open the control socket: %w", err)
	}
	return l, nil
}

// lastStage is what begins once everything else serves: talking with peers,
// and changing the configuration.
func (e *engine) lastStage() ([]service.Spec, error) {
	return []service.Spec{
		{ID: id("cluster"), Needs: ids("messenger"), Service: plain{start: func(context.Context) error {
			if err := e.msgr.Start(); err != nil {
				return fmt.Errorf("cannot start talking to peers: %w", err)
			}
			return nil
		}, vitals: e.clusterVitals()}},
		{ID: id("config"), Needs: ids("cluster", "nbd", "cmap", "events"), Policy: service.Policy{Restart: true},
			Service: configService{runner{plain{vitals: e.configVitals()}, e.followConfig}, e.conf}},
	}, nil
}
