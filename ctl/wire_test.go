package ctl

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
)

// serve runs a real control socket with a few commands, and returns its path.
func serve(t testing.TB) string {
	t.Helper()
	return serveCommands(t, commands()...)
}

func serveCommands(t testing.TB, cs ...rpc.Command) string {
	t.Helper()
	reg, err := rpc.NewRegistry(cs...)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s.ctl")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- rpc.NewServer(rpc.ServerOptions{Registry: reg, Program: "lockstepd", Version: "9.9"}).Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return path
}

type none struct{}

// commands are those of a small daemon.
func commands() []rpc.Command {
	status := api.Status{Node: "alpha", Version: "9.9", Health: "ok", Revision: 4, Nodes: []api.Node{}, Devices: []api.Device{{Name: "r0", Quorum: true}}}
	return []rpc.Command{
		{Name: "status", Usage: "[DEVICE]", MaxArgs: 1, Doc: "Show the status.",
			Do: rpc.Typed(func(context.Context, rpc.Actor, api.DeviceParams) (api.Status, error) { return status, nil }, func(api.Status) string { return "fine\n" })},
		{Name: "device/list", Doc: "List the devices.",
			Do: rpc.Typed(func(context.Context, rpc.Actor, none) ([]api.Device, error) { return status.Devices, nil }, func([]api.Device) string { return "r0\n" })},
		{Name: "device/promote", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Doc: "Promote.",
			Do: rpc.Typed(func(_ context.Context, _ rpc.Actor, p api.DevicePromoteParams) (api.Done, error) {
				if p.Force {
					return api.Done{Text: p.Device + " is primary now, by force"}, nil
				}
				return api.Done{}, api.Errorf(api.CodeInvalidState, "peer beta is primary (run \"lockstepctl device demote %s\" there)", p.Device)
			}, func(d api.Done) string { return d.Text + "\n" })},
		{Name: "events/subscribe", Usage: "[TYPE...]", MaxArgs: rpc.Unlimited, Doc: "Subscribe.",
			Do: rpc.Typed(func(ctx context.Context, _ rpc.Actor, p api.Subscribe) (api.Subscribed, error) {
				for i := range uint64(3) {
					if err := rpc.Notify(ctx, "event", api.Event{Seq: 41 + i, Type: "config", Text: "applied"}); err != nil {
						return api.Subscribed{}, err
					}
				}
				return api.Subscribed{Seq: 40}, nil
			}, func(api.Subscribed) string { return "" })},
		{Name: "vlog/list", Doc: "List levels.",
			Do: rpc.Text(func(context.Context, rpc.Actor, []string) (string, error) { return "module info\n", nil })},
	}
}

// TestAgainstARealSocket runs command lines through the client, a socket and
// the server.
func TestAgainstARealSocket(t *testing.T) {
	path := serve(t)
	for _, c := range []struct {
		line     string
		code     int
		out, err string // what is contained
	}{
		{"status", 0, "alpha (id 0): healthy", ""},
		{"-f json status r0", 0, `{"node":"alpha","id":0,"version":"9.9","revision":4,`, ""},
		{"version", 0, "lockstepd 9.9 (go", ""},
		{"device list", 0, "r0 ", ""},
		{"device promote r0", 1, "", `lockstepctl: cannot promote r0: peer beta is primary (run "lockstepctl device demote r0" there)`},
		{"device promote r0 --force --yes", 0, "r0 is primary now, by force\n", ""},
		{"-q device promote r0 --force --yes", 0, "", ""},
		{"events --count 2", 0, "config        applied\n", ""},
		{"call vlog/list", 0, "module info\n", ""},
		{"-f json log list", 0, `"module info`, ""},
		{"call status", 0, "fine\n", ""},
		{"list-commands", 0, "The available commands are:\n  device/list", ""},
		{"-f json list-commands", 0, `{"device/list":`, ""},
		{"node list", 1, "", "is not a valid command"},
		{"node list", 1, "", "it is lockstepd 9.9 and this is lockstepctl"},
		{"memory", 1, "", "it is lockstepd 9.9 and this is lockstepctl"},
	} {
		var out, err lockedBuffer
		e := OS(testRelease)
		e.Out, e.Err, e.OutTerm, e.ErrTerm, e.InTerm = &out, &err, nil, nil, false
		code := Main(append([]string{"-t", path}, strings.Fields(c.line)...), e)
		if code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(err.String(), c.err) || c.out == "" && out.String() != "" {
			t.Errorf("%s: exit %d\nout: %s\nerr: %s", c.line, code, out.String(), err.String())
		}
	}
}

// TestAnOlderDaemonKnowsNoLimit: a daemon from before promotions had a limit refuses
// the parameter by its registry. It is asked without, once, and its answer counts.
func TestAnOlderDaemonKnowsNoLimit(t *testing.T) {
	type params struct {
		Device string `json:"device"`
		Force  bool   `json:"force,omitempty"`
	}
	var asked atomic.Int32
	path := serveCommands(t, rpc.Command{Name: "device/promote", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Doc: "Promote.",
		Do: rpc.Typed(func(_ context.Context, _ rpc.Actor, p params) (api.Done, error) {
			asked.Add(1)
			switch p.Device {
			case "r0":
				return api.Done{Text: "r0 is primary now"}, nil
			case "r1":
				return api.Done{}, api.Errorf(api.CodeInvalidState, "no quorum")
			}
			return api.Done{}, api.Errorf(api.CodeInvalidParams, "there is no device %q", p.Device)
		}, func(d api.Done) string { return d.Text + "\n" })})
	for _, c := range []struct {
		line     string
		code     int
		out, err string
	}{
		{"-T 5 device promote r0", 0, "r0 is primary now\n", ""},
		{"device promote r0", 0, "r0 is primary now\n", ""},
		{"-T 5 device promote r1", 1, "", "cannot promote r1: no quorum"},
		{"-T 5 device promote r2", 1, "", `there is no device "r2"`},
	} {
		var out, err lockedBuffer
		e := OS(testRelease)
		e.Out, e.Err, e.OutTerm, e.ErrTerm, e.InTerm = &out, &err, nil, nil, false
		asked.Store(0)
		code := Main(append([]string{"-t", path}, strings.Fields(c.line)...), e)
		if code != c.code || out.String() != c.out || !strings.Contains(err.String(), c.err) || c.err == "" && err.String() != "" || asked.Load() != 1 {
			t.Errorf("%s: exit %d, %d calls\nout: %s\nerr: %s", c.line, code, asked.Load(), out.String(), err.String())
		}
	}
}

// TestUnreachable: each way of not reaching the daemon has its own words.
func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.ctl")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(filepath.Join(dir, "stale.pid"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ target, says string }{
		{"", "cannot reach lockstepd: it does not run (" + dir + "/lockstepd.pid: no such file or directory); start it with"},
		{"stale", "cannot reach stale: it does not run ("},
		{dead, "nobody listens on that socket"},
		{filepath.Join(dir, "stale.pid"), "stale.pid: it exists and is not a socket; name the daemon's with -t PATH"},
		{filepath.Join(dir, "no.ctl"), "no.ctl: no such file or directory; start the daemon, or name another socket with -t PATH"},
	} {
		var out, errs lockedBuffer
		e := OS(testRelease)
		e.Out, e.Err, e.OutTerm, e.ErrTerm = &out, &errs, nil, nil
		e.Getenv = func(k string) string {
			return map[string]string{"LOCKSTEP_RUNDIR": dir, "LOCKSTEP_TARGET": c.target}[k]
		}
		if code := Main([]string{"status"}, e); code != exitUnreachable || out.String() != "" || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%q: exit %d\nout: %s\nerr: %s\nwant: %s", c.target, code, out.String(), errs.String(), c.says)
		}
	}
}
