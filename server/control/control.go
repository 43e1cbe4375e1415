// Package control offers the engine's commands on the control socket. It
// translates between what the parts know and the plain structs of rpc/api, and
// is the only part of the engine that knows the control plane.
package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/unixsock"
	"github.com/lockstepd/lockstep/server/cmap"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/metrics"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/service"
)

// Vlog is the log whose levels "vlog/…" shows and sets.
type Vlog interface {
	Set(specs ...string) error
	ListText() string
	ListPatternText() string
	SetRateLimit(on bool, names ...string) error
	Reopen() error
	CloseFile() error
}

// Coverage are the counters of "coverage/…".
type Coverage interface {
	Text() string
	Read(name string) (uint64, error)
	Attach(name string, read func() uint64)
}

// Memory is what "memory/show" shows.
type Memory interface {
	Text() string
	Attach(name string, read func() uint64)
}

// Options are the parts that the commands speak of.
type Options struct {
	Node    string
	ID      int
	Version string
	RunDir  string

	// Config returns the configuration that holds.
	Config    func() *config.Local
	Reload    *reload.Engine
	Cmap      *cmap.DB
	Services  *service.Manager
	Metrics   func(ctx context.Context) (string, error)
	Devices   *device.Set
	Messenger *messenger.Messenger
	NBD       *nbd.Server
	Events    *events.Log
	Revision  *events.Revision

	Exit    func()
	Restart func(context.Context) error
	// MonitorGone is closed when a crash would be final; nil where that is no fault.
	MonitorGone <-chan struct{}
	Vlog        Vlog
	Coverage    Coverage
	Memory      Memory
	Log         *slog.Logger
}

// Control is the set of commands and the server that answers them.
type Control struct {
	o      Options
	reg    *rpc.Registry
	srv    *rpc.Server
	policy atomic.Pointer[rpc.Policy]

	// admitting guards socket, and the order in which groups are let in.
	admitting sync.Mutex
	socket    string // the path of the Unix socket, once it is served

	subs      subscriptions
	notes     notes
	latencies latencies
}

// New builds the table of commands.
func New(o Options) (*Control, error) {
	c := &Control{o: o}
	reg, err := rpc.NewRegistry(c.commands()...)
	if err != nil {
		return nil, err
	}
	if err := c.SetGroups(&o.Config().Control); err != nil {
		return nil, err
	}
	c.reg = reg
	c.srv = rpc.NewServer(rpc.ServerOptions{
		Registry: reg, Logger: o.Log, Program: "lockstepd", Version: o.Version,
		Authorize: func(a rpc.Actor) rpc.Role { return c.policy.Load().Role(a) },
	})
	if o.Coverage != nil {
		c.attach(o.Coverage)
	}
	return c, nil
}

// attach shows the server's own counts among the daemon's.
func (c *Control) attach(to Coverage) {
	for name, read := range map[string]func(s rpc.Stats) uint64{
		"rpc_requests":      func(s rpc.Stats) uint64 { return s.Requests },
		"rpc_failures":      func(s rpc.Stats) uint64 { return s.Failures },
		"rpc_timeouts":      func(s rpc.Stats) uint64 { return s.Timeouts },
		"rpc_faults":        func(s rpc.Stats) uint64 { return s.Panics },
		"rpc_malformed":     func(s rpc.Stats) uint64 { return s.Malformed },
		"rpc_accepted":      func(s rpc.Stats) uint64 { return s.Accepted },
		"rpc_refused":       func(s rpc.Stats) uint64 { return s.Refused },
		"rpc_cut_off":       func(s rpc.Stats) uint64 { return s.CutOff },
		"rpc_notifications": func(s rpc.Stats) uint64 { return s.Notifications },
		"rpc_dropped":       func(s rpc.Stats) uint64 { return s.Dropped },
	} {
		to.Attach(name, func() uint64 { return read(c.srv.Stats()) })
	}
}

// SetGroups replaces the groups and the certificates' names that may look and
// that may command. New connections are judged by them; the socket lets the
// groups' members in.
func (c *Control) SetGroups(cfg *config.Control) error {
	p, err := policyOf(cfg)
	if err != nil {
		return err
	}
	c.admitting.Lock()
	defer c.admitting.Unlock()
	c.policy.Store(&p)
	c.admitLocked()
	return nil
}

// admitLocked lets the groups in at the socket. Where it can't, root and the
// socket's own group remain: no reason not to serve.
func (c *Control) admitLocked() {
	if c.socket == "" {
		return
	}
	p := c.policy.Load()
	if err := unixsock.Admit(c.socket, slices.Concat(p.AdminGroups, p.ReadGroups)); err != nil {
		c.o.Log.Warn("only root and the socket's own group can connect", "err", err)
	}
}

// Commands counts what the control socket has seen.
func (c *Control) Commands() metrics.Commands {
	s, each := c.srv.Stats(), map[string]metrics.Command{}
	for name, n := range c.srv.Commands() {
		each[name] = metrics.Command{Requests: n.Requests, Failures: n.Failures, Took: n.Took}
	}
	return metrics.Commands{
		Each:        each,
		Connections: s.Connections, InProgress: s.InProgress, Requests: s.Requests, Failures: s.Failures, Timeouts: s.Timeouts,
		Panics: s.Panics, Malformed: s.Malformed, Accepted: s.Accepted, Refused: s.Refused, CutOff: s.CutOff,
		Notifications: s.Notifications, Dropped: s.Dropped,
	}
}

// CleanStale removes the control sockets of dead daemons in the rundir.
func CleanStale(rundir string) ([]string, error) { return rpc.CleanStale(rundir, "lockstepd") }

// Serve answers on l, the control socket, until ctx ends.
func (c *Control) Serve(ctx context.Context, l net.Listener) error {
	c.admitting.Lock()
	if at, ok := l.Addr().(*net.UnixAddr); ok {
		c.socket = at.Name
	}
	c.admitLocked()
	c.admitting.Unlock()
	return c.srv.Serve(ctx, l)
}

// Registry is the table of commands, for services that bring more.
func (c *Control) Registry() *rpc.Registry { return c.reg }

// Listen makes the control socket at path, and beside it one whose name does
// not change.
func Listen(path string) (net.Listener, error) {
	return rpc.ListenUnix(path, rpc.ListenOptions{Mode: 0o770, Link: stableName(path)})
}

// ListenUnix makes a Unix socket with a mode that is its from the first
// moment, takes the place of a dead daemon's and never a live one's.
func ListenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	return unixsock.Listen(path, unixsock.Options{Mode: mode})
}

func policyOf(c *config.Control) (rpc.Policy, error) {
	p := rpc.Policy{AdminUIDs: []uint32{0, uint32(os.Geteuid())}, AdminNames: c.AdminNames, ReadNames: c.ReadNames}
	for _, set := range []struct {
		names []string
		to    *[]uint32
	}{{c.AdminGroups, &p.AdminGroups}, {c.ReadGroups, &p.ReadGroups}} {
		for _, name := range set.names {
			id, err := groupID(name)
			if err != nil {
				return p, fmt.Errorf("control: %w", err)
			}
			*set.to = append(*set.to, id)
		}
	}
	return p, nil
}

func groupID(name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", name, err)
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(n), err
}

// device finds a device or says which there are.
func (c *Control) device(name string) (*device.Device, error) {
	if d, ok := c.o.Devices.Get(name); ok {
		return d, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "no device %q here (see: lockstepctl device list)", name)
}

// refused turns an engine's refusal into an error that tells scripts so.
func refused(err error) error {
	if r, ok := errors.AsType[*device.RefusedError](err); ok {
		return api.Errorf(api.CodeInvalidState, "%s", r.Error())
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Errorf(api.CodeTimeout, "timed out")
	}
	return err
}
