package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden corpus of session frames")

// payload is what every session payload's type can do.
type payload interface {
	Append([]byte) []byte
	Decode([]byte) error
}

func fill(p []byte, from byte) {
	for i := range p {
		p[i] = from + byte(i)
	}
}

// sessionFrames is one example of every session frame.
func sessionFrames() []struct {
	name string
	h    Header
	p    payload
} {
	hello := HelloMsg{
		MinVersion: 1, MaxVersion: 3, Kind: KindMeta, From: 2, To: 1, PingCount: 4, TickMS: 8000,
		Incarnation: 0x1122334455667788, Features: 5, Session: 77, PeerSession: 78, ConnectSeq: 3, GlobalSeq: 9, Received: 1 << 40,
		Cluster: "demo", Node: "gamma",
	}
	fill(hello.Nonce[:], 1)
	challenge := ChallengeMsg{Version: 1, From: 1, PingCount: 8, TickMS: 500, Incarnation: 42, Features: 1, Cluster: "demo", Node: "beta"}
	fill(challenge.Nonce[:], 100)
	var proof ProofMsg
	fill(proof.MAC[:], 7)
	welcome := WelcomeMsg{Session: 78, Received: 12}
	fill(welcome.MAC[:], 9)
	refuse := RefuseMsg{Code: RefuseSecret, Reason: "its secret differs from this node's"}
	return []struct {
		name string
		h    Header
		p    payload
	}{
		{"hello", Header{Type: Hello}, &hello},
		{"challenge", Header{Type: Challenge}, &challenge},
		{"proof", Header{Type: Proof}, &proof},
		{"welcome", Header{Type: Welcome}, &welcome},
		{"refuse", Header{Type: Refuse}, &refuse},
		{"ping", Header{Type: Ping, AckData: 17, AckMeta: 4, Arg: [3]uint64{123456789, 8000, 4}}, nil},
		{"pong", Header{Type: Pong, AckData: 17, AckMeta: 4, Arg: [3]uint64{123456789}}, nil},
		{"session-ack", Header{Type: SessAck, AckData: 18, AckMeta: 5}, nil},
		{"goodbye", Header{Type: Goodbye}, &GoodbyeMsg{Code: GoodbyeShutdown, Reason: "this node shuts down"}},
		{"tick-set", Header{Type: TickSet, Seq: 6, Arg: [3]uint64{1000, 60000}}, nil},
		{"node-message", Header{Type: NodeMsg, Seq: 7}, &NodeMsgBody{Kind: 3, Body: []byte("anything")}},
	}
}

func encode(h Header, p payload) []byte {
	var body []byte
	if p != nil {
		body = p.Append(nil)
	}
	h.Version, h.Len, h.CRC = MinVersion, uint32(len(body)), Checksum(body)
	b := make([]byte, HeaderSize)
	h.Put(b)
	return append(b, body...)
}

// TestSessionFramesOnTheWireNeverChange compares every session frame with the
// bytes that a released version has sent.
func TestSessionFramesOnTheWireNeverChange(t *testing.T) {
	path := filepath.Join("testdata", "session.hex")
	if *update {
		var out bytes.Buffer
		fmt.Fprintln(&out, "# One example of every session frame: name, header and payload in hex.")
		for _, f := range sessionFrames() {
			fmt.Fprintf(&out, "%s %x\n", f.name, encode(f.h, f.p))
		}
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden := readCorpus(t, path)
	for _, f := range sessionFrames() {
		want, ok := golden[f.name]
		if !ok {
			t.Errorf("%s is not in the corpus", f.name)
			continue
		}
		if got := encode(f.h, f.p); !bytes.Equal(got, want) {
			t.Errorf("%s is encoded as\n%x, want\n%x", f.name, got, want)
		}
		decodeGolden(t, f.name, want, f.h, f.p)
	}
}

func readCorpus(t testing.TB, path string) map[string][]byte {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	out := make(map[string][]byte)
	for sc := bufio.NewScanner(file); sc.Scan(); {
		name, digits, ok := strings.Cut(sc.Text(), " ")
		if !ok || name == "#" {
			continue
		}
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		out[name] = b
	}
	return out
}

func decodeGolden(t *testing.T, name string, frame []byte, want Header, p payload) {
	t.Helper()
	var h Header
	if err := h.Decode(frame, 0); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if h.Type != want.Type || h.Arg != want.Arg || h.AckData != want.AckData || h.Seq != want.Seq {
		t.Errorf("%s: header decoded as %+v", name, h)
	}
	body := frame[HeaderSize:]
	if err := h.CheckPayload(body); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if p == nil {
		return
	}
	got := reflect.New(reflect.TypeOf(p).Elem()).Interface().(payload)
	if err := got.Decode(body); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if !reflect.DeepEqual(got, p) {
		t.Errorf("%s: decoded as %+v, want %+v", name, got, p)
	}
}

func TestSessionPayloadsRefuseEveryOtherLength(t *testing.T) {
	for _, f := range sessionFrames() {
		if f.p == nil || f.h.Type == NodeMsg {
			continue
		}
		whole := f.p.Append(nil)
		for n := range whole {
			got := reflect.New(reflect.TypeOf(f.p).Elem()).Interface().(payload)
			if err := got.Decode(whole[:n]); !errors.Is(err, ErrPayload) {
				t.Errorf("%s cut to %d of %d bytes: %v", f.name, n, len(whole), err)
			}
		}
		got := reflect.New(reflect.TypeOf(f.p).Elem()).Interface().(payload)
		err := got.Decode(append(whole, 0))
		if opening := f.h.Type == Hello || f.h.Type == Challenge; opening != (err == nil) {
			t.Errorf("%s with a byte behind its end: %v", f.name, err)
		}
	}
}

func TestTextFromTheNetworkIsFitForATerminal(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"plain ünïcode", "plain ünïcode"},
		{"red \x1b[31m", "red ?[31m"},
		{"two\nlines", "two?lines"},
		{"broken \xff\xfe", "broken ??"},
		{strings.Repeat("x", MaxReason+50), strings.Repeat("x", MaxReason)},
		{strings.Repeat("é", MaxReason), strings.Repeat("é", MaxReason/2)},
	} {
		m := GoodbyeMsg{Code: GoodbyeReset, Reason: c.in}
		var got GoodbyeMsg
		if err := got.Decode(m.Append(nil)); err != nil {
			t.Errorf("%q: %v", c.in, err)
		}
		if got.Reason != c.want {
			t.Errorf("%q arrives as %q", c.in, got.Reason)
		}
	}
}

func TestHeaderIsCheckedInOrder(t *testing.T) {
	good := Header{Version: 1, Type: Write, Len: 4096, Seq: 1}
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		want   error
	}{
		{"magic", func(b []byte) { b[0]++ }, ErrMagic},
		{"version", func(b []byte) { b[4] = 9 }, ErrVersion},
		{"type", func(b []byte) { b[5] = 30 }, ErrType},
		{"type beyond the table", func(b []byte) { b[5] = 200 }, ErrType},
		{"flags", func(b []byte) { b[7] = 0xff }, ErrFlags},
		{"length", func(b []byte) { b[15] = 0xff }, ErrLength},
		{"sequence", func(b []byte) { b[16]++ }, ErrCRC},
		{"checksum", func(b []byte) { b[68]++ }, ErrCRC},
		{"magic and all else", func(b []byte) { fill(b, 0x80) }, ErrMagic},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b [HeaderSize]byte
			good.Put(b[:])
			c.damage(b[:])
			var h Header
			if err := h.Decode(b[:], 1); !errors.Is(err, c.want) {
				t.Errorf("decoded with %v, want %v", err, c.want)
			}
		})
	}
}

func TestEveryBitOfAHeaderIsGuarded(t *testing.T) {
	good := Header{Version: 1, Type: Write, Len: 4096, Seq: 1, AckData: 3, Arg: [3]uint64{4096, 9, 8}}
	for bit := range HeaderSize * 8 {
		var b [HeaderSize]byte
		good.Put(b[:])
		b[bit/8] ^= 1 << (bit % 8)
		var h Header
		if err := h.Decode(b[:], 1); err == nil {
			t.Errorf("a header with bit %d turned over is taken for good", bit)
		}
	}
}

func FuzzHeaderDecode(f *testing.F) {
	for _, s := range sessionFrames() {
		f.Add(encode(s.h, s.p)[:HeaderSize], uint8(1))
	}
	for _, b := range readCorpus(f, filepath.Join("testdata", "session.hex")) {
		f.Add(b[:HeaderSize], uint8(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, version uint8) {
		if len(b) < HeaderSize {
			return
		}
		var h Header
		if h.Decode(b, version) != nil {
			return
		}
		if most, ok := h.Type.MaxPayload(); !ok || h.Len > most {
			t.Fatalf("%v of %d bytes was let through", h.Type, h.Len)
		}
		var again [HeaderSize]byte
		h.Put(again[:])
		if !bytes.Equal(again[:], b[:HeaderSize]) {
			t.Fatalf("%x decodes to a header that is encoded as %x", b[:HeaderSize], again)
		}
	})
}

func FuzzSessionPayloads(f *testing.F) {
	for _, s := range sessionFrames() {
		if s.p != nil {
			f.Add(uint8(s.h.Type), s.p.Append(nil))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		make := func() payload {
			switch Type(kind) {
			case Hello:
				return new(HelloMsg)
			case Challenge:
				return new(ChallengeMsg)
			case Proof:
				return new(ProofMsg)
			case Welcome:
				return new(WelcomeMsg)
			case Refuse:
				return new(RefuseMsg)
			case Goodbye:
				return new(GoodbyeMsg)
			}
			return new(NodeMsgBody)
		}
		first, second := make(), make()
		if first.Decode(b) != nil {
			return
		}
		enc := first.Append(nil)
		if err := second.Decode(enc); err != nil {
			t.Fatalf("%+v is encoded as %x, which does not decode: %v", first, enc, err)
		}
		if !reflect.DeepEqual(first, second) {
			t.Fatalf("%+v comes back as %+v", first, second)
		}
	})
}
