package messenger

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"

	"github.com/lockstepd/lockstep/server/wire"
)

const labelFrames = "lockstep 1 frames"

var errMAC = errors.New("a frame's MAC is missing or wrong: it was not sent by the peer")

// signer makes the MACs of one link in one direction. It is not safe for
// concurrent use.
type signer struct {
	h   hash.Hash
	out [wire.MACSize]byte
}

// newSigner derives the key of a link and direction of a session. It stays
// across the session's connections, for frames that are sent again; numbers
// within the stream keep them from being replayed.
func newSigner(secret []byte, s *Session, k wire.Link, fromDialer bool) *signer {
	le := binary.LittleEndian
	local, remote := s.Incarnation()
	if !s.dialer {
		local, remote = remote, local
	}
	var part []byte
	for _, v := range [...]uint64{s.cookie, s.answer, local, remote} {
		part = le.AppendUint64(part, v)
	}
	direction := byte(1)
	if fromDialer {
		direction = 0
	}
	key := proof(secret, labelFrames, append(part, byte(k), direction))
	return &signer{h: hmac.New(sha256.New, key[:])}
}

// sum puts the MAC of a frame into dst. connection is 0 for a frame of the
// stream.
func (g *signer) sum(dst, header, payload []byte, connection uint64) {
	g.h.Reset()
	g.h.Write(header)
	g.h.Write(payload)
	if connection > 0 {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], connection)
		g.h.Write(n[:])
	}
	copy(dst, g.h.Sum(g.out[:0]))
}

// check compares a frame's MAC with what it must be.
func (g *signer) check(mac, header, payload []byte, connection uint64) error {
	var want [wire.FrameMACSize]byte
	g.sum(want[:], header, payload, connection)
	if !hmac.Equal(want[:], mac) {
		return errMAC
	}
	return nil
}

// setKeys readies a session whose two sides have agreed for signing, if they
// do.
func (s *Session) setKeys(secret []byte) {
	if s.feats&wire.FeatureSign == 0 {
		return
	}
	for _, l := range s.links {
		l.signs, l.checks = newSigner(secret, s, l.kind, s.dialer), newSigner(secret, s, l.kind, !s.dialer)
	}
}
