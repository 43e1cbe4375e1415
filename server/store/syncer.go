package store

import "sync"

// syncer lets one sync of a file run at a time. That is for safety first: the
// kernel reports a lost write to one of two concurrent syncs, and the other one
// would be told that all is well. Whoever waits meanwhile shares the next sync.
//
// After a failed sync nobody knows what was lost, and a later success would say
// nothing about it. So the first failure is every later outcome.
type syncer struct {
	turn turn

	// mu guards what is below. No I/O happens under it.
	mu     sync.Mutex
	noted  uint64 // things that happened
	synced uint64 // of those, known to be durable
	failed error
}

func newSyncer() *syncer { return &syncer{turn: newTurn()} }

// note says that something happened which the next sync must cover.
func (s *syncer) note() {
	s.mu.Lock()
	s.noted++
	s.mu.Unlock()
}

// err is the failure after which nothing counts any more.
func (s *syncer) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// fail records a failure, unless there was one before.
func (s *syncer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
}

// sync returns when what was noted before is durable, through do where nobody
// else has seen to it.
func (s *syncer) sync(do func() error) error {
	upTo, synced, err := s.state()
	if err != nil || synced >= upTo {
		return err
	}
	s.turn.take()
	defer s.turn.release()
	covers, synced, err := s.state()
	if err != nil || synced >= upTo {
		return err
	}
	if err := do(); err != nil {
		s.fail(err)
		return err
	}
	s.mu.Lock()
	s.synced = covers
	s.mu.Unlock()
	return nil
}

func (s *syncer) state() (noted, synced uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noted, s.synced, s.failed
}

// turn lets one goroutine in at a time, for I/O of which two must not mix. It
// is a channel and not a mutex so that waiting can be given up, and so that
// virtual time goes on while somebody waits.
type turn chan struct{}

func newTurn() turn     { return make(turn, 1) }
func (t turn) take()    { t <- struct{}{} }
func (t turn) release() { <-t }
