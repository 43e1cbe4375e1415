package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

const (
	// maxOption bounds the data of an option; longer ones are refused.
	maxOption = 64 << 10
	// allocationID is the id of the base:allocation context.
	allocationID = 1
)

// handshake is the state of the first phase: a loop of options.
type handshake struct {
	c   *conn
	nc  net.Conn
	out []byte // replies not yet sent

	noZeroes   bool   // the client does without padding
	structured bool   // agreed on
	context    bool   // base:allocation was agreed on, for the export metaFor
	metaFor    string // canonical
	done       bool   // an export is open: the transmission phase begins
}

// handshake greets the client and answers its options, until an export is
// open.
func (c *conn) handshake(ctx context.Context) error {
	h := &handshake{c: c, nc: c.nc}
	if err := h.deadline(); err != nil {
		return err
	}
	if err := h.greet(); err != nil {
		return err
	}
	for n := 0; !h.done; n++ {
		if n == c.limits.Options {
			return fmt.Errorf("%d options and still no export chosen", n)
		}
		if err := h.option(ctx); err != nil {
			return err
		}
	}
	return nil
}

// deadline gives the client the time of a whole handshake from now on, unless
// the connection is to be passed on.
func (h *handshake) deadline() error {
	limit := h.c.limits.Handshake
	if h.c.stop.Load() {
		limit = min(limit, h.c.limits.Grace)
	}
	return h.nc.SetDeadline(time.Now().Add(limit))
}

func (h *handshake) greet() error {
	b := binary.BigEndian.AppendUint64(nil, proto.MagicServer)
	b = binary.BigEndian.AppendUint64(b, proto.MagicOption)
	b = binary.BigEndian.AppendUint16(b, proto.FixedNewstyle|proto.NoZeroes)
	if _, err := h.nc.Write(b); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	var f [4]byte
	if _, err := io.ReadFull(h.nc, f[:]); err != nil {
		return fmt.Errorf("reading the client's flags: %w", err)
	}
	flags := binary.BigEndian.Uint32(f[:])
	if flags&^(proto.FixedNewstyle|proto.NoZeroes) != 0 {
		return fmt.Errorf("client flags %#x are not known", flags)
	}
	h.noZeroes = flags&proto.NoZeroes != 0
	return nil
}

// option reads an option and answers it.
func (h *handshake) option(ctx context.Context) error {
	var b [proto.OptionSize]byte
	if _, err := io.ReadFull(h.nc, b[:]); err != nil {
		return fmt.Errorf("reading an option: %w", err)
	}
	o, err := proto.ParseOption(b[:])
	if err != nil {
		return fmt.Errorf("option: %w", err)
	}
	if o.Len > maxOption {
		return h.skip(o)
	}
	data := make([]byte, o.Len)
	if _, err := io.ReadFull(h.nc, data); err != nil {
		return fmt.Errorf("reading the data of %v: %w", o.Option, err)
	}
	if err := h.answer(ctx, o.Option, data); err != nil {
		return err
	}
	return h.flush()
}

// skip refuses an option whose data is too long to be kept.
func (h *handshake) skip(o proto.OptionHeader) error {
	if o.Option == proto.OptExportName {
		return fmt.Errorf("an export name of %d bytes", o.Len)
	}
	if _, err := io.CopyN(io.Discard, h.nc, int64(o.Len)); err != nil {
		return fmt.Errorf("skipping the data of %v: %w", o.Option, err)
	}
	h.reply(o.Option, proto.RepErrTooBig, []byte("an option's data may be 64 KiB long"))
	return h.flush()
}

func (h *handshake) reply(o proto.Option, r proto.Rep, data []byte) {
	h.out = proto.AppendOptReply(h.out, o, r, data)
}

func (h *handshake) refuse(o proto.Option, r proto.Rep, text string) {
	h.reply(o, r, []byte(text[:min(len(text), proto.MaxString)]))
}

func (h *handshake) flush() error {
	if len(h.out) == 0 {
		return nil
	}
	_, err := h.nc.Write(h.out)
	h.out = h.out[:0]
	if err != nil {
		return fmt.Errorf("answering an option: %w", err)
	}
	return nil
}

func (h *handshake) answer(ctx context.Context, o proto.Option, data []byte) error {
	switch o {
	case proto.OptExportName:
		return h.exportName(ctx, data)
	case proto.OptGo, proto.OptInfo:
		return h.info(ctx, o, data)
	case proto.OptAbort:
		h.reply(o, proto.RepAck, nil)
		_ = h.flush() // the client may have left already
		return errBye
	case proto.OptList:
		h.list(data)
	case proto.OptStructuredReply:
		h.structuredReply(data)
	case proto.OptListMetaContext, proto.OptSetMetaContext:
		h.meta(o, data)
	default:
		h.refuse(o, proto.RepErrUnsup, o.String()+" is not supported")
	}
	return nil
}

func (h *handshake) list(data []byte) {
	if len(data) > 0 {
		h.refuse(proto.OptList, proto.RepErrInvalid, "LIST has no data")
		return
	}
	for _, name := range h.c.backend.List() {
		h.reply(proto.OptList, proto.RepServer, proto.AppendString(nil, name))
	}
	h.reply(proto.OptList, proto.RepAck, nil)
}

func (h *handshake) structuredReply(data []byte) {
	if len(data) > 0 {
		h.refuse(proto.OptStructuredReply, proto.RepErrInvalid, "STRUCTURED_REPLY has no data")
		return
	}
	h.structured = true
	h.reply(proto.OptStructuredReply, proto.RepAck, nil)
}

// exportName is the old way to choose an export: it cannot be refused but by
// hanging up.
func (h *handshake) exportName(ctx context.Context, data []byte) error {
	if len(data) > proto.MaxString {
		return fmt.Errorf("an export name of %d bytes", len(data))
	}
	if err := h.open(ctx, string(data)); err != nil {
		return fmt.Errorf("export %q: %w", data, err)
	}
	i := &h.c.info
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(i.Size))
	h.out = binary.BigEndian.AppendUint16(h.out, uint16(i.flags(h.structured)))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, proto.ExportPadding)...)
	}
	return nil
}

// info answers INFO, and GO, which opens the export besides.
func (h *handshake) info(ctx context.Context, o proto.Option, data []byte) error {
	f := proto.NewFields(data)
	name := f.Text()
	asked := make([]proto.Info, 0, 4)
	for n := int(f.Uint16()); n > 0 && f.OK(); n-- {
		asked = append(asked, proto.Info(f.Uint16()))
	}
	if !f.OK() || f.Left() != 0 {
		h.refuse(o, proto.RepErrInvalid, "malformed "+o.String())
		return nil
	}
	i, err := h.lookUp(name)
	if err == nil && o == proto.OptGo {
		if err = h.open(ctx, name); err == nil {
			i = h.c.info
		}
	}
	switch {
	case errors.Is(err, block.ErrDropped) || ctx.Err() != nil:
		return err
	case err != nil:
		h.refuse(o, refusal(err), err.Error())
		return nil
	}
	h.describe(o, &i, asked)
	return nil
}

// refusal is the kind of reply for an export that cannot be had.
func refusal(err error) proto.Rep {
	if errors.Is(err, ErrUnknownExport) {
		return proto.RepErrUnknown
	}
	return proto.RepErrPolicy
}

// describe sends what was asked, and what is always sent.
func (h *handshake) describe(o proto.Option, i *Info, asked []proto.Info) {
	item := func(t proto.Info) []byte { return binary.BigEndian.AppendUint16(nil, uint16(t)) }
	b := binary.BigEndian.AppendUint64(item(proto.InfoExport), uint64(i.Size))
	h.reply(o, proto.RepInfo, binary.BigEndian.AppendUint16(b, uint16(i.flags(h.structured))))
	seen := make(map[proto.Info]bool)
	for _, t := range asked {
		if seen[t] {
			continue
		}
		seen[t] = true
		switch t {
		case proto.InfoName:
			h.reply(o, proto.RepInfo, append(item(t), i.Name...))
		case proto.InfoDescription:
			if i.Description != "" {
				h.reply(o, proto.RepInfo, append(item(t), i.Description...))
			}
		case proto.InfoBlockSize:
			b := item(t)
			least, preferred, most := i.blockSizes()
			for _, v := range []uint32{least, preferred, most} {
				b = binary.BigEndian.AppendUint32(b, v)
			}
			h.reply(o, proto.RepInfo, b)
		}
	}
	h.reply(o, proto.RepAck, nil)
}

// lookUp describes the export that a client names. The empty name is the
// default export: the only one there is, if no export is called that.
func (h *handshake) lookUp(name string) (Info, error) {
	i, err := h.c.backend.Info(name)
	if err != nil && name == "" && errors.Is(err, ErrUnknownExport) {
		if all := h.c.backend.List(); len(all) == 1 {
			name = all[0]
			i, err = h.c.backend.Info(name)
		} else {
			err = fmt.Errorf("%w called \"\", and there are %d: name one", ErrUnknownExport, len(all))
		}
	}
	if i.Name == "" {
		i.Name = name
	}
	return i, err
}

// open opens an export: from now on the connection has one.
func (h *handshake) open(ctx context.Context, name string) error {
	i, err := h.lookUp(name)
	if err != nil {
		return err
	}
	c := h.c
	c.state = State{Export: i.Name, Structured: h.structured, Allocation: h.structured && h.context && h.metaFor == i.Name}
	err = c.open(ctx)
	h.done = err == nil
	return errors.Join(err, h.deadline()) // the wait for the backend was not the client's fault
}

// open opens the export that the state names, when nothing of connections to
// it that died is left. It gives up when the client does.
func (c *conn) open(ctx context.Context) error {
	c.sock = newSocket(c.nc)
	c.initPolling()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer c.watchWhileOpening(cancel)()

	if err := c.srv.exports.awaitDead(ctx, c.state.Export); err != nil {
		return err
	}
	handle, err := c.backend.Open(ctx, c.state.Export, c.client)
	if err != nil {
		return err
	}
	c.handle, c.info = handle, handle.Info()
	if c.info.Name == "" {
		c.info.Name = c.state.Export
	}
	c.srv.exports.enter(c.state.Export, c)
	return nil
}

// watchWhileOpening cancels if the client hangs up; the function returned ends
// the watch.
func (c *conn) watchWhileOpening(cancel context.CancelCauseFunc) func() {
	_ = c.nc.SetDeadline(time.Time{})
	if c.stop.Load() {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.limits.Grace))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c.sock.watch() || c.stop.Load() {
			cancel(errGone)
		}
	}()
	return func() {
		_ = c.nc.SetReadDeadline(time.Now())
		<-done
		_ = c.nc.SetReadDeadline(time.Time{})
	}
}

// meta answers LIST_META_CONTEXT and SET_META_CONTEXT. SET forgets what was
// agreed on before, even if it fails.
func (h *handshake) meta(o proto.Option, data []byte) {
	if o == proto.OptSetMetaContext {
		h.context = false
	}
	if !h.structured {
		h.refuse(o, proto.RepErrInvalid, "negotiate structured replies first")
		return
	}
	f := proto.NewFields(data)
	name := f.Text()
	n := f.Uint32()
	match := o == proto.OptListMetaContext && n == 0 && f.OK()
	for ; n > 0 && f.OK(); n-- {
		q := f.Text()
		match = match || q == proto.ContextAllocation || o == proto.OptListMetaContext && q == "base:"
	}
	if !f.OK() || f.Left() != 0 {
		h.refuse(o, proto.RepErrInvalid, "malformed "+o.String())
		return
	}
	i, err := h.lookUp(name)
	if err != nil {
		h.refuse(o, refusal(err), err.Error())
		return
	}
	if match {
		id := uint32(0)
		if o == proto.OptSetMetaContext {
			h.context, h.metaFor, id = true, i.Name, allocationID
		}
		h.reply(o, proto.RepMetaContext, append(binary.BigEndian.AppendUint32(nil, id), proto.ContextAllocation...))
	}
	h.reply(o, proto.RepAck, nil)
}
