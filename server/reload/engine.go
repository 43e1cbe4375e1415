package reload

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/config"
)

// HistorySize is how many revisions are kept.
const HistorySize = 10

// Options are what an Engine is made with.
type Options struct {
	Path     string // of the configuration file
	Node     string // the local node
	Env      config.Env
	Appliers []Applier // in the order in which they apply; undone in reverse
	Logger   *slog.Logger
	// Store keeps the overlay over restarts; nil forgets it.
	Store Store
	// History keeps the revisions over restarts.
	History HistoryFile
	// Observe is told of every revision that was committed and of every
	// configuration that was not. It must not wait; it may read the Engine, not
	// change it.
	Observe func(Outcome)
}

// Outcome is how an attempt to change the configuration ended.
type Outcome struct {
	Revision Revision // the one that holds
	Err      error    // nil where it is a new one
	Who      string   // who asked
}

// Revision is one configuration that held or holds.
type Revision struct {
	Number  uint64
	Time    time.Time
	Who     string // "file", "start", "uid 0 (root)", …
	Changes []config.Change
	// Pending are changes of the file that wait for a restart of the daemon.
	Pending []config.Change

	data    []byte // the file's text
	overlay []config.Setting
	// heldBack are the old values of the pending changes: they hold until
	// the daemon restarts.
	heldBack []config.Setting
	base     *config.Config // of the file alone
	held     *config.Config // what holds
}

// Config is the configuration of the revision, as it holds or held.
func (r Revision) Config() *config.Config { return r.held }

// Status is what "status" shows of the configuration.
type Status struct {
	Revision uint64
	Since    time.Time
	// Err is why the file as it is now is not applied; nil where it is.
	Err      error
	ErrSince time.Time
	Pending  []config.Change  // wait for a restart of the daemon
	Overlay  []config.Setting // set by command, not in the file
}

// Request is who asks for a change, and how.
type Request struct {
	Who string
	// Partial applies what can be applied and leaves what needs a restart.
	Partial bool
}

// Engine holds the configuration of a running engine and changes it.
type Engine struct {
	opts Options

	// op is held by what changes the configuration, so that one transaction
	// runs at a time; it is a channel so that waiting for it can end.
	op chan struct{}

	// mu guards the fields below; no applier is called under it.
	mu       sync.RWMutex
	now      Revision
	history  []Revision // the newest last; now is its last entry
	err      error
	errSince time.Time
	tried    [sha256.Size]byte // digest of what the last reload read
}

// New makes an engine whose configuration is the file's, with the overlay
// that the store has. It applies nothing: the engine starts with what Current
// returns. Settings of the overlay that are no longer valid are dropped, with
// a word in the log.
func New(opts Options) (*Engine, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{opts: opts, op: make(chan struct{}, 1)}
	data, base, err := e.read(opts.Path)
	if err != nil {
		return nil, err
	}
	if _, err := base.Local(opts.Node); err != nil {
		return nil, err
	}
	rev := Revision{Number: 1, Time: time.Now(), Who: "start", data: data, base: base}
	rev.overlay, rev.held = e.stored(base)
	e.begin(rev)
	e.tried = sum(data, base)
	return e, nil
}

// stored loads the overlay and lays it over the file's configuration.
func (e *Engine) stored(base *config.Config) ([]config.Setting, *config.Config) {
	if e.opts.Store == nil {
		return nil, base
	}
	saved, err := e.opts.Store.Load()
	if err != nil {
		e.opts.Logger.Warn("settings made by command are lost", "err", err)
		return nil, base
	}
	if held, err := base.With(e.opts.Env, saved...); err == nil {
		return saved, held
	}
	held := base
	var good []config.Setting
	for _, s := range saved {
		next, err := held.With(e.opts.Env, s)
		if err != nil {
			e.opts.Logger.Warn("a setting made by command is dropped: the file no longer allows it", "key", s.Key, "value", s.Value, "err", err)
			continue
		}
		good, held = append(good, s), next
	}
	return good, held
}

// read reads and decodes a file.
func (e *Engine) read(path string) ([]byte, *config.Config, error) {
	data, err := config.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	c, err := config.Decode(path, data, e.opts.Env)
	return data, c, err
}

// sum tells whether the file, its secret or its certificates are others.
func sum(data []byte, c *config.Config) [sha256.Size]byte {
	h := sha256.New()
	h.Write(data)
	if c != nil {
		h.Write(c.Contents())
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Current is the configuration that holds.
func (e *Engine) Current() *config.Config { return e.revision().held }

func (e *Engine) revision() Revision {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.now
}

// Status tells how the configuration is.
func (e *Engine) Status() Status {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return Status{e.now.Number, e.now.Time, e.err, e.errSince, e.now.Pending, slices.Clone(e.now.overlay)}
}

// History is the last revisions, the newest first.
func (e *Engine) History() []Revision {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := slices.Clone(e.history)
	slices.Reverse(out)
	return out
}

// Shown is one key of "config show".
type Shown struct {
	config.Key
	// Runtime says that a command set the value; File is then the file's.
	Runtime bool
	File    string
}

// Text is the line for people: "cluster.tick_time = 20s (file: 8s)".
func (s Shown) Text() string {
	text := s.Path + " = " + s.Value
	if s.Runtime {
		text += " (file: " + s.File + ")"
	}
	return text
}

// Show lists every key that holds, and what the file says where that differs.
func (e *Engine) Show() []Shown {
	rev := e.revision()
	file := map[string]string{}
	for _, k := range rev.base.Keys() {
		file[k.Path] = k.Value
	}
	var out []Shown
	for _, k := range rev.held.Keys() {
		f, known := file[k.Path]
		out = append(out, Shown{k, !known || f != k.Value, f})
	}
	return out
}

// Overrides lists the keys that a command set and whose value the file does not have.
func (e *Engine) Overrides() []Shown {
	if len(e.revision().overlay) == 0 {
		return nil
	}
	return slices.DeleteFunc(e.Show(), func(s Shown) bool { return !s.Runtime })
}

// Check decodes and validates a file, by default the configuration file, as
// the start and a reload do. Its error is config.Faults where it is wrong.
func (e *Engine) Check(path string) error {
	_, c, err := e.read(e.or(path))
	if err == nil {
		_, err = c.Local(e.opts.Node)
	}
	return err
}

func (e *Engine) or(path string) string {
	if path == "" {
		return e.opts.Path
	}
	return path
}

// Diff says what applying a file, by default the configuration file, would
// change and how, without doing it.
func (e *Engine) Diff(ctx context.Context, path string) ([]config.Change, error) {
	data, base, err := e.read(e.or(path))
	if err != nil {
		return nil, err
	}
	if err := e.lock(ctx); err != nil {
		return nil, err
	}
	defer e.unlock()
	t, err := e.prepare(ctx, data, base)
	if err != nil {
		return nil, err
	}
	return t.changes, nil
}

// Reload applies the file as it is now. Without a change there is no new
// revision. Its error is config.Faults, *RefusedError or *ApplyError, and
// what held before holds still.
func (e *Engine) Reload(ctx context.Context, req Request) (Revision, error) {
	if err := e.lock(ctx); err != nil {
		return Revision{}, err
	}
	defer e.unlock()
	return e.reload(ctx, req)
}

// FileChanged is Reload for a Watcher: it does nothing where the file, the
// secret and the certificates have the content that was tried last.
func (e *Engine) FileChanged(ctx context.Context) {
	if e.lock(ctx) != nil {
		return
	}
	defer e.unlock()
	data, base, err := e.read(e.opts.Path)
	digest := sum(data, base)
	if err != nil {
		digest = sum([]byte(err.Error()), nil)
	}
	e.mu.RLock()
	same := digest == e.tried
	e.mu.RUnlock()
	if !same {
		_, _ = e.reload(ctx, Request{Who: "file"}) // the error is in the log and in Status
	}
}

func (e *Engine) reload(ctx context.Context, req Request) (Revision, error) {
	data, base, err := e.read(e.opts.Path)
	digest := sum(data, base)
	if err != nil {
		digest = sum([]byte(err.Error()), nil)
	}
	e.mu.Lock()
	e.tried = digest
	e.mu.Unlock()
	if err != nil {
		return e.fail(req.Who, err)
	}
	t, err := e.prepare(ctx, data, base)
	if err == nil {
		err = e.run(ctx, t, req)
	}
	if err != nil {
		return e.fail(req.Who, err)
	}
	return e.commit(t, req.Who), nil
}

// fail notes that the file is not applied.
func (e *Engine) fail(who string, err error) (Revision, error) {
	e.opts.Logger.Error("the configuration is not applied; what was before holds on", "who", who, "err", err)
	e.mu.Lock()
	e.err, e.errSince = err, time.Now()
	now := e.now
	e.mu.Unlock()
	e.observe(Outcome{now, err, who})
	return now, err
}

func (e *Engine) observe(o Outcome) {
	if e.opts.Observe != nil {
		e.opts.Observe(o)
	}
}

// commit makes a transaction the configuration that holds. One that changes
// nothing, but for comments, makes no revision.
func (e *Engine) commit(t *transaction, who string) Revision {
	e.mu.Lock()
	rev := e.now
	quiet := len(t.changes) == 0 && !t.rollback
	moved := !slices.Equal(rev.overlay, t.overlay)
	if !quiet {
		rev.Number++
		rev.Time, rev.Who, rev.Changes = time.Now(), who, t.applied
	}
	rev.data, rev.overlay, rev.heldBack, rev.base, rev.held, rev.Pending = t.data, t.overlay, t.heldBack, t.base, t.held, t.pending()
	e.now = rev
	if quiet {
		e.history[len(e.history)-1] = rev
	} else {
		e.history = append(e.history, rev)
		e.history = e.history[max(0, len(e.history)-HistorySize):]
	}
	// A command says nothing about a file that could not be applied.
	mended := t.fromFile && e.err != nil
	if t.fromFile {
		e.err = nil
	}
	e.mu.Unlock()
	if moved {
		e.keep(t.overlay)
	}
	e.keepHistory()
	if !quiet || mended {
		e.opts.Logger.Info("configuration holds", "revision", rev.Number, "who", who, "changes", len(t.applied), "pending", len(rev.Pending))
		e.observe(Outcome{rev, nil, who})
	}
	return rev
}

// keep stores the overlay for the daemon's next life.
func (e *Engine) keep(overlay []config.Setting) {
	if e.opts.Store == nil {
		return
	}
	if err := e.opts.Store.Save(overlay); err != nil {
		e.opts.Logger.Warn("settings made by command will be lost at a restart", "err", err)
	}
}

// lock waits for another transaction to end.
func (e *Engine) lock(ctx context.Context) error {
	select {
	case e.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the configuration is being changed: %w", context.Cause(ctx))
	}
}

func (e *Engine) unlock() { <-e.op }

// IsRefused reports whether an error means that nothing was changed.
func IsRefused(err error) bool {
	if _, ok := errors.AsType[*RefusedError](err); ok {
		return true
	}
	_, ok := errors.AsType[config.Faults](err)
	return ok
}

// Files are the files whose change can change the configuration: the
// configuration itself, and the secret and certificates that it names.
func (e *Engine) Files() []string {
	c := e.revision().base
	out := []string{e.opts.Path}
	for _, p := range []string{c.Cluster.SecretFile, c.Cluster.TLS.CA, c.Cluster.TLS.Cert, c.Cluster.TLS.Key} {
		if p != "" {
			out = append(out, c.Resolve(p))
		}
	}
	return out
}
