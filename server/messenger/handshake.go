package messenger

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/lockstepd/lockstep/server/wire"
)

// The handshake of one connection:
//
//	dialer → acceptor  Hello      who I am, whom I mean, which session, a nonce
//	dialer ← acceptor  Challenge  who I am, the version, a nonce
//	dialer → acceptor  Proof      HMAC(cookie, "dialer",   Hello, Challenge)
//	dialer ← acceptor  Welcome    HMAC(cookie, "acceptor", Hello, Challenge, answer)
//
// At any point the acceptor may answer with Refuse instead. The MACs cover
// every byte of both openings: nonces, names, ids, roles, the kind of link and
// the session. A recorded Proof does not fit a new nonce, and a Proof sent
// back to its author does not fit the role.

// Labels of what the cookie is used for. No two uses share one.
const (
	labelDialer   = "lockstep 1 dialer"
	labelAcceptor = "lockstep 1 acceptor"
	labelRefuse   = "lockstep 1 refuse"
)

// RefusedError is a handshake that was turned down.
type RefusedError struct {
	Code   wire.RefuseCode
	Reason string
	Proven bool // by somebody who knows the cookie
	Ours   bool // by this node
}

func (e *RefusedError) Error() string {
	if e.Ours {
		return "refused the peer: " + e.Reason
	}
	return "refused by the peer: " + e.Reason
}

func refusal(code wire.RefuseCode, format string, args ...any) *RefusedError {
	return &RefusedError{Code: code, Reason: fmt.Sprintf(format, args...), Ours: true}
}

// errWrongSecret is what the dialer finds when the acceptor does not know the
// cookie: an impostor, or a secret that differs.
var errWrongSecret = errors.New("the node that answered does not have this cluster's secret")

// proof is the MAC of a label and parts under a secret.
func proof(secret []byte, label string, parts ...[]byte) (sum [wire.MACSize]byte) {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(label))
	var n [8]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	h.Sum(sum[:0])
	return sum
}

// newNonce returns fresh random bytes.
func newNonce() (n [wire.NonceSize]byte) {
	rand.Read(n[:]) // never fails: the runtime ends the process instead
	return n
}

// newCookie returns a random number that is not 0.
func newCookie() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails: the runtime ends the process instead
		if v := binary.LittleEndian.Uint64(b[:]); v != 0 {
			return v
		}
	}
}

// writeFrame sends one handshake frame. Handshakes speak the lowest version.
func writeFrame(w io.Writer, t wire.Type, payload []byte) error {
	h := wire.Header{Version: wire.MinVersion, Type: t, Len: uint32(len(payload)), CRC: wire.Checksum(payload)}
	b := make([]byte, wire.HeaderSize, wire.HeaderSize+len(payload))
	h.Put(b)
	if _, err := w.Write(append(b, payload...)); err != nil {
		return fmt.Errorf("sending %v: %w", t, err)
	}
	return nil
}

// maxHandshake bounds a handshake frame's payload, far below what the types
// allow: it is read from strangers.
const maxHandshake = 2048

// readFrame receives one handshake frame, which is one of the types wanted. It
// reads not a byte more than the frame.
func readFrame(r io.Reader, want wire.Type) ([]byte, error) {
	var raw [wire.HeaderSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return nil, fmt.Errorf("waiting for %v: %w", want, err)
	}
	var h wire.Header
	if err := h.Decode(raw[:], wire.MinVersion); err != nil {
		return nil, fmt.Errorf("waiting for %v: %w", want, err)
	}
	if h.Len > maxHandshake {
		return nil, fmt.Errorf("waiting for %v: %w (%d)", want, wire.ErrLength, h.Len)
	}
	p := make([]byte, h.Len)
	if _, err := io.ReadFull(r, p); err != nil {
		return nil, fmt.Errorf("waiting for the rest of %v: %w", h.Type, err)
	}
	if err := h.CheckPayload(p); err != nil {
		return nil, err
	}
	switch h.Type {
	case want:
		return p, nil
	case wire.Refuse:
		var m wire.RefuseMsg
		if err := m.Decode(p); err != nil {
			return nil, err
		}
		return nil, &refuseFrame{m}
	}
	return nil, fmt.Errorf("%w: %v instead of %v", errUnexpected, h.Type, want)
}

// refuseFrame carries a Refuse out of readFrame to where its MAC can be
// checked.
type refuseFrame struct{ msg wire.RefuseMsg }

func (r *refuseFrame) Error() string { return "refused by the peer: " + r.msg.Reason }

// identity is what this node says of itself in every handshake.
type identity struct {
	cluster, name string
	id            int
	incarnation   uint64
	features      uint64
}

// admitted is a connection whose handshake is done, as its dialer sees it.
type admitted struct {
	c         net.Conn
	challenge wire.ChallengeMsg
	welcome   wire.WelcomeMsg
	secret    []byte // that was proved
}

// dialHandshake runs the dialer's side. The secrets are tried in order over
// the course of several dials: try says which one this dial uses.
func dialHandshake(c net.Conn, hello *wire.HelloMsg, peerName string, secret []byte) (*admitted, error) {
	hello.Nonce = newNonce()
	h := hello.Append(nil)
	if err := writeFrame(c, wire.Hello, h); err != nil {
		return nil, err
	}
	ch, err := readFrame(c, wire.Challenge)
	if err != nil {
		return nil, plainRefusal(err)
	}
	a := &admitted{c: c, secret: secret}
	if err := a.challenge.Decode(ch); err != nil {
		return nil, err
	}
	if err := checkChallenge(hello, &a.challenge, peerName); err != nil {
		return nil, err
	}
	p := wire.ProofMsg{MAC: proof(secret, labelDialer, h, ch)}
	if err := writeFrame(c, wire.Proof, p.Append(nil)); err != nil {
		return nil, err
	}
	w, err := readFrame(c, wire.Welcome)
	if err != nil {
		return nil, provenRefusal(err, secret, h, ch)
	}
	if err := a.welcome.Decode(w); err != nil {
		return nil, err
	}
	want := proof(secret, labelAcceptor, h, ch, a.welcome.AppendSigned(nil))
	if !hmac.Equal(want[:], a.welcome.MAC[:]) {
		return nil, errWrongSecret
	}
	return a, nil
}

// checkChallenge sees whether the node that answered is the one meant.
func checkChallenge(h *wire.HelloMsg, c *wire.ChallengeMsg, peerName string) error {
	switch {
	case c.Incarnation == h.Incarnation:
		return refusal(wire.RefuseSelf, "the address configured for node %s is this node's own", peerName)
	case c.Cluster != h.Cluster:
		return refusal(wire.RefuseCluster, "it belongs to cluster %q, this node to %q", c.Cluster, h.Cluster)
	case c.From != h.To || c.Node != peerName:
		return refusal(wire.RefuseTarget, "node %s (id %d) answers at the address configured for %s (id %d)", c.Node, c.From, peerName, h.To)
	case c.Version < h.MinVersion || c.Version > h.MaxVersion:
		return refusal(wire.RefuseVersion, "it chose protocol version %d; this node speaks %d to %d", c.Version, h.MinVersion, h.MaxVersion)
	case (c.Features^h.Features)&wire.FeatureSign != 0:
		return signMismatch(h.Features&wire.FeatureSign != 0)
	}
	return nil
}

// signMismatch is the refusal of a node that signs by one that does not, or
// the reverse.
func signMismatch(here bool) *RefusedError {
	if here {
		return refusal(wire.RefuseProtocol, "frames are signed on this node and not on the other: set [cluster] sign to the same on both")
	}
	return refusal(wire.RefuseProtocol, "frames are signed on the other node and not on this one: set [cluster] sign to the same on both")
}

// plainRefusal turns a Refuse that came before any proof into an error.
func plainRefusal(err error) error {
	if r, ok := errors.AsType[*refuseFrame](err); ok {
		return &RefusedError{Code: r.msg.Code, Reason: r.msg.Reason}
	}
	return err
}

// provenRefusal does so for one that came after ours, and may carry one.
func provenRefusal(err error, secret, hello, challenge []byte) error {
	r, ok := errors.AsType[*refuseFrame](err)
	if !ok {
		return err
	}
	want := proof(secret, labelRefuse, hello, challenge, r.msg.AppendSigned(nil))
	return &RefusedError{Code: r.msg.Code, Reason: r.msg.Reason, Proven: hmac.Equal(want[:], r.msg.MAC[:])}
}

// offer is an incoming connection that has proved the cookie and waits for a
// verdict.
type offer struct {
	c                net.Conn
	hello            wire.HelloMsg
	version          uint8
	features         uint64
	local            uint64 // the incarnation that the dialer was told
	secret           []byte
	rawHello, rawChl []byte
}

// acceptHandshake runs the acceptor's side up to the proof.
func acceptHandshake(c net.Conn, me identity, promise func() (uint32, uint16), known func(*wire.HelloMsg) *RefusedError, secrets [][]byte) (*offer, error) {
	o := &offer{c: c, local: me.incarnation}
	var err error
	if o.rawHello, err = readFrame(c, wire.Hello); err != nil {
		return o, err
	}
	if err := o.hello.Decode(o.rawHello); err != nil {
		return o, err
	}
	if r := checkHello(&o.hello, me); r != nil {
		return o, r
	}
	if r := known(&o.hello); r != nil {
		return o, r
	}
	o.version = min(o.hello.MaxVersion, wire.MaxVersion)
	o.features = o.hello.Features & me.features
	tick, pings := promise()
	ch := wire.ChallengeMsg{
		Version: o.version, From: uint8(me.id), TickMS: tick, PingCount: pings, Incarnation: me.incarnation,
		Features: o.features, Nonce: newNonce(), Cluster: me.cluster, Node: me.name,
	}
	o.rawChl = ch.Append(nil)
	if err := writeFrame(c, wire.Challenge, o.rawChl); err != nil {
		return o, err
	}
	p, err := readFrame(c, wire.Proof)
	if err != nil {
		return o, err
	}
	var m wire.ProofMsg
	if err := m.Decode(p); err != nil {
		return o, err
	}
	return o, o.verify(&m, secrets)
}

// verify finds the secret that the dialer used.
func (o *offer) verify(m *wire.ProofMsg, secrets [][]byte) error {
	for _, s := range secrets {
		want := proof(s, labelDialer, o.rawHello, o.rawChl)
		if hmac.Equal(want[:], m.MAC[:]) {
			o.secret = s
			return nil
		}
	}
	return refusal(wire.RefuseSecret, "its secret differs from this node's: compare the secret files of the two nodes")
}

// checkHello sees whether the dialer is one that this node can talk to.
func checkHello(h *wire.HelloMsg, me identity) *RefusedError {
	switch {
	case h.Cluster != me.cluster:
		return refusal(wire.RefuseCluster, "cluster %q was dialled from cluster %q", me.cluster, h.Cluster)
	case h.Incarnation == me.incarnation || h.From == uint8(me.id):
		return refusal(wire.RefuseSelf, "node %s (id %d) was dialled by itself, or by a node with its id", me.name, me.id)
	case h.To != uint8(me.id):
		return refusal(wire.RefuseTarget, "node id %d was dialled, but this is %s (id %d)", h.To, me.name, me.id)
	case h.MaxVersion < wire.MinVersion || h.MinVersion > wire.MaxVersion:
		return refusal(wire.RefuseVersion, "protocol versions %d to %d are spoken there, %d to %d here", h.MinVersion, h.MaxVersion, wire.MinVersion, wire.MaxVersion)
	case (h.Features^me.features)&wire.FeatureSign != 0:
		return signMismatch(me.features&wire.FeatureSign != 0)
	}
	return nil
}

// welcome admits the connection.
func (o *offer) welcome(session, received uint64) error {
	m := wire.WelcomeMsg{Session: session, Received: received}
	m.MAC = proof(o.secret, labelAcceptor, o.rawHello, o.rawChl, m.AppendSigned(nil))
	return writeFrame(o.c, wire.Welcome, m.Append(nil))
}

// refuse turns the connection down, with a proof of our own if the dialer has
// given its, and closes it.
func (o *offer) refuse(r *RefusedError) {
	m := wire.RefuseMsg{Code: r.Code, Reason: r.Reason}
	if o.secret != nil {
		m.MAC = proof(o.secret, labelRefuse, o.rawHello, o.rawChl, m.AppendSigned(nil))
	}
	// Best effort: the connection is closed whether the dialer learns why or not.
	_ = o.c.SetWriteDeadline(time.Now().Add(time.Second))
	_ = writeFrame(o.c, wire.Refuse, m.Append(nil))
	_ = o.c.Close()
}
