package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

const argPrefix = "only keys that begin so"

func (a *app) cmapCommands() *cobra.Command {
	return a.group("cmap", "look at and change the object database",
		a.command(verb{
			use: "get KEY", short: "show the value of a key",
			long: "Shows a key with its type and value; with -q the value alone.",
			args: []string{"KEY", "a key, such as nodes.beta.state"},
			do:   "get %s", example: "lockstepctl cmap get -q nodes.beta.state", complete: completeKeys,
			run: a.ask("cmap/get", keyParams, a.showKey),
		}),
		a.command(verb{
			use: "set KEY TYPE VALUE", short: "set a key",
			long: "Sets a key. Values are validated by the same rules as the configuration file; a refused\none changes nothing. Flags come before KEY.",
			args: []string{
				"KEY", "a key, such as user.site",
				"TYPE", "i8 u8 i16 u16 i32 u32 i64 u64 flt dbl str bin",
				"VALUE", "the value",
			},
			do: "set %s", example: "lockstepctl cmap set user.site str north", complete: completeKeys, verbatim: true,
			run: a.act("cmap/set", func(args []string) (any, error) {
				return api.CmapSetParams{Key: args[0], Type: args[1], Value: args[2]}, nil
			}),
		}),
		a.command(verb{
			use: "delete KEY", short: "delete a key",
			long: "Deletes a key. Read-only keys are refused.",
			args: []string{"KEY", "a key, such as user.site"},
			do:   "delete %s", example: "lockstepctl cmap delete user.site", complete: completeKeys,
			run: a.act("cmap/delete", keyParams),
		}),
		a.command(verb{
			use: "dump [PREFIX]", short: "show all keys",
			long: "Shows every key with its type and value, sorted.",
			args: []string{"PREFIX", argPrefix},
			do:   "dump the object database", example: "lockstepctl cmap dump devices.", complete: completeKeys,
			run: a.ask("cmap/dump", prefixParams, as(render.Cmap)),
		}),
		a.command(verb{
			use: "track [PREFIX]", short: "show changes of keys as they happen",
			long: "Shows each change of a key as it happens, until interrupted. With -f json, one object a line.",
			args: []string{"PREFIX", argPrefix},
			do:   "track the object database", example: "lockstepctl cmap track nodes.", complete: completeKeys,
			run: a.track,
		}),
		a.command(verb{
			use: "load FILE", short: "apply a file of changes, all or none",
			long: "Applies lines KEY TYPE VALUE, ^KEY (delete the key) and ^^PREFIX (delete all keys that\nbegin so); empty lines and those that begin with # mean nothing. All of them are applied\nas one change, or none, and the error names the line.",
			args: []string{"FILE", "the file; - reads standard input"}, files: true,
			do: "apply %s", example: "lockstepctl cmap load keys.txt\nprintf '^^user.old.\\nuser.site str north\\n' | lockstepctl cmap load -",
			run: a.act("cmap/load", a.loadParams),
		}),
	)
}

// maxLoad bounds a file of changes: more than the daemon takes in one.
const maxLoad = 16 << 20

// loadParams are the text of a file of changes, or of standard input.
func (a *app) loadParams(args []string) (any, error) {
	in := io.NopCloser(a.In)
	if args[0] != "-" {
		f, err := a.Open(args[0])
		if err != nil {
			return nil, err
		}
		in = f
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxLoad+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxLoad {
		return nil, fmt.Errorf("it is larger than %d MiB", maxLoad>>20)
	}
	return api.CmapLoadParams{Lines: string(text)}, nil
}

func keyParams(args []string) (any, error) { return api.CmapKeyParams{Key: args[0]}, nil }

func prefixParams(args []string) (any, error) { return api.CmapPrefixParams{Prefix: arg(args, 0)}, nil }

// showKey shows a key; with -q its value alone, for scripts.
func (a *app) showKey(o render.Options, raw json.RawMessage) (string, error) {
	if a.opts.quiet {
		return as(func(_ render.Options, e api.CmapEntry) string { return render.CmapValue(e.Value) + "\n" })(o, raw)
	}
	return as(render.CmapEntry)(o, raw)
}

// track shows changes until interrupted. After a lost connection it says that
// changes may have been missed, since keys have no history.
func (a *app) track(ctx context.Context, args []string) error {
	params, _ := prefixParams(args)
	s := subscription{
		method: "cmap/track", params: func() any { return params },
		on: func(method string, raw json.RawMessage) (bool, error) {
			switch method {
			case "cmap":
				return true, a.show(method, raw, as(render.CmapChange))
			case "lost":
				return true, a.showLost(raw)
			}
			return true, nil
		},
		resumed: func(json.RawMessage) error {
			fmt.Fprintln(a.Err, "connected again; changes meanwhile were not seen")
			return nil
		},
	}
	return a.follow(ctx, s)
}
