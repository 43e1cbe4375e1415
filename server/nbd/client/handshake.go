package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// maxOptReply bounds the data of an option reply.
const maxOptReply = 64 << 10

// Handshake is the first phase of a connection, one option at a time. It is
// for programs that want to see or to break its rules; New uses it, too.
type Handshake struct {
	nc    net.Conn
	flags uint16 // of the server
}

// OptReply is a server's reply to an option.
type OptReply struct {
	Rep  proto.Rep
	Data []byte
}

// OptError is the refusal of an option.
type OptError struct {
	Option proto.Option
	Rep    proto.Rep
	Text   string // of the server, may be empty
}

func (e *OptError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("%v: %v", e.Option, e.Rep)
	}
	return fmt.Sprintf("%v: %v: %s", e.Option, e.Rep, e.Text)
}

// Greet reads the server's greeting and answers it with flags.
func Greet(nc net.Conn, flags uint32) (*Handshake, error) {
	var b [proto.GreetingSize]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		return nil, fmt.Errorf("reading the greeting: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != proto.MagicServer || binary.BigEndian.Uint64(b[8:]) != proto.MagicOption {
		return nil, proto.ErrMagic
	}
	if _, err := nc.Write(binary.BigEndian.AppendUint32(nil, flags)); err != nil {
		return nil, fmt.Errorf("answering the greeting: %w", err)
	}
	return &Handshake{nc, binary.BigEndian.Uint16(b[16:])}, nil
}

// Option sends an option and returns the replies to it; the last one is an
// ACK or an error.
func (h *Handshake) Option(o proto.Option, data []byte) ([]OptReply, error) {
	if _, err := h.nc.Write(proto.AppendOption(nil, o, data)); err != nil {
		return nil, fmt.Errorf("sending %v: %w", o, err)
	}
	var all []OptReply
	for {
		r, err := h.reply(o)
		if err != nil {
			return all, fmt.Errorf("reading the reply to %v: %w", o, err)
		}
		all = append(all, r)
		if r.Rep == proto.RepAck || r.Rep.IsError() {
			return all, nil
		}
	}
}

func (h *Handshake) reply(o proto.Option) (OptReply, error) {
	var b [proto.OptReplySize]byte
	if _, err := io.ReadFull(h.nc, b[:]); err != nil {
		return OptReply{}, err
	}
	r, err := proto.ParseOptReply(b[:])
	switch {
	case err != nil:
		return OptReply{}, err
	case r.Option != o:
		return OptReply{}, fmt.Errorf("it is for %v", r.Option)
	case r.Len > maxOptReply:
		return OptReply{}, fmt.Errorf("it has %d bytes", r.Len)
	}
	data := make([]byte, r.Len)
	_, err = io.ReadFull(h.nc, data)
	return OptReply{r.Rep, data}, err
}

// do is Option with a refusal as an error.
func (h *Handshake) do(o proto.Option, data []byte) ([]OptReply, error) {
	all, err := h.Option(o, data)
	if err != nil {
		return nil, err
	}
	if last := all[len(all)-1]; last.Rep.IsError() {
		return nil, &OptError{o, last.Rep, string(last.Data)}
	}
	return all[:len(all)-1], nil
}

// List asks for the names of the exports.
func (h *Handshake) List() ([]string, error) {
	replies, err := h.do(proto.OptList, nil)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, r := range replies {
		f := proto.NewFields(r.Data)
		if name := f.Text(); f.OK() && r.Rep == proto.RepServer {
			names = append(names, name)
		}
	}
	return names, nil
}

// Abort ends the handshake in good order.
func (h *Handshake) Abort() error {
	_, err := h.do(proto.OptAbort, nil)
	return errors.Join(err, h.nc.Close())
}

// StructuredReply asks for replies in chunks.
func (h *Handshake) StructuredReply() error {
	_, err := h.do(proto.OptStructuredReply, nil)
	return err
}

// SetMetaContext asks for the base:allocation context of an export and
// returns its id.
func (h *Handshake) SetMetaContext(export string) (uint32, error) {
	data := binary.BigEndian.AppendUint32(proto.AppendString(nil, export), 1)
	replies, err := h.do(proto.OptSetMetaContext, proto.AppendString(data, proto.ContextAllocation))
	if err != nil {
		return 0, err
	}
	for _, r := range replies {
		if r.Rep == proto.RepMetaContext && len(r.Data) > 4 && string(r.Data[4:]) == proto.ContextAllocation {
			return binary.BigEndian.Uint32(r.Data), nil
		}
	}
	return 0, errors.New("the server does not offer " + proto.ContextAllocation)
}

// Export is what a server says of an export.
type Export struct {
	Name, Description        string // empty if it does not say
	Size                     int64
	Flags                    proto.TransFlags
	MinBlock, Preferred, Max uint32 // 0 if it does not say
}

// Info describes an export without opening it.
func (h *Handshake) Info(export string) (Export, error) { return h.info(proto.OptInfo, export) }

// Go opens an export and enters the transmission phase.
func (h *Handshake) Go(export string) (Export, error) { return h.info(proto.OptGo, export) }

func (h *Handshake) info(o proto.Option, export string) (Export, error) {
	data := proto.AppendString(nil, export)
	asked := []proto.Info{proto.InfoName, proto.InfoDescription, proto.InfoBlockSize}
	data = binary.BigEndian.AppendUint16(data, uint16(len(asked)))
	for _, t := range asked {
		data = binary.BigEndian.AppendUint16(data, uint16(t))
	}
	replies, err := h.do(o, data)
	if err != nil {
		return Export{}, err
	}
	var e Export
	for _, r := range replies {
		if r.Rep == proto.RepInfo && !e.item(proto.NewFields(r.Data)) {
			return e, fmt.Errorf("malformed reply to %v", o)
		}
	}
	if e.Flags&proto.HasFlags == 0 {
		return e, fmt.Errorf("the reply to %v lacks the export's size and flags", o)
	}
	return e, nil
}

func (e *Export) item(f *proto.Fields) bool {
	switch t := proto.Info(f.Uint16()); t {
	case proto.InfoExport:
		e.Size, e.Flags = int64(f.Uint64()), proto.TransFlags(f.Uint16())
	case proto.InfoName:
		e.Name = string(f.Rest())
	case proto.InfoDescription:
		e.Description = string(f.Rest())
	case proto.InfoBlockSize:
		e.MinBlock, e.Preferred, e.Max = f.Uint32(), f.Uint32(), f.Uint32()
	}
	return f.OK()
}

// ExportName opens an export the old way, for which there is no refusal: the
// server hangs up. padded says that the client's flags lacked NoZeroes.
func (h *Handshake) ExportName(export string, padded bool) (Export, error) {
	if _, err := h.nc.Write(proto.AppendOption(nil, proto.OptExportName, []byte(export))); err != nil {
		return Export{}, err
	}
	b := make([]byte, 10, 10+proto.ExportPadding)
	if padded {
		b = b[:cap(b)]
	}
	if _, err := io.ReadFull(h.nc, b); err != nil {
		return Export{}, fmt.Errorf("reading the reply to %v: %w", proto.OptExportName, err)
	}
	f := proto.NewFields(b)
	return Export{Size: int64(f.Uint64()), Flags: proto.TransFlags(f.Uint16())}, nil
}
