package vlog

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// writer writes formatted messages to one destination. It is used by one
// goroutine, the sink's.
type writer interface {
	write(line []byte, e *entry) error
	idle()       // the queue is empty for now
	close()      // no more will come
	ready() bool // called at start and after every control function: is there anywhere to write to
}

// work is one item of a sink's queue: a message or a control function.
type work struct {
	line  []byte
	entry entry
	do    func()
	done  chan struct{}
}

// queueLength bounds what waits for one destination: about 1 MiB of usual lines.
const queueLength = 4096

// patience is how long a caller that must know waits for a destination.
const patience = 3 * time.Second

var errStuck = errors.New("the log destination does not answer; its file system or terminal may hang")

// sink is a bounded queue in front of a writer.
type sink struct {
	w       writer
	queue   chan work
	stop    chan struct{}
	once    sync.Once
	done    chan struct{}
	isOpen  atomic.Bool
	dropped atomic.Uint64
}

func newSink(w writer) *sink {
	s := &sink{w: w, queue: make(chan work, queueLength), stop: make(chan struct{}), done: make(chan struct{})}
	s.isOpen.Store(w.ready())
	go s.run()
	return s
}

// open reports whether the destination exists at all.
func (s *sink) open() bool { return s.isOpen.Load() }

// put queues a line, or counts it as lost if the queue is full.
func (s *sink) put(line []byte, e *entry) {
	select {
	case s.queue <- work{line: line, entry: *e}:
	default:
		s.dropped.Add(1)
	}
}

// call has f run between two messages, and waits for it.
func (s *sink) call(f func()) error {
	done := make(chan struct{})
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	select {
	case s.queue <- work{do: f, done: done}:
	case <-s.done:
		return errors.New("the log is closed")
	case <-deadline.C:
		return errStuck
	}
	select {
	case <-done:
		return nil
	case <-s.done:
		return nil
	case <-deadline.C:
		return errStuck
	}
}

func (s *sink) run() {
	defer close(s.done)
	defer s.w.close()
	for {
		select {
		case w := <-s.queue:
			s.handle(w)
		default:
			s.w.idle()
			select {
			case w := <-s.queue:
				s.handle(w)
			case <-s.stop:
				s.drain()
				return
			}
		}
	}
}

// drain handles what was queued before the stop.
func (s *sink) drain() {
	for {
		select {
		case w := <-s.queue:
			s.handle(w)
		default:
			return
		}
	}
}

func (s *sink) handle(w work) {
	if w.do != nil {
		w.do()
		s.isOpen.Store(s.w.ready())
		close(w.done)
		return
	}
	if n := s.dropped.Swap(0); n > 0 {
		lost := w.entry
		lost.text = fmt.Sprintf("%d log messages were lost here: the destination could not take them", n)
		if s.w.write(fmt.Appendf(nil, "%s|%s|WARN|%s\n", lost.time.UTC().Format(time.RFC3339), lost.module, lost.text), &lost) != nil {
			s.dropped.Add(n)
		}
	}
	if s.w.write(w.line, &w.entry) != nil {
		s.dropped.Add(1)
	}
}

// finish writes what is queued and ends the sink; a destination that hangs is left behind.
func (s *sink) finish() {
	s.once.Do(func() { close(s.stop) })
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	}
}

// plainWriter writes lines to a stream.
type plainWriter struct{ w io.Writer }

func (p *plainWriter) write(line []byte, _ *entry) error {
	_, err := p.w.Write(line)
	return err
}

func (p *plainWriter) idle()       {}
func (p *plainWriter) close()      {}
func (p *plainWriter) ready() bool { return p.w != io.Discard }
