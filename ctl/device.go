package ctl

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

const argDevice = "a device's name, as in the configuration"

func (a *app) deviceCommands() *cobra.Command {
	return a.group("device", "look at and command replicated devices",
		a.command(verb{
			use: "list", short: "list the devices",
			long: "Lists every device, one line each: size, role, disk, and what most needs a look.",
			do:   "list the devices", example: "lockstepctl device list",
			run: a.ask("device/list", nil, as(render.Devices)),
		}),
		a.command(verb{
			use: "show DEVICE", short: "show all there is to know of a device",
			long: "Shows a device in full: disk, quorum, clients, traffic, latency, generations, peers.",
			args: []string{"DEVICE", argDevice},
			do:   "show device %s", example: "lockstepctl device show r0", complete: completeDevices,
			run: a.ask("device/show", deviceParams, as(render.Device)),
		}),
		a.command(verb{
			use: "why DEVICE", short: "explain a device's state",
			long: "Explains what the state of a device is, since when, because of what, and what would change it.",
			args: []string{"DEVICE", argDevice},
			do:   "explain device %s", example: "lockstepctl device why r0", complete: completeDevices,
			run: a.ask("device/why", deviceParams, as(render.Why)),
		}),
		a.deviceCreate(),
		a.devicePromote(),
		a.deviceVerb("demote", "demote %s", "give up the primary role", "Makes the device secondary on this node. Refused while clients have it open for writing."),
		a.deviceVerb("attach", "attach the disk of %s", "attach the local disk", "Attaches the device's disk on this node again, and resyncs what it missed."),
		a.deviceVerb("detach", "detach the disk of %s", "detach the local disk", "Detaches the device's disk on this node. Reads and writes go to the peers' disks meanwhile. It is refused where no peer in reach has current data, or where the disks that are left would be no quorum. Where the quorum is off, or of half the nodes, the disk is outdated until it was in sync again."),
		a.deviceVerify(),
		a.deviceResync(),
		a.deviceInvalidate(),
		a.deviceResize(),
		a.deviceWait(),
		a.deviceResolve(),
		a.deviceHandshake(),
		a.deviceDumpMD(),
		a.deviceCheck(),
	)
}

// deviceVerb is a verb that takes a device and nothing more.
func (a *app) deviceVerb(name, do, short, long string) *cobra.Command {
	return a.command(verb{
		use: name + " DEVICE", short: short, long: long,
		args: []string{"DEVICE", argDevice},
		do:   do, example: "lockstepctl device " + name + " r0", complete: completeDevices,
		run: a.act("device/"+name, deviceParams),
	})
}

func (a *app) deviceCreate() *cobra.Command {
	var existing bool
	return a.command(verb{
		use: "create DEVICE", short: "create a device that the configuration names",
		long: `Reads the configuration again for a device that is in it and not here yet; its
metadata is made, and its disk where there is none. A disk that was there before
is not used until it is said what it is worth: without a flag it is made blank.
With --from-existing, what the disk on this node holds becomes the device's data
and goes to every peer: run it on one node only, with as many of the others
running as the device needs for its quorum.`,
		args: []string{"DEVICE", argDevice},
		do:   "create device %s", example: "lockstepctl device create r0 --from-existing",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&existing, "from-existing", false, "keep what the disk holds, and sync the peers from it")
		},
		run: a.act("device/create", func(args []string) (any, error) {
			return api.DeviceCreateParams{Device: args[0], FromExisting: existing}, nil
		}),
	})
}

func (a *app) devicePromote() *cobra.Command {
	var force, yes bool
	limit := int64(0)
	ask := a.act("device/promote", func(args []string) (any, error) {
		return api.DevicePromoteParams{Device: args[0], Force: force, TimeoutMS: limit}, nil
	})
	send := func(ctx context.Context, args []string) error {
		limit = a.daemonTime()
		err := ask(ctx, args)
		if limit > 0 && hasCode(err, api.CodeInvalidParams) {
			// By an older daemon, which knows no limit, and has done nothing: it is asked
			// without, and waits as long as it always did.
			limit = 0
			err = ask(ctx, args)
		}
		return err
	}
	return a.command(verb{
		use: "promote DEVICE", short: "take the primary role",
		long: `Makes the device primary on this node, so that it can be written here. Refused
while a peer is primary, without quorum, or where newer data is out of reach.
With --force it is done nevertheless: writes that only unreachable nodes have are
given up, and those nodes will have to discard theirs when they come back: see
"lockstepctl device resolve". Without quorum reads and writes wait, or fail, all the
same: where the other nodes are lost for good, set a lower quorum in the
configuration and reload it. Where they were taken out of the configuration, --force
lets the disks in reach count without having met them, on a primary, too.`,
		args: []string{"DEVICE", argDevice},
		do:   "promote %s", example: "lockstepctl device promote r0", complete: completeDevices,
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&force, "force", false, "promote even where writes may be lost; asks first")
			yesFlag(f, &yes)
		},
		run: func(ctx context.Context, args []string) error {
			if force {
				if err := a.confirm(yes, fmt.Sprintf("Forcing %s to primary gives up every write that only unreachable nodes have.", args[0])); err != nil {
					return err
				}
			}
			return send(ctx, args)
		},
	})
}

func (a *app) deviceInvalidate() *cobra.Command {
	var yes bool
	send := a.act("device/invalidate", deviceParams)
	return a.command(verb{
		use: "invalidate DEVICE", short: "declare the local data wrong and fetch all of it from a peer",
		long: "Declares this node's copy of the device wrong: it is fetched from a peer as a whole.\nRefused where no peer has good data.",
		args: []string{"DEVICE", argDevice},
		do:   "invalidate %s", example: "lockstepctl device invalidate r0 --yes", complete: completeDevices,
		flags: func(f *pflag.FlagSet) { yesFlag(f, &yes) },
		run: func(ctx context.Context, args []string) error {
			if err := a.confirm(yes, fmt.Sprintf("This node's copy of %s will be overwritten by a peer's.", args[0])); err != nil {
				return err
			}
			return send(ctx, args)
		},
	})
}

func (a *app) deviceResize() *cobra.Command {
	return a.command(verb{
		use: "resize DEVICE SIZE", short: "make a device larger",
		long: "Makes a device larger on every node, while it is in use. All nodes have to be in\nreach, with room on their disks; the new space is zero. Run it on a node that has a\ndisk. Clients see it when they connect again. A device is never made smaller.",
		args: []string{"DEVICE", argDevice, "SIZE", "bytes, or a whole number with KiB, MiB, GiB or TiB"},
		do:   "resize %s", example: "lockstepctl device resize r0 20GiB", complete: completeDevices,
		run: a.act("device/resize", func(args []string) (any, error) {
			size, err := parseSize(args[1])
			return api.DeviceResizeParams{Device: args[0], Size: size}, err
		}),
	})
}

func (a *app) deviceResolve() *cobra.Command {
	var keep, discard, yes bool
	choice := api.DeviceResolveParams{}
	send := a.act("device/resolve", func([]string) (any, error) { return choice, nil })
	return a.command(verb{
		use: "resolve DEVICE", short: "end a split brain",
		long: `Ends a split brain, where two nodes wrote to the device without each other: one
side's data is kept, the blocks the other side changed are overwritten with it.
Run it with --discard-local on the node whose data is to go, or with --keep-local
on the node whose data is to stay. That cannot be one whose resync is not complete:
its data is in part what it was, and in part what it is to become.`,
		args: []string{"DEVICE", argDevice},
		do:   "resolve the split brain of %s", example: "lockstepctl device resolve r0 --discard-local", complete: completeDevices,
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&keep, "keep-local", false, "this node's data stays, the peers' changes go")
			f.BoolVar(&discard, "discard-local", false, "the peers' data stays, this node's changes go")
			yesFlag(f, &yes)
		},
		run: func(ctx context.Context, args []string) error {
			if keep == discard {
				return badArgument("one of --keep-local and --discard-local is needed")
			}
			choice = api.DeviceResolveParams{Device: args[0], Choice: api.KeepLocal}
			loser := "the peers"
			if discard {
				choice.Choice, loser = api.DiscardLocal, "this node"
			}
			if err := a.confirm(yes, fmt.Sprintf("What %s wrote to %s since the split will be lost.", loser, args[0])); err != nil {
				return err
			}
			return send(ctx, args)
		},
	})
}

func (a *app) deviceHandshake() *cobra.Command {
	var dry bool
	return a.command(verb{
		use: "handshake DEVICE NODE", short: "tell what a handshake with a peer would decide",
		long: "Tells what this node and a peer would decide about the device if they met now: who\nwould sync from whom, how much, and by which rule. Nothing is done.",
		args: []string{"DEVICE", argDevice, "NODE", argNode},
		do:   "try the handshake of %s", example: "lockstepctl device handshake r0 beta", complete: completeDeviceThenNode,
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&dry, "dry-run", true, "decide without doing; there is no other way")
		},
		run: func(ctx context.Context, args []string) error {
			if !dry {
				return badArgument("a handshake is done by connecting: lockstepctl node reconnect NODE")
			}
			return a.ask("device/handshake", func(args []string) (any, error) {
				return api.DevicePeerParams{Device: args[0], Node: args[1]}, nil
			}, as(render.Handshake))(ctx, args)
		},
	})
}
