package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/service"
)

// applier makes one aspect of the running engine what a configuration says.
// It compares with what is, not with what was, so that undoing is applying the
// old configuration, wherever applying the new one has stopped.
type applier struct {
	name  string
	wants func(key string) bool
	plan  func(tx reload.Tx) ([]reload.Verdict, error)
	apply func(ctx context.Context, to *config.Local) error
	// verify says what of the configuration is not so, once all was applied, or
	// has failed since that began; nil where there is nothing to look at.
	verify func(to *config.Local, began time.Time) error
	// undo is apply of the old configuration, where that takes more; it may be nil.
	undo func(ctx context.Context, to *config.Local) error
}

func (a *applier) Name() string          { return a.name }
func (a *applier) Wants(key string) bool { return a.wants(key) }

func (a *applier) Plan(_ context.Context, tx reload.Tx) ([]reload.Verdict, error) {
	if a.plan == nil {
		return nil, nil
	}
	return a.plan(tx)
}

func (a *applier) Apply(ctx context.Context, tx reload.Tx) error {
	return become(ctx, tx.New, tx.Node, a.apply)
}

// Verify implements reload.Verifier.
func (a *applier) Verify(_ context.Context, tx reload.Tx) error {
	if a.verify == nil {
		return nil
	}
	l, err := tx.New.Local(tx.Node)
	if err != nil {
		return err
	}
	return a.verify(l, tx.Began)
}

func (a *applier) Undo(ctx context.Context, tx reload.Tx) error {
	if a.undo != nil {
		return become(ctx, tx.Old, tx.Node, a.undo)
	}
	return become(ctx, tx.Old, tx.Node, a.apply)
}

// become has the engine made what a configuration says.
func become(ctx context.Context, c *config.Config, node string, apply func(context.Context, *config.Local) error) error {
	l, err := c.Local(node)
	if err != nil {
		return err
	}
	return apply(ctx, l)
}

// appliers are all there are, in the order in which they apply: nodes come
// before the devices on them and go after. The tick time is last: a change of
// it that has begun cannot be taken back before it is over.
func (e *engine) appliers() []reload.Applier {
	return []reload.Applier{
		&applier{"log", e.wantsLog, nil, e.applyLog, nil, nil},
		&applier{"control", keys("control.admin_groups", "control.read_groups", "control.admin_names", "control.read_names"), nil, e.applyGroups, nil, nil},
		&applier{"handlers", below("handler."), nil, e.applyHandlers, e.verifyHandlers, nil},
		&applier{"messenger", keys("cluster.secret_file"), nil, e.applySecret, nil, nil},
		&applier{"messenger", below("cluster.tls."), e.planTLS, e.applyTLS, nil, nil},
		&applier{"control", func(key string) bool { return key == "control.listen" || below("cluster.tls.")(key) }, nil, e.applyRemotes, e.verifyRemotes, nil},
		&applier{"messenger", below("node." + e.opts.Node + "."), e.planAddress, e.applyAddress, e.verifyAddress, nil},
		&applier{"metrics", keys("metrics.listen"), nil, e.applyMetrics, e.verifyMetrics, nil},
		&applier{"cluster", below("node."), nil, e.applyNodes, nil, e.undoNodes},
		&applier{"device", below("device."), e.planDevices, e.applyDevices, e.verifyDevices, nil},
		&applier{"cluster", below("node."), nil, e.dropNodes, e.verifyNodes, e.applyNodes},
		&applier{"cluster", keys("cluster.tick_time", "cluster.max_ping_count"), e.planTick, e.applyTick, e.verifyTick, nil},
	}
}

func keys(names ...string) func(string) bool {
	return func(key string) bool { return slices.Contains(names, key) }
}

func below(prefix string) func(string) bool {
	return func(key string) bool { return strings.HasPrefix(key, prefix) }
}

func (e *engine) wantsLog(key string) bool {
	return e.opts.Log != nil && strings.HasPrefix(key, "log.")
}

func logOf(to *config.Local) LogSettings {
	s := LogSettings{Level: to.Log.Level, Format: to.Log.Format}
	if to.Log.File != "" {
		s.File = to.Resolve(to.Log.File)
	}
	return s
}

func (e *engine) applyLog(_ context.Context, to *config.Local) error {
	return e.opts.Log.Apply(logOf(to), false)
}

// startLog puts the [log] table into effect for the first time, as far as the
// file gives it.
func (e *engine) startLog() error {
	if e.opts.Log == nil {
		return nil
	}
	s := logOf(e.local())
	for _, k := range e.conf.Current().Keys() {
		switch {
		case k.Path == "log.level" && !k.Set:
			s.Level = ""
		case k.Path == "log.format" && !k.Set:
			s.Format = ""
		}
	}
	return e.opts.Log.Apply(s, true)
}

func (e *engine) applyGroups(_ context.Context, to *config.Local) error {
	if e.control == nil {
		return nil
	}
	return e.control.SetGroups(&to.Control)
}

func (e *engine) applyHandlers(_ context.Context, to *config.Local) error {
	e.handlers.Set(handlersOf(to.Config))
	return nil
}

// handlersOf translates the [[handler]] tables.
func handlersOf(c *config.Config) []events.Handler {
	out := make([]events.Handler, len(c.Handlers))
	for i, h := range c.Handlers {
		out[i] = events.Handler{Event: h.Event, Command: h.Command, Devices: h.Device, Nodes: h.Node,
			Timeout: h.Timeout, MaxParallel: h.MaxParallel, Retries: h.Retries}
	}
	return out
}

func (e *engine) applySecret(_ context.Context, to *config.Local) error {
	return e.secrets.to(to.Cluster.Secret.Reveal())
}

// planTLS says that links in the clear become encrypted, or the other way
// round, by a restart. Other files, and new content of the same, are read for
// the next connection.
func (e *engine) planTLS(tx reload.Tx) ([]reload.Verdict, error) {
	if tx.Old.Cluster.TLS.Enabled() == tx.New.Cluster.TLS.Enabled() {
		return nil, nil
	}
	var out []reload.Verdict
	for _, c := range tx.Changes {
		out = append(out, reload.Verdict{Key: c.Key, How: config.Daemon, Why: "links begin or cease to be encrypted when all nodes have restarted"})
	}
	return out, nil
}

func (e *engine) applyTLS(_ context.Context, to *config.Local) error {
	t := &to.Cluster.TLS
	if e.tls == nil || !t.Enabled() {
		return nil
	}
	if err := e.tls.Use(to.Resolve(t.CA), to.Resolve(t.Cert), to.Resolve(t.Key)); err != nil {
		return &reload.KeyError{Key: "cluster.tls.cert", Err: err}
	}
	return nil
}

func (e *engine) planTick(tx reload.Tx) ([]reload.Verdict, error) {
	t := e.msgr.GetTick()
	if t.Target == 0 || t.Target == tx.New.Cluster.TickTime {
		return nil, nil
	}
	var out []reload.Verdict
	for _, c := range tx.Changes {
		if c.Key == "cluster.tick_time" {
			out = append(out, reload.Refuse(c.Key, "the tick time is changing to %v for another %v; try again then", t.Target, t.Remaining.Round(1e9)))
		}
	}
	return out, nil
}

func (e *engine) applyTick(_ context.Context, to *config.Local) error {
	t := e.msgr.GetTick()
	if t.Pings != to.Cluster.MaxPingCount {
		if err := e.msgr.SetPingCount(to.Cluster.MaxPingCount); err != nil {
			return &reload.KeyError{Key: "cluster.max_ping_count", Err: err}
		}
	}
	target := t.Tick
	if t.Target != 0 {
		target = t.Target
	}
	if target == to.Cluster.TickTime {
		return nil
	}
	res, now, err := e.msgr.SetTick(to.Cluster.TickTime, cluster.DefaultTransition, false)
	if err == nil && res == cluster.OngoingChangeTo && now != to.Cluster.TickTime {
		err = fmt.Errorf("the tick time is changing to %v; try again when it has", now)
	}
	if err != nil {
		return &reload.KeyError{Key: "cluster.tick_time", Err: err}
	}
	return nil
}

// planAddress says that an address which is part of the present one, or has it
// as a part, is taken by a restart: the two cannot be listened at side by side.
func (e *engine) planAddress(tx reload.Tx) ([]reload.Verdict, error) {
	to, err := tx.New.Local(tx.Node)
	if err != nil {
		return nil, err
	}
	at := to.Node.ListenAddress()
	if listensAt(e.msgr.Addr(), at) || !overlap(e.msgr.Addr(), at) {
		return nil, nil
	}
	var out []reload.Verdict
	for _, c := range tx.Changes {
		out = append(out, reload.Verdict{Key: c.Key, How: config.Daemon,
			Why: fmt.Sprintf("this node listens at %s, and at that and %s at once it cannot", e.msgr.Addr(), at)})
	}
	return out, nil
}

// applyNodes makes the messenger know the nodes that there are. Those that
// are gone stay for dropNodes, unless they have the id of another.
func (e *engine) applyNodes(ctx context.Context, to *config.Local) error {
	have := e.msgr.Nodes()
	for _, n := range to.Peers {
		if err := e.applyNode(ctx, have, peerOf(to.Node, n)); err != nil {
			return &reload.KeyError{Key: "node." + n.Name, Err: err}
		}
	}
	return nil
}

func (e *engine) applyNode(ctx context.Context, have []messenger.NodeInfo, want messenger.Peer) error {
	for i := range have {
		h := &have[i]
		switch {
		case h.Name == want.Name && h.ID == want.ID:
			if h.Address == want.Address && h.Bind == want.Bind {
				return nil
			}
			return e.msgr.ChangeNode(ctx, want)
		case h.Name == want.Name || h.ID == want.ID:
			if err := e.msgr.RemoveNode(ctx, h.Name); err != nil {
				return err
			}
		}
	}
	err := e.msgr.AddNode(want)
	e.rev.Bump()
	return err
}

// undoNodes also forgets the nodes that were new: what would have been done once
// the devices had changed may never have begun.
func (e *engine) undoNodes(ctx context.Context, to *config.Local) error {
	return errors.Join(e.applyNodes(ctx, to), e.dropNodes(ctx, to))
}

// dropNodes makes the messenger forget the nodes that are gone.
func (e *engine) dropNodes(ctx context.Context, to *config.Local) error {
	for _, h := range e.msgr.Nodes() {
		if slices.ContainsFunc(to.Peers, func(n *config.Node) bool { return n.Name == h.Name }) {
			continue
		}
		if err := e.msgr.RemoveNode(ctx, h.Name); err != nil && !errors.Is(err, messenger.ErrNoNode) {
			return &reload.KeyError{Key: "node." + h.Name, Err: err}
		}
		e.rev.Bump()
	}
	return nil
}

// planDevices refuses what would take a device from those who use it, and
// says which devices close and open again.
func (e *engine) planDevices(tx reload.Tx) ([]reload.Verdict, error) {
	old, err := tx.Old.Local(tx.Node)
	if err != nil {
		return nil, err
	}
	now, err := tx.New.Local(tx.Node)
	if err != nil {
		return nil, err
	}
	var out []reload.Verdict
	for _, c := range tx.Changes {
		v, err := e.planDevice(c, old, now)
		if err != nil {
			return nil, err
		}
		out = append(out, v...)
	}
	return out, nil
}

func (e *engine) planDevice(c config.Change, old, now *config.Local) ([]reload.Verdict, error) {
	name, key, _ := strings.Cut(strings.TrimPrefix(c.Key, "device."), ".")
	was, will := localDevice(old, name), localDevice(now, name)
	if key == "size" {
		if d, ok := e.devices.Get(name); ok && will != nil && int64(will.Size) == d.Size() {
			return nil, nil // as it has grown to
		}
		return []reload.Verdict{reload.Refuse(c.Key, "a device grows by \"lockstepctl device resize\", on all nodes at once")}, nil
	}
	if key == "nbd" || key == "on."+e.opts.Node+".nbd" || was == nil {
		return nil, nil // listeners come and go
	}
	apart := true // the others will not agree with this node before they have changed as well
	if will != nil {
		a, err := e.diskSpec(old, was)
		b, err2 := e.diskSpec(now, will)
		if err := errors.Join(err, err2); err != nil {
			return nil, err
		}
		if sameSpec(a, b) {
			return e.planUnused(c, key), nil
		}
		if a.livens(b) {
			return nil, nil
		}
		apart = a.Config.Fingerprint != b.Config.Fingerprint
	}
	if why := e.inUse(name, apart); why != "" {
		return []reload.Verdict{reload.Refuse(c.Key, "%s", why)}, nil
	}
	if will == nil {
		return nil, nil
	}
	return []reload.Verdict{{Key: c.Key, How: config.Restarts, Why: "the device closes and opens again"}}, nil
}

// planUnused is for keys that make no difference to how a device runs here:
// those of other nodes, and those that nothing reads while it runs.
func (e *engine) planUnused(c config.Change, key string) []reload.Verdict {
	if strings.HasPrefix(key, "on.") {
		return []reload.Verdict{{Key: c.Key, How: c.How, Why: "on another node"}}
	}
	return []reload.Verdict{{Key: c.Key, How: config.Daemon, Why: "the device takes it when the daemon starts"}}
}

// sameSpec reports whether two specs ask for the same device. Its size is its
// own: it grows by command.
func sameSpec(a, b diskSpec) bool {
	a.Config.Size, b.Config.Size = 0, 0
	return reflect.DeepEqual(a, b)
}

// inUse says why a device cannot be closed now; if it is to be apart from the others
// then, also because one of them is in need of it.
func (e *engine) inUse(name string, apart bool) string {
	d, ok := e.devices.Get(name)
	if !ok {
		return ""
	}
	st := d.Status()
	switch {
	case st.Open > 0:
		return fmt.Sprintf("%s is open by %d clients; have them close it first", name, st.Open)
	case st.Role == replication.Primary:
		return fmt.Sprintf("%s is primary here; \"lockstepctl device demote %s\" first", name, name)
	case apart && st.Primary != "":
		return fmt.Sprintf("%s is primary on %s, which would lose this node; have its clients close it first, or demote it there", name, st.Primary)
	}
	return ""
}

func localDevice(l *config.Local, name string) *config.LocalDevice {
	for _, d := range l.Devices {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// applyDevices opens devices and listeners that are new, closes those that are
// gone or differ in more than a running device takes, changes the others, and
// opens what had to wait for that. What is new comes first because it can fail:
// then nothing was closed that would have to be opened again.
func (e *engine) applyDevices(ctx context.Context, to *config.Local) error {
	specs, listeners, err := e.wanted(to)
	if err != nil {
		return err
	}
	gone := e.leaving(specs, listeners)
	if err := e.openWanted(ctx, to, specs, gone); err != nil {
		return err
	}
	for name := range gone.listeners {
		device := e.listeners[name].device
		if err := e.dropListener(ctx, name); err != nil {
			return &reload.KeyError{Key: "device." + device, Err: err}
		}
	}
	for name, disk := range e.disks {
		var err error
		if gone.disks[name] {
			spec, stays := specs[name]
			disk.parts = stays && spec.Config.Fingerprint != disk.spec.Config.Fingerprint
			err = e.dropDisk(ctx, name)
			disk.parts = false // it may have been refused
		} else {
			err = disk.reconfigure(specs[name])
		}
		if err != nil {
			return &reload.KeyError{Key: "device." + name, Err: err}
		}
	}
	return e.openWanted(ctx, to, specs, leaving{})
}

// leaving is what a configuration closes, by name; some of it to open it again.
type leaving struct{ disks, listeners map[string]bool }

func (e *engine) leaving(specs map[string]diskSpec, listeners map[string]config.Listener) leaving {
	gone := leaving{map[string]bool{}, map[string]bool{}}
	for name, disk := range e.disks {
		if spec, stays := specs[name]; !stays || !disk.spec.livens(spec) {
			gone.disks[name] = true
		}
	}
	for name, s := range e.listeners {
		if _, stays := listeners[name]; !stays || gone.disks[s.device] || e.disks[s.device] == nil {
			gone.listeners[name] = true
		}
	}
	return gone
}

// holdsDisk reports whether a device's files are those of one that is leaving.
func (e *engine) holdsDisk(gone leaving, spec diskSpec) bool {
	for name := range gone.disks {
		if b := e.disks[name].spec.Backing; name == spec.Config.Name || b.Disk != "" && b.Disk == spec.Backing.Disk {
			return true
		}
	}
	return false
}

// holdsAddress reports whether a listener that is leaving may be in the way of
// another.
func (e *engine) holdsAddress(gone leaving, at config.Listener) bool {
	for name := range gone.listeners {
		if have := e.listeners[name].at; have.Network != "unix" && at.Network != "unix" && portOf(have.Address) == portOf(at.Address) {
			return true
		}
	}
	return false
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// wanted is what a configuration asks for: devices, and listeners by name.
func (e *engine) wanted(to *config.Local) (map[string]diskSpec, map[string]config.Listener, error) {
	specs, listeners := map[string]diskSpec{}, map[string]config.Listener{}
	for _, ld := range to.Devices {
		spec, err := e.diskSpec(to, ld)
		if err != nil {
			return nil, nil, &reload.KeyError{Key: "device." + ld.Name, Err: err}
		}
		specs[ld.Name] = spec
		for _, at := range ld.Listeners {
			listeners[listenerName(ld.Name, at)] = at
		}
	}
	return specs, listeners, nil
}

// openWanted opens what is not there, but for what has to wait until something
// else is gone.
func (e *engine) openWanted(ctx context.Context, to *config.Local, specs map[string]diskSpec, gone leaving) error {
	for _, ld := range to.Devices {
		if e.disks[ld.Name] == nil {
			if e.holdsDisk(gone, specs[ld.Name]) {
				continue
			}
			reg := e.addDisk(specs[ld.Name])
			if err := e.begin(ctx, reg); err != nil {
				delete(e.disks, ld.Name)
				return &reload.KeyError{Key: "device." + ld.Name, Err: err}
			}
		}
		for _, at := range ld.Listeners {
			name := listenerName(ld.Name, at)
			if e.listeners[name] != nil || gone.disks[ld.Name] || e.holdsAddress(gone, at) {
				continue
			}
			reg := e.addListener(ld.Name, at)
			if err := e.begin(ctx, reg); err != nil {
				delete(e.listeners, name)
				return &reload.KeyError{Key: "device." + ld.Name + ".nbd", Err: err}
			}
		}
	}
	return nil
}

// begin registers a service and starts it; one that does not start is
// forgotten again.
func (e *engine) begin(ctx context.Context, s service.Spec) error {
	if err := e.services.Register(s); err != nil {
		return err
	}
	if err := e.services.Start(ctx, s.ID.String()); err != nil {
		return errors.Join(err, e.services.Unregister(s.ID))
	}
	return nil
}

// end stops a service and forgets it.
func (e *engine) end(ctx context.Context, name string) error {
	if err := e.services.Stop(ctx, id(name).String()); err != nil {
		return err
	}
	return e.services.Unregister(id(name))
}

func (e *engine) dropListener(ctx context.Context, name string) error {
	if err := e.end(ctx, name); err != nil {
		return err
	}
	delete(e.listeners, name)
	return nil
}

func (e *engine) dropDisk(ctx context.Context, name string) error {
	if err := e.end(ctx, diskName(name)); err != nil {
		return err
	}
	delete(e.disks, name)
	return nil
}
