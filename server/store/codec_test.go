package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSuperblockRoundTrip(t *testing.T) {
	s := &Superblock{
		Device: strings.Repeat("n", MaxDevice), NodeID: 31, Size: MaxSize, Created: time.Unix(1, 2).UTC(), Seq: 1 << 40,
		Current: 7, Flags: ^Flags(0), Members: ^uint32(0), Ext: bytes.Repeat([]byte{9}, MaxExtension),
		log: logSession{gen: 5, extent: maxLogExtent, slots: maxLogSlots},
	}
	for i := range Peers {
		s.Bitmap[i], s.History[i], s.PeerFlags[i] = uint64(i)<<32, uint64(i)<<40, PeerFlags(i)
	}
	var raw [sbBytes]byte
	s.encode(raw[:])
	got, err := decodeSuperblock(raw[:])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, got, cmp.AllowUnexported(Superblock{}, logSession{})); diff != "" {
		t.Error(diff)
	}
}

func TestPageRoundTripAndDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	p, id := new(page), pageID{slot: 7, index: 1 << 30}
	for range 300 {
		i := rng.IntN(pageUnits - 50)
		p.setRange(i, i+1+rng.IntN(50))
	}
	raw := make([]byte, pageBytes)
	p.encode(id, raw)
	got, damaged := decodePage(id, raw)
	if damaged != 0 || *got != *p {
		t.Fatalf("%d sectors damaged, %d bits of %d", damaged, got.set, p.set)
	}
	if _, damaged := decodePage(pageID{slot: 8, index: 1 << 30}, raw); damaged != pageSectors {
		t.Errorf("in another's place %d sectors are damaged", damaged)
	}
	raw[3*sectorBytes+17] ^= 1
	got, damaged = decodePage(id, raw)
	if damaged != 1 || got.find(3*sectorWords*64, false) < 4*sectorWords*64 {
		t.Errorf("%d sectors are damaged, and do not read as ones", damaged)
	}
	clear(raw)
	if got, damaged := decodePage(id, raw); got != nil || damaged != 0 {
		t.Errorf("zeroes are %v, %d damaged", got, damaged)
	}
	raw[sectorBytes-1] = 1
	if _, damaged := decodePage(id, raw); damaged != 1 {
		t.Error("a seal without a sector is taken")
	}
}

func TestLogBlockRoundTrip(t *testing.T) {
	b := &logBlock{gen: 1, seq: 9, durable: 8, sbSeq: 3, slots: 2000, start: 880}
	for i := range logUpdates {
		b.updates = append(b.updates, logUpdate{i * 30, uint32(i)})
	}
	for i := range logWindow {
		b.window = append(b.window, uint32(i)<<16)
	}
	raw := make([]byte, logBlockBytes)
	b.encode(raw)
	got, err := decodeLogBlock(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b, got, cmp.AllowUnexported(logBlock{}, logUpdate{})); diff != "" {
		t.Error(diff)
	}
}

// ringOf is a ring with blocks 1 to n, of which block i makes extent i hot in
// slot i-1.
func ringOf(g logSession, n uint64) []byte {
	ring := make([]byte, g.blocks()*logBlockBytes)
	state := slices.Repeat([]uint32{noExtent}, g.slots)
	for seq := uint64(1); seq <= n; seq++ {
		slot := int(seq-1) % g.slots
		state[slot] = uint32(seq)
		start := g.windowStart(seq)
		b := &logBlock{gen: g.gen, seq: seq, durable: seq - 1, slots: g.slots, start: start,
			updates: []logUpdate{{slot, uint32(seq)}}, window: state[start:min(start+logWindow, g.slots)]}
		b.encode(ring[g.place(seq)-logOff:])
	}
	return ring
}

func TestReplayRing(t *testing.T) {
	g := logSession{gen: 3, extent: DefaultExtentBytes, slots: DefaultExtents}
	newest := func(n, most uint64) []uint32 {
		var out []uint32
		for i := uint64(1); i <= n; i++ {
			if n-i < most {
				out = append(out, uint32(i))
			}
		}
		return out
	}
	spoil := func(seq uint64) func([]byte) {
		return func(ring []byte) { ring[g.place(seq)-logOff+1000] ^= 1 }
	}
	lose := func(seq uint64) func([]byte) {
		return func(ring []byte) { clear(ring[g.place(seq)-logOff:][:logBlockBytes]) }
	}
	tests := []struct {
		name   string
		n      uint64
		spoil  []func([]byte)
		hot    []uint32
		damage string
		torn   int
	}{
		{"empty", 0, nil, nil, "", 0},
		{"the first", 1, nil, newest(1, 100), "", 0},
		{"a few", 5, nil, newest(5, 99), "", 0},
		{"once around", uint64(g.blocks()), nil, newest(uint64(g.blocks()), 99), "", 0},
		{"often around", 3000, nil, newest(3000, DefaultExtents), "", 0},
		{"the last torn", 100, []func([]byte){spoil(100)}, newest(99, 99), "", 1},
		{"the last lost", 100, []func([]byte){lose(100)}, newest(99, 99), "", 0},
		{"the only one torn", 1, []func([]byte){spoil(1)}, nil, "", 1},
		{"the one before the last spoiled", 100, []func([]byte){spoil(99)}, nil, "block 99, which was durable, is gone", 0},
		{"the one before the last lost", 100, []func([]byte){lose(99)}, nil, "block 99, which was durable, is gone", 0},
		{"an old one spoiled", 100, []func([]byte){spoil(95)}, nil, "unreadable", 0},
		{"the oldest spoiled, as by a write begun", 100, []func([]byte){spoil(101 - uint64(g.blocks()))}, newest(100, 100), "", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ring := ringOf(g, tt.n)
			for _, f := range tt.spoil {
				f(ring)
			}
			st := replayRing(g, ring)
			if tt.damage != "" {
				if !strings.Contains(st.damage, tt.damage) {
					t.Errorf("damage %q, want %q", st.damage, tt.damage)
				}
				return
			}
			if st.damage != "" || st.torn != tt.torn || !slices.Equal(st.hot, tt.hot) {
				t.Errorf("damage %q, %d torn, hot %v, want %d torn, %v", st.damage, st.torn, st.hot, tt.torn, tt.hot)
			}
		})
	}
}

// memFile is as much of a File as migrations need.
type memFile struct {
	File
	data []byte
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, f.data[min(off, int64(len(f.data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// setLevel makes the file's only superblock one of another level and change.
func setLevel(f *memFile, level uint32, seq uint64) {
	raw := make([]byte, sbBytes)
	(&Superblock{Device: "r0", Size: 4096, Seq: seq, log: MetaOptions{}.session()}).encode(raw)
	binary.LittleEndian.PutUint32(raw[sbLevel:], level)
	binary.LittleEndian.PutUint32(raw[sbCRC:], superblockSum(raw))
	copy(f.data[sbPlace(seq):], raw)
}

func TestMigrationsLeadUpToTheLevel(t *testing.T) {
	step := func(from uint32, fail error) migration {
		return migration{from, func(f File) error {
			if fail == nil {
				setLevel(f.(*memFile), from+1, uint64(from)+1)
			}
			return fail
		}}
	}
	broken := errors.New("broken")
	tests := []struct {
		name  string
		level uint32
		list  []migration
		want  uint32
		err   string
	}{
		{"there already", 3, nil, 3, ""},
		{"one step", 2, []migration{step(1, nil), step(2, nil)}, 3, ""},
		{"all steps", 1, []migration{step(1, nil), step(2, nil)}, 3, ""},
		{"newer", 4, []migration{step(1, nil)}, 4, "run that version"},
		{"a failing step", 1, []migration{step(1, nil), step(2, broken)}, 2, "from format level 2 to the next: broken"},
		{"a step that does nothing", 2, []migration{{2, func(File) error { return nil }}}, 2, "it is at 2"},
		{"a missing step", 1, []migration{step(2, nil)}, 1, "never was"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &memFile{data: make([]byte, logOff)}
			setLevel(f, tt.level, 1)
			err := migrate(f, "r0.meta", 3, tt.list)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v", err)
			}
			if got, _ := fileLevel(f, "r0.meta"); got != tt.want {
				t.Errorf("level %d, want %d", got, tt.want)
			}
		})
	}
	if err := migrate(&memFile{}, "r0.meta", Level, migrations()); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

// patched is a copy of valid with a patch somewhere: it keeps what a fuzzer has
// to find small.
func patched(valid []byte, off uint16, patch []byte) []byte {
	out := bytes.Clone(valid)
	copy(out[int(off)%len(out):], patch)
	return out
}

func FuzzDecodeSuperblock(f *testing.F) {
	valid := make([]byte, sbBytes)
	(&Superblock{Device: "r0", Size: 4096, Seq: 1, Ext: []byte{1}, log: MetaOptions{}.session()}).encode(valid)
	f.Add(uint16(sbNameLen), []byte{255, 255, 255, 255})
	f.Add(uint16(sbSize), []byte{0, 0, 0, 0, 0, 0, 0, 255})
	f.Add(uint16(0), []byte(sbMagic))
	f.Fuzz(func(t *testing.T, off uint16, patch []byte) {
		in := patched(valid, off, patch)
		binary.LittleEndian.PutUint32(in[sbCRC:], superblockSum(in)) // get past the checksum
		s, err := decodeSuperblock(in)
		if err != nil {
			return
		}
		again := make([]byte, sbBytes)
		s.encode(again)
		s2, err := decodeSuperblock(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(s, s2, cmp.AllowUnexported(Superblock{}, logSession{})); diff != "" {
			t.Error(diff)
		}
	})
}

func FuzzDecodeLogBlock(f *testing.F) {
	g := logSession{gen: 1, extent: DefaultExtentBytes, slots: 10}
	valid := ringOf(g, 1)[logBlockBytes:][:logBlockBytes]
	f.Add(uint16(40), []byte{255, 255, 1, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255})
	f.Add(uint16(logHeader), []byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, off uint16, patch []byte) {
		in := patched(valid, off, patch)
		binary.LittleEndian.PutUint32(in[4:], logSum(in)) // get past the checksum
		b, err := decodeLogBlock(in)
		if err != nil {
			return
		}
		b.apply(make([]uint32, b.slots))
		g := logSession{gen: b.gen, extent: DefaultExtentBytes, slots: b.slots}
		replayRing(g, bytes.Repeat(in, g.blocks()))
	})
}

func FuzzDecodePage(f *testing.F) {
	p, valid := new(page), make([]byte, pageBytes)
	p.setRange(5, 5000)
	p.encode(pageID{1, 2}, valid)
	f.Add(uint16(sectorSealed), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, off uint16, patch []byte) {
		p, _ := decodePage(pageID{1, 2}, patched(valid, off, patch))
		if p == nil {
			return
		}
		again := make([]byte, pageBytes)
		p.encode(pageID{1, 2}, again)
		if q, damaged := decodePage(pageID{1, 2}, again); damaged != 0 || *q != *p {
			t.Errorf("%d sectors damaged", damaged)
		}
	})
}
