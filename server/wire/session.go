package wire

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Sizes of the session frames' parts.
const (
	NonceSize = 32
	MACSize   = 32 // HMAC-SHA256
	// FrameMACSize is how many bytes of a keyed MAC follow a frame's payload
	// where FlagMAC is set.
	FrameMACSize = 16

	// FeatureSign is the feature bit of nodes that put a keyed MAC on every
	// frame. Both sides have it or neither.
	FeatureSign = 1 << 63
	// FeatureVotes is the feature bit of nodes whose facts on a device say where
	// it comes from and who has a vote (DeviceFacts.Whole), and that let each
	// other leave.
	FeatureVotes = 1 << 0
	// FeatureWitness is the feature bit of nodes that, without a disk, take note
	// of generations.
	FeatureWitness = 1 << 1
	// FeatureHeal is the feature bit of nodes that, as the primary, answer a
	// replica's read with their present content, and none but a replica that is
	// sent their changes.
	FeatureHeal = 1 << 2
	// FeatureBegan is the feature bit of nodes that say on the data link, too, where
	// an agreement begins (Began), and take nothing there that is of another.
	FeatureBegan = 1 << 3
	// FeatureStay is the feature bit of nodes that say, when they are asked, that
	// their disk stays complete until the asker's is (StayReq).
	FeatureStay = 1 << 4
	// FeatureVoteEnds is the feature bit of nodes for whose promotion no vote counts
	// any more that was given in an agreement which has ended.
	FeatureVoteEnds = 1 << 5
	// Features is what every node of this version has; FeatureSign is configured.
	Features = FeatureVotes | FeatureWitness | FeatureHeal | FeatureBegan | FeatureStay | FeatureVoteEnds

	// MaxTitle bounds a cluster's and a node's name in a handshake.
	MaxTitle = 255
	// MaxReason bounds the text of a Refuse or Goodbye. It is meant for people.
	MaxReason = 512
)

// LinkKind is what a dialled connection wants to become.
type LinkKind uint8

// The kinds of connection.
const (
	KindData LinkKind = LinkKind(Data)
	KindMeta LinkKind = LinkKind(Meta)
	// KindKnock asks the node that dials, which is the one with the higher id,
	// to do so now: its backoff is cut short. The connection ends with Welcome.
	KindKnock LinkKind = 2
)

func (k LinkKind) String() string {
	if k == KindKnock {
		return "knock"
	}
	return Link(k).String()
}

// HelloMsg is the dialer's opening: who it is, whom it believes it dialled,
// and which session it wants to begin or to go on with.
type HelloMsg struct {
	MinVersion, MaxVersion uint8
	Kind                   LinkKind
	From, To               uint8 // node ids
	PingCount              uint16
	TickMS                 uint32 // promised tick time
	Incarnation            uint64 // of the dialer's process
	Features               uint64
	Session                uint64 // the dialer's cookie of the session, never 0 but on a knock
	PeerSession            uint64 // the acceptor's cookie; 0: not known yet, the session is new
	ConnectSeq             uint64 // counts the connections of this link in this session
	GlobalSeq              uint64 // counts the sessions that this process began with anybody
	Received               uint64 // the last frame of this link that the dialer has
	Nonce                  [NonceSize]byte
	Cluster, Node          string
}

// ChallengeMsg is the acceptor's answer to a Hello that it can talk to.
type ChallengeMsg struct {
	Version     uint8 // chosen
	From        uint8
	PingCount   uint16
	TickMS      uint32
	Incarnation uint64
	Features    uint64 // that both have
	Nonce       [NonceSize]byte
	Cluster     string
	Node        string
}

// ProofMsg proves that the dialer knows the cookie.
type ProofMsg struct {
	MAC [MACSize]byte
}

// WelcomeMsg admits the link, and proves that the acceptor knows the cookie.
type WelcomeMsg struct {
	Session  uint64 // the acceptor's cookie of the session
	Received uint64 // the last frame of this link that the acceptor has
	MAC      [MACSize]byte
}

// RefuseCode says why a link is turned down.
type RefuseCode uint16

// The reasons for which a link is refused.
const (
	RefuseProtocol     RefuseCode = 1 // the frames make no sense
	RefuseVersion      RefuseCode = 2 // no protocol version in common
	RefuseCluster      RefuseCode = 3 // another cluster
	RefuseTarget       RefuseCode = 4 // the dialler meant another node
	RefuseSelf         RefuseCode = 5 // the node dialled itself
	RefuseUnknown      RefuseCode = 6 // the dialer is not among the configured nodes
	RefuseSecret       RefuseCode = 7 // wrong cookie
	RefuseDisconnected RefuseCode = 8 // this node was told to stay disconnected
	RefuseSession      RefuseCode = 9 // the session is not known here any more
	RefuseStale        RefuseCode = 10
	RefuseDirection    RefuseCode = 11 // the lower id dialled
	RefuseBusy         RefuseCode = 12 // too many connections that proved nothing
	RefuseShutdown     RefuseCode = 13
)

var refuseNames = map[RefuseCode]string{
	RefuseProtocol: "protocol", RefuseVersion: "version", RefuseCluster: "cluster", RefuseTarget: "target",
	RefuseSelf: "self", RefuseUnknown: "unknown-node", RefuseSecret: "secret", RefuseDisconnected: "disconnected",
	RefuseSession: "session", RefuseStale: "stale", RefuseDirection: "direction", RefuseBusy: "busy",
	RefuseShutdown: "shutdown",
}

func (c RefuseCode) String() string {
	if s, ok := refuseNames[c]; ok {
		return s
	}
	return fmt.Sprintf("code(%d)", uint16(c))
}

// RefuseMsg turns a link down. MAC is all zero before the dialer has proved
// the cookie: such a refusal is worth no more than a broken connection.
type RefuseMsg struct {
	Code   RefuseCode
	MAC    [MACSize]byte
	Reason string
}

// GoodbyeCode says why a session, or a connection, ends in good order.
type GoodbyeCode uint16

// The kinds of goodbye.
const (
	GoodbyeShutdown   GoodbyeCode = 1 // the process ends
	GoodbyeDisconnect GoodbyeCode = 2 // an administrator disconnected the nodes
	GoodbyeRelink     GoodbyeCode = 3 // both links are dropped and dialled anew; the session goes on
	GoodbyeReset      GoodbyeCode = 4 // the sender ends the session; reason tells why
)

// GoodbyeMsg ends a session in good order.
type GoodbyeMsg struct {
	Code   GoodbyeCode
	Reason string
}

// NodeMsgBody is the payload of a NodeMsg: a message of the cluster's own.
type NodeMsgBody struct {
	Kind uint16
	Body []byte
}

// Append encodes m behind dst.
func (m *HelloMsg) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.MinVersion, m.MaxVersion, uint8(m.Kind), m.From, m.To)
	dst = le.AppendUint16(dst, m.PingCount)
	dst = le.AppendUint32(dst, m.TickMS)
	for _, v := range [...]uint64{m.Incarnation, m.Features, m.Session, m.PeerSession, m.ConnectSeq, m.GlobalSeq, m.Received} {
		dst = le.AppendUint64(dst, v)
	}
	dst = append(dst, m.Nonce[:]...)
	return appendText(appendText(dst, m.Cluster, MaxTitle), m.Node, MaxTitle)
}

// Decode reads m from p. Bytes behind the last field are those of a later
// version and are ignored, so that versions can be negotiated.
func (m *HelloMsg) Decode(p []byte) error {
	d := fields{p: p}
	m.MinVersion, m.MaxVersion, m.Kind, m.From, m.To = d.u8(), d.u8(), LinkKind(d.u8()), d.u8(), d.u8()
	m.PingCount, m.TickMS = d.u16(), d.u32()
	for _, v := range [...]*uint64{&m.Incarnation, &m.Features, &m.Session, &m.PeerSession, &m.ConnectSeq, &m.GlobalSeq, &m.Received} {
		*v = d.u64()
	}
	d.bytes(m.Nonce[:])
	m.Cluster, m.Node = d.text(MaxTitle), d.text(MaxTitle)
	if m.Kind > KindKnock {
		d.fail("link kind", uint64(m.Kind))
	}
	return d.err("hello")
}

// Append encodes m behind dst.
func (m *ChallengeMsg) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, m.Version, m.From)
	dst = le.AppendUint16(dst, m.PingCount)
	dst = le.AppendUint32(dst, m.TickMS)
	dst = le.AppendUint64(dst, m.Incarnation)
	dst = le.AppendUint64(dst, m.Features)
	dst = append(dst, m.Nonce[:]...)
	return appendText(appendText(dst, m.Cluster, MaxTitle), m.Node, MaxTitle)
}

// Decode reads m from p.
func (m *ChallengeMsg) Decode(p []byte) error {
	d := fields{p: p}
	m.Version, m.From, m.PingCount, m.TickMS = d.u8(), d.u8(), d.u16(), d.u32()
	m.Incarnation, m.Features = d.u64(), d.u64()
	d.bytes(m.Nonce[:])
	m.Cluster, m.Node = d.text(MaxTitle), d.text(MaxTitle)
	return d.err("challenge")
}

// Append encodes m behind dst.
func (m *ProofMsg) Append(dst []byte) []byte { return append(dst, m.MAC[:]...) }

// Decode reads m from p.
func (m *ProofMsg) Decode(p []byte) error {
	d := fields{p: p}
	d.bytes(m.MAC[:])
	return d.end("proof")
}

// AppendSigned encodes what the MAC of m covers behind dst.
func (m *WelcomeMsg) AppendSigned(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, m.Session)
	return binary.LittleEndian.AppendUint64(dst, m.Received)
}

// Append encodes m behind dst.
func (m *WelcomeMsg) Append(dst []byte) []byte { return append(m.AppendSigned(dst), m.MAC[:]...) }

// Decode reads m from p.
func (m *WelcomeMsg) Decode(p []byte) error {
	d := fields{p: p}
	m.Session, m.Received = d.u64(), d.u64()
	d.bytes(m.MAC[:])
	return d.end("welcome")
}

// AppendSigned encodes what the MAC of m covers behind dst.
func (m *RefuseMsg) AppendSigned(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m.Code))
	return appendText(dst, m.Reason, MaxReason)
}

// Append encodes m behind dst.
func (m *RefuseMsg) Append(dst []byte) []byte {
	dst = append(dst, m.MAC[:]...)
	return m.AppendSigned(dst)
}

// Decode reads m from p.
func (m *RefuseMsg) Decode(p []byte) error {
	d := fields{p: p}
	d.bytes(m.MAC[:])
	m.Code, m.Reason = RefuseCode(d.u16()), d.text(MaxReason)
	return d.end("refuse")
}

// Append encodes m behind dst.
func (m *GoodbyeMsg) Append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(m.Code))
	return appendText(dst, m.Reason, MaxReason)
}

// Decode reads m from p.
func (m *GoodbyeMsg) Decode(p []byte) error {
	d := fields{p: p}
	m.Code, m.Reason = GoodbyeCode(d.u16()), d.text(MaxReason)
	return d.end("goodbye")
}

// Append encodes m behind dst.
func (m *NodeMsgBody) Append(dst []byte) []byte {
	return append(binary.LittleEndian.AppendUint16(dst, m.Kind), m.Body...)
}

// Decode reads m from p; Body lies in p.
func (m *NodeMsgBody) Decode(p []byte) error {
	d := fields{p: p}
	m.Kind = d.u16()
	m.Body = d.p
	return d.err("node-message")
}

// appendText encodes s with its length; what is longer than max is cut, at a
// rune's edge.
func appendText(dst []byte, s string, max int) []byte {
	if len(s) > max {
		s = s[:max]
		for len(s) > 0 && !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

// fields takes fields off the front of p. The first fault sticks, and fields
// read after it are zero, so that callers check once.
type fields struct {
	p     []byte
	fault string
}

func (d *fields) take(n int) []byte {
	if d.fault != "" || len(d.p) < n {
		if d.fault == "" {
			d.fault = fmt.Sprintf("%d bytes where %d are needed", len(d.p), n)
		}
		return nil
	}
	b := d.p[:n]
	d.p = d.p[n:]
	return b
}

func (d *fields) fail(what string, v uint64) {
	if d.fault == "" {
		d.fault = fmt.Sprintf("%s %d is not known", what, v)
	}
}

func (d *fields) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *fields) u16() uint16 {
	if b := d.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *fields) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *fields) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *fields) bytes(dst []byte) { copy(dst, d.take(len(dst))) }

// text reads a string for people or for comparison. Control characters and
// broken UTF-8 become '?': it ends up in logs and on terminals.
func (d *fields) text(max int) string {
	n := int(d.u16())
	if n > max {
		d.fail("text length", uint64(n))
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, string(d.take(n)))
}

func (d *fields) err(what string) error {
	if d.fault != "" {
		return fmt.Errorf("%w (%s: %s)", ErrPayload, what, d.fault)
	}
	return nil
}

// end is err, and also refuses bytes behind the last field.
func (d *fields) end(what string) error {
	if d.fault == "" && len(d.p) > 0 {
		d.fault = fmt.Sprintf("%d bytes too many", len(d.p))
	}
	return d.err(what)
}
