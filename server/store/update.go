package store

import (
	"bytes"
	"fmt"
)

// update is one call of Update.
type update struct {
	fn   func(*Superblock)
	own  bool       // by Meta itself, which may change what Update leaves alone
	done chan error // told once
}

// Update changes the superblock. When it returns nil the change is durable;
// when it returns an error it is not in effect, though it may be found at the
// next start. Concurrent updates share one write. An update that changes
// nothing costs none.
//
// fn must not keep the superblock or call Meta. Device, NodeID, Size, Created,
// Seq and the log's flags are not for it to change.
func (m *Meta) Update(fn func(*Superblock)) error {
	return m.submit(&update{fn: fn, done: make(chan error, 1)})
}

// update is Update for Meta's own fields.
func (m *Meta) update(fn func(*Superblock)) error {
	return m.submit(&update{fn: fn, own: true, done: make(chan error, 1)})
}

func (m *Meta) submit(u *update) error {
	m.mu.Lock()
	m.updates = append(m.updates, u)
	m.mu.Unlock()
	select {
	case err := <-u.done:
		return err
	case m.sbTurn <- struct{}{}:
		m.writeUpdates()
		m.sbTurn.release()
		return <-u.done
	}
}

// writeUpdates makes what is waiting durable, in one write.
func (m *Meta) writeUpdates() {
	m.mu.Lock()
	updates := m.updates
	m.updates = nil
	m.mu.Unlock()
	next := m.sb.Load()
	var applied []*update
	for _, u := range updates {
		changed, err := u.apply(next)
		if err != nil {
			u.done <- fmt.Errorf("metadata %s: %w", m.vol.path, err)
			continue
		}
		next = changed
		applied = append(applied, u)
	}
	if len(applied) == 0 {
		return
	}
	err := m.writeSuperblock(next)
	for _, u := range applied {
		u.done <- err
	}
}

// apply returns s as u changes it.
func (u *update) apply(s *Superblock) (*Superblock, error) {
	c := s.clone()
	u.fn(c)
	if !u.own {
		const kept = ALClean | ALDisabled
		c.Device, c.NodeID, c.Size, c.Created, c.log = s.Device, s.NodeID, s.Size, s.Created, s.log
		c.Flags = c.Flags&^kept | s.Flags&kept
	}
	c.Seq = s.Seq
	return c.clone(), c.validate()
}

// writeSuperblock makes next durable, in the slot that does not hold the
// current one, unless it says the same.
func (m *Meta) writeSuperblock(next *Superblock) error {
	current := m.sb.Load()
	var buf, old [sbBytes]byte
	next.encode(buf[:])
	current.encode(old[:])
	if bytes.Equal(buf[:], old[:]) {
		return m.vol.syncer.err()
	}
	next.Seq = current.Seq + 1
	next.encode(buf[:])
	if err := m.vol.write(buf[:], sbPlace(next.Seq)); err != nil {
		return err
	}
	if err := m.vol.sync(); err != nil {
		return err
	}
	m.sb.Store(next)
	return nil
}
