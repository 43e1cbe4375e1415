package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
)

type message interface {
	Append([]byte) []byte
	Decode([]byte) error
}

func deviceMessages() map[string]func() message {
	return map[string]func() message{
		"facts": func() message {
			return &DeviceFacts{Name: "r0", No: 3, Handle: 7, Role: 1, Disk: 7, Flags: 0x105, Protocol: 'C', Size: 1 << 30,
				Members: 7, Config: 99, Dirty: 12, Stream: 1, Received: 2, Current: 4, Base: 4, Seen: 6, Noted: 7,
				Bitmap: [Slots]uint64{1: 9}, History: [Slots]uint64{0: 8}}
		},
		"whole facts": func() message {
			return &DeviceFacts{Name: "r0", No: 3, Handle: 7, Whole: true, Origin: 5, Votes: [Slots]uint32{0: 2, 2: 1}}
		},
		"state": func() message {
			return &DeviceState{Role: 1, Disk: 7, Flags: 8, Stream: 1, Current: 2, Receives: 6, InSync: 6, Sees: 7, Primary: NoNode}
		},
		"generation": func() message { return &Generation{No: 1, Old: 4, New: 5, Away: 2, Stream: 9} },
		"change": func() message {
			return &Change{Tx: 1, Kind: ChangeResize, Node: 2, Again: true, Arg: 1 << 40, Reason: "busy"}
		},
	}
}

func TestDeviceMessagesRoundTripAndRefuseAnyOtherLength(t *testing.T) {
	for name, mk := range deviceMessages() {
		t.Run(name, func(t *testing.T) {
			want := mk().Append(nil)
			m := mk()
			if err := m.Decode(want); err != nil {
				t.Fatal(err)
			}
			if got := m.Append(nil); !bytes.Equal(got, want) {
				t.Fatalf("round trip: %x, want %x", got, want)
			}
			for n := range want {
				if f, ok := m.(*DeviceFacts); ok && f.Whole && n == len(want)-8-4*Slots {
					continue // what a node without FeatureVotes says
				}
				if err := mk().Decode(want[:n]); !errors.Is(err, ErrPayload) {
					t.Fatalf("%d of %d bytes: %v, want ErrPayload", n, len(want), err)
				}
			}
			if err := mk().Decode(append(bytes.Clone(want), 0)); !errors.Is(err, ErrPayload) {
				t.Fatalf("a byte too many: %v, want ErrPayload", err)
			}
		})
	}
}

func TestRunsRefuseWhatLiesBeyondTheDevice(t *testing.T) {
	const size = 16 * block.Unit
	ok := AppendRun(AppendRun(nil, 2, 3), 1, 10)
	var got []block.Extent
	end, err := Runs(ok, 0, size, func(e block.Extent) { got = append(got, e) })
	if err != nil || end != 16 || len(got) != 2 || got[1] != (block.Extent{Off: 6 * block.Unit, Len: 10 * block.Unit}) {
		t.Fatalf("%v, end %d, %v", got, end, err)
	}
	for name, p := range map[string][]byte{
		"past the end": AppendRun(nil, 10, 7),
		"empty run":    AppendRun(nil, 0, 0),
		"overflow":     AppendRun(nil, 1<<63, 1<<63),
		"half":         {1},
	} {
		if _, err := Runs(p, 0, size, func(block.Extent) {}); !errors.Is(err, ErrPayload) {
			t.Errorf("%s: %v, want ErrPayload", name, err)
		}
	}
}

func FuzzDevicePayloads(f *testing.F) {
	for _, mk := range deviceMessages() {
		f.Add(mk().Append(nil))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, mk := range deviceMessages() {
			m := mk()
			if m.Decode(p) == nil && !bytes.Equal(m.Append(nil), p) {
				t.Fatalf("%T accepts %x but encodes it differently", m, p)
			}
		}
		const size = 1 << 30
		last := int64(0)
		_, _ = Runs(p, 0, size, func(e block.Extent) {
			if e.Off < last || e.Len <= 0 || e.End() > size {
				t.Fatalf("run %v after %d", e, last)
			}
			last = e.End()
		})
	})
}
