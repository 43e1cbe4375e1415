package wire

import (
	"strconv"

	"github.com/lockstepd/lockstep/server/block"
)

// Type is what a frame is.
type Type uint8

// Frame types. Numbers are never reused. The range 1 to 31 belongs to the
// session (handshake, acks, liveness), 32 to 95 to devices.
const (
	// Session frames, Dev 0.
	Hello     Type = 1 // dialer → acceptor, first frame of a link
	Challenge Type = 2
	Proof     Type = 3
	Welcome   Type = 4
	Refuse    Type = 5 // the last frame of a link that is turned down; payload: code and reason
	Ping      Type = 6 // Arg: sender's clock ns, T in ms, I
	Pong      Type = 7 // Arg[0]: the ping's clock
	SessAck   Type = 8 // nothing but the header's acks
	Goodbye   Type = 9 // orderly end of the session; payload: reason
	TickSet   Type = 10
	NodeMsg   Type = 11 // node-level message of the cluster

	// Device frames on the data link.
	Write     Type = 32 // Arg: offset, device sequence, floor
	Zero      Type = 33 // Arg: offset, device sequence, floor; payload: length (8 bytes)
	FlushReq  Type = 34 // Arg: flush number, device sequence it follows
	ReadReq   Type = 35 // Arg: offset, request id, length
	ReadReply Type = 36 // Arg: offset, request id, length; FlagError: no payload
	SyncReq   Type = 37 // Arg: offset, request id, length: target asks source for current content
	SyncData  Type = 38 // Arg: offset, request id, length; no payload and FlagTrim: zeroes
	Bits      Type = 39 // dirty bitmap of the sender, a run list; Arg[0]: 1 = last; Arg[2]: bit 0: 0 = the target asks to be served, 1 = the source serves; above: the number of the asking, of the target's choice
	Marks     Type = 42 // Arg: node, first unit; a run list: that node may lack these, though it was sent them
	NewGen    Type = 43 // Arg[0]: origin; new generation of the primary; on the data link so that it precedes its writes
	Receivers Type = 44 // Arg: nodes that get the writes that follow, nodes in sync, stream; upper halves of the first two: the roll

	VerifyReq   Type = 45 // Arg: offset, request id, length; payload: a sequence, and the checksums of the blocks
	VerifyReply Type = 46 // Arg: offset, request id, sequence; payload: which blocks differ (8 bytes); FlagError: not compared
	Began       Type = 47 // Arg: my hello number, yours: what follows on this link is of the agreement on those

	// Device frames on the meta link.
	WriteAck   Type = 64 // Arg: first device sequence, count, flags word: written
	RecvAck    Type = 65 // Arg: first device sequence, count: received
	WriteNak   Type = 66 // Arg: device sequence; from the primary: it is not sent again, and no complete disk has it
	FlushAck   Type = 67 // Arg: flush number; FlagError: failed
	SyncAck    Type = 68 // Arg: offset, request id, length: written at the target, but for what was overtaken; FlagError: nothing of it
	DevHello   Type = 69 // device handshake, first of a device on a session; Dev 0
	DevState   Type = 70 // the sender's facts about the device
	DevClosed  Type = 71 // the sender no longer has the device; payload: reason
	Prepare    Type = 72 // two-phase change of role or generation
	Vote       Type = 73
	Commit     Type = 74
	Abort      Type = 75
	PeerFloor  Type = 76 // Arg[0]: every write up to this sequence is on all that are in sync
	NewGenAck  Type = 77 // Arg[0]: the generation was persisted
	SyncDone   Type = 79 // the target has it all
	FactsReq   Type = 84 // Arg[0]: request id: what would a hello say?
	FactsReply Type = 85 // Arg[0]: request id; payload: facts
	StayReq    Type = 86 // Arg: my hello number, yours: say when your disk stays complete until mine is
	StayAck    Type = 87 // Arg: my hello number, yours: it does
	SyncHold   Type = 83 // Arg[0]: 1: the sender wants the resync between the two to wait; 0: no longer
	GenCommit  Type = 81 // Arg: of the change, nodes whose disks are in it (0: all that were to be): every node that takes part has the generation
	GenDone    Type = 82 // Arg: of the change: noted durably
	DevAgree   Type = 80 // Arg: my hello number, yours, action: the handshake's end
)

// typeInfo is what the codec must know of a type before it trusts a length.
type typeInfo struct {
	name string
	max  uint32
	link Link
}

// The table is an array so that a lookup is one bounds check.
var types = [128]typeInfo{
	Hello:     {"hello", MaxControlPayload, Data},
	Challenge: {"challenge", MaxControlPayload, Data},
	Proof:     {"proof", MaxControlPayload, Data},
	Welcome:   {"welcome", MaxControlPayload, Data},
	Refuse:    {"refuse", MaxControlPayload, Data},
	Ping:      {"ping", MaxControlPayload, Meta},
	Pong:      {"pong", MaxControlPayload, Meta},
	SessAck:   {"session-ack", 0, Meta},
	Goodbye:   {"goodbye", MaxControlPayload, Meta},
	TickSet:   {"tick-set", MaxControlPayload, Meta},
	NodeMsg:   {"node-message", MaxControlPayload, Meta},

	Write:       {"write", MaxPayload, Data},
	Zero:        {"zero", 8, Data},
	FlushReq:    {"flush", 0, Data},
	ReadReq:     {"read", 0, Data},
	ReadReply:   {"read-reply", MaxPayload, Data},
	SyncReq:     {"sync-request", 64, Data},
	SyncData:    {"sync-data", MaxPayload, Data},
	Bits:        {"bits", MaxControlPayload, Data},
	Marks:       {"marks", MaxControlPayload, Data},
	NewGen:      {"new-generation", MaxControlPayload, Data},
	Receivers:   {"receivers", 0, Data},
	Began:       {"agreement-began", 0, Data},
	VerifyReq:   {"verify", MaxControlPayload, Data},
	VerifyReply: {"verify-reply", 8, Data},

	WriteAck:   {"write-ack", 0, Meta},
	RecvAck:    {"recv-ack", 0, Meta},
	WriteNak:   {"write-nak", 0, Meta},
	FlushAck:   {"flush-ack", 0, Meta},
	SyncAck:    {"sync-ack", 0, Meta},
	DevHello:   {"device-hello", MaxControlPayload, Meta},
	DevState:   {"device-state", MaxControlPayload, Meta},
	DevClosed:  {"device-closed", MaxControlPayload, Meta},
	Prepare:    {"prepare", MaxControlPayload, Meta},
	Vote:       {"vote", MaxControlPayload, Meta},
	Commit:     {"commit", MaxControlPayload, Meta},
	Abort:      {"abort", MaxControlPayload, Meta},
	PeerFloor:  {"peer-floor", 0, Meta},
	NewGenAck:  {"new-generation-ack", 0, Meta},
	SyncDone:   {"sync-done", MaxControlPayload, Meta},
	DevAgree:   {"device-agree", 0, Meta},
	FactsReq:   {"facts-request", 0, Meta},
	FactsReply: {"facts", MaxControlPayload, Meta},
	StayReq:    {"stay-request", 0, Meta},
	StayAck:    {"stay-ack", 0, Meta},
	SyncHold:   {"sync-hold", 0, Meta},
	GenCommit:  {"generation-commit", 0, Meta},
	GenDone:    {"generation-done", 0, Meta},
}

// MaxPayload is how long a payload of the type may be; false if the type is
// not known.
func (t Type) MaxPayload() (uint32, bool) {
	if int(t) >= len(types) || types[t].name == "" {
		return 0, false
	}
	return types[t].max, true
}

// Link is the link on which the type travels. Handshake frames travel on both.
func (t Type) Link() Link { return types[t&127].link }

func (t Type) String() string {
	if int(t) < len(types) && types[t].name != "" {
		return types[t].name
	}
	return "type(" + strconv.Itoa(int(t)) + ")"
}

// Frame is a received frame. Payload lies in Buf, which the handler retains
// if it needs the payload after it returned.
type Frame struct {
	Header
	Payload []byte
	Buf     *block.Buf
}
