package wire

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// raw is a payload that is its own encoding.
type raw []byte

func (r raw) Append(dst []byte) []byte { return append(dst, r...) }
func (r raw) Decode([]byte) error      { return nil }

// deviceFrames is one example of every device frame.
func deviceFrames() []struct {
	name string
	h    Header
	p    payload
} {
	facts := deviceMessages()["facts"]()
	whole := deviceMessages()["whole facts"]()
	state := deviceMessages()["state"]()
	gen := deviceMessages()["generation"]()
	change := deviceMessages()["change"]()
	length := raw{0, 0, 1, 0, 0, 0, 0, 0}
	runs := raw(AppendRun(AppendRun(nil, 16, 3), 4, 1))
	at := [3]uint64{65536, 7, 5}
	return []struct {
		name string
		h    Header
		p    payload
	}{
		{"write", Header{Type: Write, Dev: 3, Seq: 9, Arg: at, Flags: FlagRecvAck}, raw("data")},
		{"zero", Header{Type: Zero, Dev: 3, Seq: 10, Arg: at, Flags: FlagTrim}, length},
		{"flush", Header{Type: FlushReq, Dev: 3, Seq: 11, Arg: [3]uint64{2, 5}}, nil},
		{"read", Header{Type: ReadReq, Dev: 3, Seq: 12, Arg: [3]uint64{4096, 1, 4096}}, nil},
		{"read-reply", Header{Type: ReadReply, Dev: 4, Seq: 13, Arg: [3]uint64{4096, 1, 4}}, raw("data")},
		{"sync-request", Header{Type: SyncReq, Dev: 3, Seq: 14, Arg: [3]uint64{0, 2, 4096}}, length},
		{"sync-data", Header{Type: SyncData, Dev: 4, Seq: 15, Arg: [3]uint64{0, 2, 4096}, Flags: FlagTrim}, nil},
		{"bits", Header{Type: Bits, Dev: 3, Seq: 16, Arg: [3]uint64{1, 0}}, runs},
		{"marks", Header{Type: Marks, Dev: 3, Seq: 17, Arg: [3]uint64{2, 0}}, runs},
		{"new-generation", Header{Type: NewGen, Dev: 3, Seq: 18}, gen},
		{"receivers", Header{Type: Receivers, Dev: 3, Seq: 19, Arg: [3]uint64{6, 7, 99}}, nil},
		{"write-ack", Header{Type: WriteAck, Dev: 4, Seq: 20, AckData: 10, Arg: [3]uint64{7, 2}}, nil},
		{"recv-ack", Header{Type: RecvAck, Dev: 4, Seq: 21, Arg: [3]uint64{7, 1}}, nil},
		{"write-nak", Header{Type: WriteNak, Dev: 4, Seq: 22, Arg: [3]uint64{7}}, nil},
		{"flush-ack", Header{Type: FlushAck, Dev: 4, Seq: 23, Arg: [3]uint64{2}}, nil},
		{"sync-ack", Header{Type: SyncAck, Dev: 3, Seq: 24, Arg: [3]uint64{0, 2, 4096}, Flags: FlagError}, nil},
		{"device-hello", Header{Type: DevHello, Seq: 25}, facts},
		{"device-state", Header{Type: DevState, Dev: 4, Seq: 26}, state},
		{"device-closed", Header{Type: DevClosed, Dev: 4, Seq: 27}, raw("shut down")},
		{"prepare", Header{Type: Prepare, Dev: 4, Seq: 28}, change},
		{"vote", Header{Type: Vote, Dev: 4, Seq: 29}, change},
		{"commit", Header{Type: Commit, Dev: 4, Seq: 30}, change},
		{"abort", Header{Type: Abort, Dev: 4, Seq: 31}, change},
		{"peer-floor", Header{Type: PeerFloor, Dev: 4, Seq: 32, Arg: [3]uint64{6}}, nil},
		{"new-generation-ack", Header{Type: NewGenAck, Dev: 4, Seq: 33, Arg: [3]uint64{1}}, nil},
		{"sync-done", Header{Type: SyncDone, Dev: 4, Seq: 34}, facts},
		{"device-agree", Header{Type: DevAgree, Dev: 4, Seq: 35, Arg: [3]uint64{1, 2, 3}}, nil},
		{"verify", Header{Type: VerifyReq, Dev: 4, Seq: 39, Arg: [3]uint64{8192, 7, 4096}}, raw("\x00\x00\x00\x00\x00\x00\x00\x000123456789abcdef")},
		{"verify-reply", Header{Type: VerifyReply, Dev: 4, Seq: 40, Arg: [3]uint64{8192, 7, 5}}, raw("\x01\x00\x00\x00\x00\x00\x00\x00")},
		{"facts-request", Header{Type: FactsReq, Dev: 4, Seq: 41, Arg: [3]uint64{9}}, nil},
		{"facts", Header{Type: FactsReply, Dev: 4, Seq: 42, Arg: [3]uint64{9}}, facts},
		{"whole-device-hello", Header{Type: DevHello, Seq: 43}, whole},
		{"sync-hold", Header{Type: SyncHold, Dev: 4, Seq: 38, Arg: [3]uint64{1}}, nil},
		{"generation-commit", Header{Type: GenCommit, Dev: 4, Seq: 36, Arg: [3]uint64{1}}, nil},
		{"generation-done", Header{Type: GenDone, Dev: 4, Seq: 37, Arg: [3]uint64{1}}, nil},
		{"stay-request", Header{Type: StayReq, Dev: 4, Seq: 45, Arg: [3]uint64{2, 3}}, nil},
		{"stay-ack", Header{Type: StayAck, Dev: 3, Seq: 46, Arg: [3]uint64{3, 2}}, nil},
		{"agreement-began", Header{Type: Began, Dev: 3, Seq: 44, Arg: [3]uint64{2, 3}}, nil},
	}
}

// TestDeviceFramesOnTheWireNeverChange compares every device frame with the
// bytes that a released version has sent, and misses none.
func TestDeviceFramesOnTheWireNeverChange(t *testing.T) {
	path := filepath.Join("testdata", "device.hex")
	if *update {
		var out bytes.Buffer
		fmt.Fprintln(&out, "# One example of every device frame: name, header and payload in hex.")
		for _, f := range deviceFrames() {
			fmt.Fprintf(&out, "%s %x\n", f.name, encode(f.h, f.p))
		}
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden := readCorpus(t, path)
	seen := map[Type]bool{}
	for _, f := range deviceFrames() {
		seen[f.h.Type] = true
		want := golden[f.name]
		if got := encode(f.h, f.p); !bytes.Equal(got, want) {
			t.Errorf("%s is encoded as\n%x, want\n%x", f.name, got, want)
		}
		var h Header
		if err := h.Decode(want[:HeaderSize], MinVersion); err != nil {
			t.Errorf("%s: %v", f.name, err)
		} else if err := h.CheckPayload(want[HeaderSize:]); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
	}
	for typ := Type(32); typ < 128; typ++ {
		if _, known := typ.MaxPayload(); known && !seen[typ] {
			t.Errorf("%v is not in the corpus", typ)
		}
	}
}
