package device

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// Set is the devices of this node. It hands the frames of sessions to the
// device that they speak of, and sessions to devices that come and go.
type Set struct {
	log *slog.Logger

	// byHandle is what frames are looked up in; it is replaced, never changed.
	byHandle atomic.Pointer[map[uint32]*Device]

	mu       sync.Mutex // guards what follows; held while sessions are handed on
	byName   map[string]*Device
	groups   map[string]*Group
	sessions map[int]Session
	// strange is the hellos of devices that this node has not, by peer and name:
	// it may be about to have them.
	strange map[int]map[string]wire.DeviceFacts
	handles uint32
}

// NewSet returns an empty set.
func NewSet(log *slog.Logger) *Set {
	s := &Set{log: log, byName: map[string]*Device{}, groups: map[string]*Group{}, sessions: map[int]Session{}, strange: map[int]map[string]wire.DeviceFacts{}}
	s.byHandle.Store(&map[uint32]*Device{})
	return s
}

// NextHandle draws a handle for a device. Handles are never used again while
// the process lives, so a late frame finds nothing rather than the wrong thing.
func (s *Set) NextHandle() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handles++
	return s.handles
}

// Add adds a started device and introduces it to the peers in contact.
func (s *Set) Add(d *Device) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[d.Name()] != nil {
		return fmt.Errorf("device %s is there already", d.Name())
	}
	s.byName[d.Name()] = d
	s.publishLocked()
	if name := d.opts.Group; name != "" {
		if s.groups[name] == nil {
			s.groups[name] = NewGroup(name)
		}
		s.groups[name].Join(d)
	}
	for id, sess := range s.sessions {
		if f, told := s.strange[id][d.Name()]; told {
			delete(s.strange[id], d.Name())
			d.sessionUp(sess, &f)
		} else {
			d.SessionUp(sess)
		}
	}
	return nil
}

// Remove takes a device out. It is the caller's to close.
func (s *Set) Remove(d *Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[d.Name()] == d {
		delete(s.byName, d.Name())
		s.publishLocked()
		if g := d.group.Load(); g != nil {
			g.Leave(d)
		}
	}
}

func (s *Set) publishLocked() {
	m := make(map[uint32]*Device, len(s.byName))
	for _, d := range s.byName {
		m[d.Handle()] = d
	}
	s.byHandle.Store(&m)
}

// Get returns the device of a name.
func (s *Set) Get(name string) (*Device, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.byName[name]
	return d, ok
}

// All returns the devices by name.
func (s *Set) All() []*Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Device, 0, len(s.byName))
	for _, d := range s.byName {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b *Device) int { return strings.Compare(a.Name(), b.Name()) })
	return out
}

// SessionUp introduces every device to a new session.
func (s *Set) SessionUp(sess Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[sess.PeerID()] = sess
	delete(s.strange, sess.PeerID())
	for _, d := range s.byName {
		d.SessionUp(sess)
	}
}

// SessionDown ends a session for every device.
func (s *Set) SessionDown(sess Session, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[sess.PeerID()] == sess {
		delete(s.sessions, sess.PeerID())
		delete(s.strange, sess.PeerID())
	}
	for _, d := range s.byName {
		d.SessionDown(sess, reason)
	}
}

// HandleFrame hands a frame to its device.
func (s *Set) HandleFrame(sess Session, f *wire.Frame, b *block.Batch) {
	if f.Type == wire.DevHello {
		s.hello(sess, f)
		return
	}
	if d := (*s.byHandle.Load())[f.Dev]; d != nil {
		d.HandleFrame(sess, f, b)
	}
}

func (s *Set) hello(sess Session, f *wire.Frame) {
	var facts wire.DeviceFacts
	if err := facts.Decode(f.Payload); err != nil {
		s.log.Warn("cannot decode a device's hello", "peer", sess.PeerID(), "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.byName[facts.Name]; d != nil {
		d.HelloReceived(sess, facts)
		return
	}
	s.log.Debug("a peer has a device that this node has not", "peer", sess.PeerID(), "device", facts.Name)
	of := s.strange[sess.PeerID()]
	if of == nil {
		of = map[string]wire.DeviceFacts{}
		s.strange[sess.PeerID()] = of
	}
	if len(of) < maxStrange {
		of[facts.Name] = facts
	}
}

// maxStrange bounds what is kept for a peer that has more devices than there
// can be.
const maxStrange = 4096
