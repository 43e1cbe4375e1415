package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// Handler is one command that is run on events.
type Handler struct {
	Event       string   // a type, or Any
	Command     []string // argv
	Devices     []string // only events of these devices; empty is all
	Nodes       []string // only events of these nodes; empty is all
	Timeout     time.Duration
	MaxParallel int
	Retries     int // further attempts after one that failed
}

// Wants reports whether the handler is for that event.
func (h *Handler) Wants(e Event) bool {
	return len(h.Command) > 0 && (h.Event == Any || h.Event == e.Type) &&
		(len(h.Devices) == 0 || slices.Contains(h.Devices, e.Device)) &&
		(len(h.Nodes) == 0 || slices.Contains(h.Nodes, e.Node))
}

// HandlerStats is what a handler has done so far.
type HandlerStats struct {
	Event     string    `json:"event"`
	Command   []string  `json:"command"`
	Running   int       `json:"running"`
	Queued    int       `json:"queued"`
	Succeeded uint64    `json:"succeeded"`
	Failed    uint64    `json:"failed"` // after all retries
	Retried   uint64    `json:"retried"`
	Dropped   uint64    `json:"dropped"` // the queue was full
	Last      string    `json:"last"`    // how the last one ended
	LastTime  time.Time `json:"last_time,omitzero"`
}

// Limits of Handlers.
const (
	// HandlerQueue bounds the events that wait for one handler.
	HandlerQueue = 256
	// HandlersParallel bounds the commands of all handlers at one time.
	HandlersParallel = 32

	retryFirst = time.Second
	retryMost  = 30 * time.Second
)

// Handlers runs the configured commands on the events of a log. What they do
// goes to the logger and into Stats, never back into the stream: a handler of
// every event must not feed itself.
type Handlers struct {
	log    *Log
	runner Runner
	logger *slog.Logger
	slots  chan struct{} // one for each command that runs

	// mu guards the fields below and those of each handlerState.
	mu    sync.Mutex
	list  []*handlerState
	lost  uint64
	tasks sync.WaitGroup // workers; Run, which adds them, waits for them
}

// handlerState is one handler at work. It is guarded by Handlers.mu.
type handlerState struct {
	Handler
	queue   []Event
	running int
	gone    bool // no longer configured: what waits is dropped
	failing bool // the last one failed, after all retries
	stats   HandlerStats
}

// NewHandlers makes a set of no handlers.
func NewHandlers(log *Log, runner Runner, logger *slog.Logger) *Handlers {
	return &Handlers{log: log, runner: runner, logger: logger, slots: make(chan struct{}, HandlersParallel)}
}

// Set replaces the handlers. One that stays the same keeps its queue and its
// statistics; of one that goes, what runs ends in its time and what waits is
// dropped.
func (h *Handlers) Set(list []Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.list
	h.list = make([]*handlerState, len(list))
	for i, want := range list {
		at := slices.IndexFunc(old, func(s *handlerState) bool { return reflect.DeepEqual(s.Handler, want) })
		if at >= 0 {
			h.list[i] = old[at]
			old = slices.Delete(slices.Clone(old), at, at+1)
			continue
		}
		h.list[i] = &handlerState{Handler: want, stats: HandlerStats{Event: want.Event, Command: want.Command}}
	}
	for _, s := range old {
		s.gone, s.queue = true, nil
	}
}

// Stats is what each handler has done, in the order of Set.
func (h *Handlers) Stats() []HandlerStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]HandlerStats, len(h.list))
	for i, s := range h.list {
		out[i] = s.stats
		out[i].Running, out[i].Queued = s.running, len(s.queue)
	}
	return out
}

// Health is what is wrong with the first handler that something is wrong with:
// it failed the last time, or is too slow for its events.
func (h *Handlers) Health() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, s := range h.list {
		switch {
		case len(s.queue) == HandlerQueue:
			return fmt.Errorf("the queue of handler %d (%s) is full; %d events were dropped", i+1, s.Event, s.stats.Dropped)
		case s.failing:
			return fmt.Errorf("handler %d (%s) failed: %s", i+1, s.Event, s.stats.Last)
		}
	}
	return nil
}

// Lost is how many events came faster than they could be given to handlers.
func (h *Handlers) Lost() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lost
}

// Run gives the events after number after (0: from the next on) to the
// handlers until ctx ends or the log is closed, then ends what runs and
// returns when it has ended.
//
// A panic of what runs a command is one of Run.
func (h *Handlers) Run(ctx context.Context, after uint64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		cancel(nil)
		h.tasks.Wait()
		if p, ok := errors.AsType[*workerPanic](context.Cause(ctx)); ok {
			panic(p.Error())
		}
	}()
	sub, err := h.log.Subscribe(after)
	if err != nil {
		return err
	}
	var buf [64]Event
	for {
		n, lost, err := sub.Read(ctx, buf[:])
		if err != nil {
			return endOf(ctx, err)
		}
		if lost != nil {
			h.logger.Warn("events came too fast for the handlers", "lost", lost.Count, "from", lost.From, "to", lost.To)
			h.noteLost(lost.Count)
		}
		for _, e := range buf[:n] {
			h.offer(ctx, cancel, e)
		}
	}
}

// endOf is nil for the ways Run is meant to end.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

func (h *Handlers) noteLost(n uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost += n
}

// offer gives an event to every handler that wants it.
func (h *Handlers) offer(ctx context.Context, stop context.CancelCauseFunc, e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.list {
		switch {
		case !s.Wants(e):
		case s.running < max(s.MaxParallel, 1):
			s.running++
			h.tasks.Go(func() { h.work(ctx, stop, s, e) })
		case len(s.queue) < HandlerQueue:
			s.queue = append(s.queue, e)
		default:
			s.stats.Dropped++
		}
	}
}

// workerPanic is the panic of a worker, on its way to Run.
type workerPanic struct {
	value any
	stack []byte
}

// Error is the panic with the worker's stack.
func (p *workerPanic) Error() string {
	return fmt.Sprintf("%v, while a handler ran\n%s", p.value, p.stack)
}

// work runs a handler on an event and then on what waits for it. Where it
// panics, it stops all.
func (h *Handlers) work(ctx context.Context, stop context.CancelCauseFunc, s *handlerState, e Event) {
	defer func() {
		if v := recover(); v != nil {
			stop(&workerPanic{v, debug.Stack()})
			h.mu.Lock()
			s.running--
			h.mu.Unlock()
		}
	}()
	for more := true; more; e, more = h.take(ctx, s) {
		text, err := h.attempts(ctx, s, e)
		h.done(s, text, err)
	}
}

// take is the next event for a worker; without one the worker ends.
func (h *Handlers) take(ctx context.Context, s *handlerState) (Event, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(s.queue) == 0 || ctx.Err() != nil {
		s.running--
		return Event{}, false
	}
	e := s.queue[0]
	s.queue = slices.Delete(s.queue, 0, 1)
	return e, true
}

func (h *Handlers) done(s *handlerState, text string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.failing = err != nil
	if s.stats.Last, s.stats.LastTime = text, time.Now(); err != nil {
		s.stats.Failed++
	} else {
		s.stats.Succeeded++
	}
}

// attempts runs the command until it succeeds or its retries are used up, and
// returns how it ended in words.
func (h *Handlers) attempts(ctx context.Context, s *handlerState, e Event) (string, error) {
	wait := retryFirst
	for try := 0; ; try++ {
		text, err := h.once(ctx, s, e)
		log := h.logger.With("event", e.Type, "seq", e.Seq, "command", s.Command[0])
		if err == nil {
			log.Info("handler ran")
			return text, nil
		}
		if try >= s.Retries || ctx.Err() != nil || h.isGone(s) {
			log.Warn("handler failed", "err", err, "attempts", try+1)
			return text, err
		}
		log.Info("handler failed and will be run again", "err", err, "in", wait)
		h.noteRetry(s)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return text, err
		}
		wait = min(2*wait, retryMost)
	}
}

func (h *Handlers) isGone(s *handlerState) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return s.gone
}

func (h *Handlers) noteRetry(s *handlerState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.stats.Retried++
}

// once runs the command once, within its time and with a slot of all.
func (h *Handlers) once(ctx context.Context, s *handlerState, e Event) (string, error) {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return "not run: the daemon stops", context.Cause(ctx)
	}
	cmd, err := CommandFor(s.Command, e)
	if err != nil {
		return err.Error(), err
	}
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("took longer than %v", s.Timeout))
		defer cancel()
	}
	res, err := h.runner.Run(ctx, cmd)
	switch {
	case ctx.Err() != nil && err != nil:
		err = context.Cause(ctx)
	case err == nil && res.Status != 0:
		err = fmt.Errorf("%s", res.Text)
	}
	if err != nil {
		return err.Error(), err
	}
	return res.Text, nil
}
