package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

const argMetadata = "a device's name; with --offline, the path of a metadata file (DEVICE.meta in the state dir)"

func (a *app) deviceDumpMD() *cobra.Command {
	return a.metadataVerb("dump-md", "show %s's metadata", "show what a device's metadata on this node says",
		`Shows what the metadata of a device on this node says: superblock, generations, what
is out of sync with each peer, what the activity log would have resynced after a
crash. Nothing is changed.`,
		func(_ context.Context, raw json.RawMessage) error {
			return a.show("device/dump-md", raw, as(render.Metadata))
		})
}

func (a *app) deviceCheck() *cobra.Command {
	return a.metadataVerb("check", "check %s's metadata", "check a device's metadata on this node",
		`Reads the metadata of a device on this node and says what is wrong with it. It fails
where there is something. Nothing is changed.`,
		func(_ context.Context, raw json.RawMessage) error {
			var m api.Metadata
			if err := json.Unmarshal(raw, &m); err != nil {
				return err
			}
			if len(m.Problems) > 0 {
				return errors.New(m.Path + ": " + strings.Join(m.Problems, "; "))
			}
			return a.show("device/dump-md", raw, func(render.Options, json.RawMessage) (string, error) {
				return "metadata " + m.Path + " is sound\n", nil
			})
		})
}

// metadataVerb is a verb about metadata, which a daemon reads, or with
// --offline the program itself.
func (a *app) metadataVerb(name, do, short, long string, show func(context.Context, json.RawMessage) error) *cobra.Command {
	var offline bool
	return a.command(verb{
		use: name + " DEVICE", short: short,
		long: long + "\nWith --offline no daemon need run: the file is read by \"lockstepd --dump-md\".",
		args: []string{"DEVICE", argMetadata},
		do:   do, complete: completeDevices,
		example: "lockstepctl device " + name + " r0\nlockstepctl device " + name + " --offline /var/lib/lockstep/r0.meta",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&offline, "offline", false, "DEVICE is the path of a metadata file; ask no daemon")
		},
		run: func(ctx context.Context, args []string) error {
			raw, err := a.metadata(ctx, args[0], offline)
			if err != nil {
				return err
			}
			return show(ctx, raw)
		},
	})
}

func (a *app) metadata(ctx context.Context, of string, offline bool) (json.RawMessage, error) {
	if !offline {
		return a.call(ctx, "device/dump-md", api.DeviceParams{Device: of})
	}
	return a.Inspect(ctx, of)
}
