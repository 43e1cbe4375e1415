package proto

import (
	"bytes"
	"strings"
	"testing"
)

func TestHeadersSurviveTheWire(t *testing.T) {
	r := Request{Flags: FlagFUA | FlagNoHole, Cmd: CmdWriteZeroes, Cookie: 1<<63 | 7, Off: 1<<40 + 3, Len: 1<<32 - 1}
	if got, err := ParseRequest(AppendRequest(nil, r)); got != r || err != nil {
		t.Errorf("request: %+v, %v", got, err)
	}
	o := OptionHeader{OptGo, 3}
	if got, err := ParseOption(AppendOption(nil, OptGo, []byte("abc"))); got != o || err != nil {
		t.Errorf("option: %+v, %v", got, err)
	}
	p := OptReplyHeader{OptList, RepErrUnknown, 2}
	if got, err := ParseOptReply(AppendOptReply(nil, OptList, RepErrUnknown, []byte("ab"))); got != p || err != nil {
		t.Errorf("option reply: %+v, %v", got, err)
	}
}

func TestHeadersWithoutMagicAreRefused(t *testing.T) {
	b := make([]byte, 64)
	if _, err := ParseRequest(b); err == nil {
		t.Error("request")
	}
	if _, err := ParseOption(b); err == nil {
		t.Error("option")
	}
	if _, err := ParseOptReply(b); err == nil {
		t.Error("option reply")
	}
}

func TestRepliesAreLaidOutAsTheProtocolSays(t *testing.T) {
	if got := AppendReply(nil, ENOSPC, 0x0102030405060708); !bytes.Equal(got, []byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("simple: %x", got)
	}
	want := []byte{0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 6}
	if got := AppendChunk(nil, ChunkError, true, 0x0102030405060708, 6); !bytes.Equal(got, want) {
		t.Errorf("chunk: %x", got)
	}
}

func TestFieldsThatAreNotThereAreBad(t *testing.T) {
	for name, read := range map[string]func(*Fields){
		"uint16":            func(f *Fields) { f.Uint16() },
		"uint32":            func(f *Fields) { f.Uint32() },
		"uint64":            func(f *Fields) { f.Uint64() },
		"text":              func(f *Fields) { f.Text() },
		"rest after a fail": func(f *Fields) { f.Uint64(); f.Rest() },
	} {
		if f := NewFields([]byte{1}); f.OK() {
			read(f)
			if f.OK() {
				t.Errorf("%s: was there", name)
			}
		}
	}
	if f := NewFields(AppendString(nil, strings.Repeat("x", MaxString+1))); f.Text() != "" || f.OK() {
		t.Error("a text may be longer than MaxString")
	}
}

func TestEverythingHasAName(t *testing.T) {
	for o := range Option(13) {
		if o.String() == "" {
			t.Errorf("option %d", uint32(o))
		}
	}
	for r := range Rep(12) {
		if r.String() == "" || (r|1<<31).String() == "" {
			t.Errorf("reply %d", uint32(r))
		}
	}
	for c := range Cmd(10) {
		if c.String() == "" {
			t.Errorf("command %d", uint16(c))
		}
	}
	for e := range Errno(120) {
		if e.Error() == "" {
			t.Errorf("errno %d", uint32(e))
		}
	}
}

func FuzzFields(f *testing.F) {
	f.Add(AppendString([]byte{0, 1}, "name"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := NewFields(b)
		p.Uint16()
		if s := p.Text(); len(s) > MaxString {
			t.Errorf("a text of %d bytes", len(s))
		}
		p.Uint64()
		p.Uint32()
		if p.OK() && p.Left() > len(b) {
			t.Error("more left than there was")
		}
		p.Rest()
	})
}
