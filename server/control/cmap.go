package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/cmap"
	"github.com/lockstepd/lockstep/server/reload"
)

func (c *Control) cmapCommands() []rpc.Command {
	return []rpc.Command{
		{Name: "cmap/get", Usage: "KEY", MinArgs: 1, MaxArgs: 1, Doc: "show a key of the object database", Do: rpc.Typed(c.cmapGet, entryText)},
		{Name: "cmap/set", Usage: "KEY TYPE VALUE", MinArgs: 3, MaxArgs: 3, Access: rpc.Admin, Deadline: applying, Doc: "set a key of the object database", Do: rpc.Typed(c.cmapSet, done)},
		{Name: "cmap/delete", Usage: "KEY", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Doc: "delete a key of the object database", Do: rpc.Typed(c.cmapDelete, done)},
		{Name: "cmap/dump", Usage: "[PREFIX]", MaxArgs: 1, Doc: "show all keys of the object database, or those that begin with PREFIX", Do: rpc.Typed(c.cmapDump, entriesText)},
		{Name: "cmap/track", Usage: "[PREFIX]", MaxArgs: 1, Doc: "send changes of keys to this connection as they happen", Do: rpc.Typed(c.cmapTrack, done)},
		{Name: "cmap/load", Usage: "LINES", MinArgs: 1, MaxArgs: 1, Access: rpc.Admin, Deadline: applying, Doc: "apply lines \"KEY TYPE VALUE\", \"^KEY\", \"^^PREFIX\", all or none", Do: rpc.Typed(c.cmapLoad, done)},
	}
}

func entryOf(e cmap.Entry) api.CmapEntry {
	return api.CmapEntry{Key: e.Key, Type: string(e.Value.Type()), Value: e.Value.Any(), RO: e.RO}
}

// cmapError is an error of the object database with a code for scripts.
func cmapError(err error) error {
	code := 0
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cmap.ErrNotExist):
		code = api.CodeNotFound
	case errors.Is(err, cmap.ErrBadKey), errors.Is(err, cmap.ErrBadValue):
		code = api.CodeInvalidParams
	case errors.Is(err, cmap.ErrReadOnly), errors.Is(err, cmap.ErrFull):
		code = api.CodeInvalidState
	default:
		return configError(err)
	}
	return api.Errorf(code, "%s", err)
}

func (c *Control) cmapGet(_ context.Context, _ rpc.Actor, p api.CmapKeyParams) (api.CmapEntry, error) {
	v, err := c.o.Cmap.Get(p.Key)
	if err != nil {
		return api.CmapEntry{}, cmapError(err)
	}
	return entryOf(cmap.Entry{Key: p.Key, Value: v}), nil
}

func (c *Control) cmapSet(ctx context.Context, by rpc.Actor, p api.CmapSetParams) (api.Done, error) {
	v, err := cmap.ParseValue(p.Type, p.Value)
	if err == nil {
		err = c.o.Cmap.Set(reload.By(ctx, by.String()), p.Key, v)
	}
	if err != nil {
		return api.Done{}, cmapError(err)
	}
	return text("%s = %s", p.Key, v.Text())
}

func (c *Control) cmapDelete(ctx context.Context, _ rpc.Actor, p api.CmapKeyParams) (api.Done, error) {
	if err := c.o.Cmap.Delete(ctx, p.Key); err != nil {
		return api.Done{}, cmapError(err)
	}
	return text("deleted %s", p.Key)
}

func (c *Control) cmapLoad(ctx context.Context, by rpc.Actor, p api.CmapLoadParams) (api.Done, error) {
	ops, err := cmap.ParseBatch(p.Lines)
	if err == nil {
		err = c.o.Cmap.Apply(reload.By(ctx, by.String()), ops...)
	}
	if err != nil {
		return api.Done{}, cmapError(err)
	}
	return text("applied %d steps", len(ops))
}

func (c *Control) cmapDump(_ context.Context, _ rpc.Actor, p api.CmapPrefixParams) ([]api.CmapEntry, error) {
	out := []api.CmapEntry{}
	for _, e := range c.o.Cmap.Dump(p.Prefix) {
		out = append(out, entryOf(e))
	}
	return out, nil
}

// cmapTrack pushes changes to the connection until it closes.
func (c *Control) cmapTrack(ctx context.Context, by rpc.Actor, p api.CmapPrefixParams) (api.Done, error) {
	n, ok := rpc.NotifierFrom(ctx)
	if !ok {
		return api.Done{}, api.Errorf(api.CodeInvalidRequest, "changes can only be sent to a connection")
	}
	tr, err := c.o.Cmap.Track(p.Prefix, true)
	if err != nil {
		return api.Done{}, cmapError(err)
	}
	err = n.Go(func(ctx context.Context) {
		push(ctx, n, func(ctx context.Context) ([]*rpc.Notification, error) {
			ch, lost, err := tr.Next(ctx)
			switch {
			case err != nil:
				return nil, err
			case lost != nil:
				return note("lost", api.Lost{Count: lost.Count, From: lost.From, To: lost.To}), nil
			}
			return note("cmap", changeOf(ch)), nil
		})
	})
	if err != nil {
		return api.Done{}, err
	}
	return text("tracking %s*", p.Prefix)
}

func changeOf(ch cmap.Change) api.CmapChange {
	out := api.CmapChange{Key: ch.Key, Op: map[cmap.ChangeOp]string{cmap.Create: "added", cmap.Modify: "modified", cmap.Delete: "deleted"}[ch.Op]}
	if !ch.Old.IsZero() {
		out.Old = new(entryOf(cmap.Entry{Key: ch.Key, Value: ch.Old}))
	}
	if !ch.New.IsZero() {
		out.New = new(entryOf(cmap.Entry{Key: ch.Key, Value: ch.New}))
	}
	return out
}

func entryText(e api.CmapEntry) string { return e.Key + " (" + e.Type + ") = " + fmt.Sprint(e.Value) }

func entriesText(list []api.CmapEntry) string {
	lines := make([]string, len(list))
	for i, e := range list {
		lines[i] = entryText(e)
	}
	return strings.Join(lines, "\n")
}
