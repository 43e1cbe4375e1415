package control

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
)

// waiting is how long a command may take that waits for a state: as long as
// its client waits.
const waiting = rpc.NoDeadline

type none struct{}

func done(d api.Done) string { return d.Text }

// commands is the table of the engine's commands.
func (c *Control) commands() []rpc.Command {
	rows := []rpc.Command{
		{Name: "status", Usage: "[DEVICE]", MaxArgs: 1, Doc: "show in one screen how everything is", Do: rpc.Typed(c.status, statusText)},
		{Name: "status/wait", Usage: "REVISION", MinArgs: 1, MaxArgs: 1, Deadline: waiting,
			Doc: "answer with the status as soon as its revision is greater than REVISION", Do: rpc.Typed(c.statusWait, statusText)},
		{Name: "exit", Access: rpc.Admin, Doc: "stop the daemon in an orderly way", Do: rpc.Typed(c.exit, done)},
		{Name: "restart", Access: rpc.Admin, Doc: "restart the daemon; its monitor keeps the sockets meanwhile", Do: rpc.Typed(c.restart, done)},
		{Name: "messenger/show", Usage: "[NODE]", MaxArgs: 1, Doc: "show the links to peers: bytes, frames, queues", Do: rpc.Typed(c.messengerShow, messengerText)},
		{Name: "reconnect/show", Usage: "[NODE]", MaxArgs: 1, Doc: "show attempts to connect, backoff and the next try", Do: rpc.Typed(c.reconnectShow, reconnectText)},
		{Name: "metrics", Doc: "show all metrics as Prometheus text", Do: rpc.Text(func(ctx context.Context, _ rpc.Actor, _ []string) (string, error) { return c.o.Metrics(ctx) })},
	}
	rows = append(rows, c.nodeCommands()...)
	rows = append(rows, c.deviceCommands()...)
	rows = append(rows, c.eventCommands()...)
	rows = append(rows, c.configCommands()...)
	rows = append(rows, c.cmapCommands()...)
	rows = append(rows, c.serviceCommands()...)
	return append(rows, c.hostCommands()...)
}

func (c *Control) nodeCommands() []rpc.Command {
	return []rpc.Command{
		{Name: "node/list", Doc: "list the peers and whether they are up", Do: rpc.Typed(c.nodeList, nodesText)},
		{Name: "node/show", Usage: "NODE", MinArgs: 1, MaxArgs: 1, Doc: "show everything about a peer", Do: rpc.Typed(c.nodeShow, nodeText)},
		{Name: "node/why", Usage: "NODE", MinArgs: 1, MaxArgs: 1, Doc: "explain a peer's state", Do: rpc.Typed(c.nodeWhy, whyText)},
		{Name: "node/connect", Usage: "[NODE]", MaxArgs: 1, Access: rpc.Admin, Doc: "connect to a peer that was disconnected (all without NODE)", Do: rpc.Typed(c.nodeConnect, done)},
		{Name: "node/disconnect", Usage: "[NODE [PERSIST]]", MaxArgs: 2, Access: rpc.Admin, Doc: "disconnect from a peer until told to connect (all without NODE)", Do: rpc.Typed(c.nodeDisconnect, done)},
		{Name: "node/reconnect", Usage: "[NODE]", MaxArgs: 1, Access: rpc.Admin, Doc: "drop both links to a peer and make them anew at once (all without NODE)", Do: rpc.Typed(c.nodeReconnect, done)},
		{Name: "tick/get", Doc: "show the tick time", Do: rpc.Typed(c.tickGet, tickText)},
		{Name: "tick/set", Usage: "SECONDS [TRANSITION [LOCAL]]", MinArgs: 1, MaxArgs: 3, Access: rpc.Admin, Doc: "change the tick time of the running cluster", Do: rpc.Typed(c.tickSet, tickSetText)},
	}
}

func (c *Control) deviceCommands() []rpc.Command {
	return []rpc.Command{
		{Name: "device/list", Doc: "list the devices", Do: rpc.Typed(c.deviceList, devicesText)},
		{Name: "device/show", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Doc: "show everything about a device", Do: rpc.Typed(c.deviceShow, deviceText)},
		{Name: "device/why", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Doc: "explain a device's state", Do: rpc.Typed(c.deviceWhy, whyText)},
		{Name: "device/promote", Usage: "DEVICE [FORCE [TIMEOUT_MS]]", MinArgs: 1, MaxArgs: 3, Access: rpc.Admin, Deadline: 30 * time.Second, Doc: "make this node a device's primary", Do: rpc.Typed(c.devicePromote, done)},
		{Name: "device/demote", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: 60 * time.Second, Doc: "make this node a secondary of a device", Do: rpc.Typed(c.deviceDemote, done)},
		{Name: "device/detach", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: 60 * time.Second, Doc: "take this node's disk out of a device, which goes on with the peers'", Do: rpc.Typed(c.deviceDetach, done)},
		{Name: "device/attach", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: 60 * time.Second, Doc: "take this node's disk into a device again, and resync what it missed", Do: rpc.Typed(c.deviceAttach, done)},
		{Name: "device/invalidate", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: 60 * time.Second, Doc: "discard the data of this node's disk and fetch all of it from a peer", Do: rpc.Typed(c.deviceInvalidate, done)},
		{Name: "device/resync", Usage: "DEVICE [NODE [PAUSE]]", MinArgs: 1, MaxArgs: 3, Access: rpc.Admin, Deadline: 60 * time.Second, Doc: "bring what is out of sync with a peer up to date, or pause that (all peers without NODE)", Do: rpc.Typed(c.deviceResync, done)},
		{Name: "device/verify", Usage: "DEVICE [NODE [STOP]]", MinArgs: 1, MaxArgs: 3, Access: rpc.Admin, Doc: "compare a device's data with a peer's, while it is in use (all peers without NODE)", Do: rpc.Typed(c.deviceVerify, done)},
		{Name: "device/resolve", Usage: "DEVICE keep-local|discard-local", MinArgs: 2, MaxArgs: 2, Access: rpc.Admin, Deadline: 30 * time.Second, Doc: "end a split brain: say whose changes are discarded", Do: rpc.Typed(c.deviceResolve, done)},
		{Name: "device/handshake", Usage: "DEVICE NODE", MinArgs: 2, MaxArgs: 2, Doc: "tell what a handshake with a peer would decide now", Do: rpc.Typed(c.deviceHandshake, handshakeText)},
		{Name: "device/resize", Usage: "DEVICE BYTES", MinArgs: 2, MaxArgs: 2, Access: rpc.Admin, Deadline: 120 * time.Second, Doc: "make a device larger on all nodes, while it is in use", Do: rpc.Typed(c.deviceResize, done)},
		{Name: "device/create", Usage: "DEVICE [FROM_EXISTING]", MinArgs: 1, MaxArgs: 2, Access: rpc.Admin, Deadline: 120 * time.Second, Doc: "create a device that the configuration names; say what a disk that was there before is worth", Do: rpc.Typed(c.deviceCreate, done)},
		{Name: "device/dump-md", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Doc: "show what a device's metadata on this node says", Do: rpc.Typed(c.deviceDumpMD, dumpText)},
		{Name: "device/check", Usage: "DEVICE", MinArgs: 1, MaxArgs: 1, Doc: "check a device's metadata on this node", Do: rpc.Typed(c.deviceCheck, done)},
		{Name: "device/wait", Usage: "DEVICE [uptodate|connected|synced|primary [TIMEOUT_MS]]", MinArgs: 1, MaxArgs: 3, Deadline: waiting, Doc: "answer when a device is in a state", Do: rpc.Typed(c.deviceWait, func(d api.Device) string { return devicesText([]api.Device{d}) })},
	}
}

func (c *Control) exit(ctx context.Context, _ rpc.Actor, _ none) (api.Done, error) {
	// After the answer went out: the server sends the replies of commands in
	// progress when it stops.
	c.o.Exit()
	return api.Done{Text: "stopping"}, nil
}

func (c *Control) restart(ctx context.Context, _ rpc.Actor, _ none) (api.Done, error) {
	if err := c.o.Restart(ctx); err != nil {
		return api.Done{}, api.Errorf(api.CodeFailed, "cannot restart, for what is on disk now would not start: %v", err)
	}
	return api.Done{Text: "restarting"}, nil
}

// stableName is the socket's name without the pid.
func stableName(path string) string {
	dir, base := filepath.Split(path)
	parts := strings.Split(base, ".")
	if len(parts) < 3 || parts[len(parts)-1] != "ctl" {
		return ""
	}
	return filepath.Join(dir, strings.Join(parts[:len(parts)-2], ".")+".ctl")
}

func text(format string, args ...any) (api.Done, error) {
	return api.Done{Text: fmt.Sprintf(format, args...)}, nil
}
