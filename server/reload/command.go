package reload

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/lockstepd/lockstep/server/config"
)

// Set changes keys by command: through the same rules and the same
// transaction as the file, and over it until Save or until the file changes
// the key. Setting a key to what the file says takes it out of the overlay.
func (e *Engine) Set(ctx context.Context, req Request, settings ...config.Setting) (Revision, error) {
	if err := e.lock(ctx); err != nil {
		return Revision{}, err
	}
	defer e.unlock()
	now := e.revision()
	t := &transaction{data: now.data, base: now.base, old: now.held, heldBack: now.heldBack}
	t.overlay = merge(now.base, now.overlay, settings)
	t.heldBack = slices.DeleteFunc(slices.Clone(now.heldBack), func(h config.Setting) bool {
		return slices.ContainsFunc(settings, func(s config.Setting) bool { return s.Key == h.Key })
	})
	if _, err := t.old.With(e.opts.Env, settings...); err != nil {
		return now, err // said of the settings alone, not of all that was set before
	}
	if err := e.plan(ctx, t); err != nil {
		return now, err
	}
	if err := e.run(ctx, t, req); err != nil {
		return now, err
	}
	return e.commit(t, req.Who), nil
}

// merge is the overlay with new settings, without those that say what the
// file says.
func merge(base *config.Config, overlay, settings []config.Setting) []config.Setting {
	out := slices.Clone(overlay)
	for _, s := range settings {
		out = slices.DeleteFunc(out, func(o config.Setting) bool { return o.Key == s.Key })
		out = append(out, s)
	}
	return slices.DeleteFunc(out, func(s config.Setting) bool { return says(base, s) })
}

// says reports whether the configuration has the setting's value already.
func says(c *config.Config, s config.Setting) bool {
	next, err := c.With(nil, s)
	return err == nil && len(config.Diff(c, next)) == 0
}

// Save writes what was set by command into the file, and leaves its comments
// and layout as they are. It is refused while the file has changes that are
// not applied.
func (e *Engine) Save(ctx context.Context, req Request) error {
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	now := e.revision()
	if len(now.overlay) == 0 {
		return nil
	}
	data, err := config.ReadFile(e.opts.Path)
	if err != nil {
		return err
	}
	if !bytes.Equal(data, now.data) {
		return fmt.Errorf("cannot save: %s has changes that are not applied; reload or take them back first", e.opts.Path)
	}
	out, err := config.Edit(e.opts.Path, data, e.opts.Env, now.overlay...)
	if err != nil {
		return err
	}
	base, err := config.Decode(e.opts.Path, out, e.opts.Env)
	if err != nil {
		return err
	}
	t := &transaction{data: out, base: base, old: now.held, heldBack: now.heldBack, fromFile: true}
	if err := e.layOver(t); err != nil {
		return err
	}
	staged, err := stage(e.opts.Path, out)
	if err != nil {
		return err
	}
	if err := staged.commit(); err != nil {
		return err
	}
	e.note(out, base)
	e.commit(t, req.Who)
	e.opts.Logger.Info("settings made by command saved", "file", e.opts.Path, "settings", len(now.overlay), "who", req.Who)
	return nil
}

// note remembers what the file holds, so that a watcher finds nothing new.
func (e *Engine) note(data []byte, base *config.Config) {
	digest := sum(data, base)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tried = digest
}

// Rollback makes an earlier revision hold again, as a new one, and writes its
// text to the file.
func (e *Engine) Rollback(ctx context.Context, req Request, number uint64) (Revision, error) {
	if err := e.lock(ctx); err != nil {
		return Revision{}, err
	}
	defer e.unlock()
	now := e.revision()
	to, err := e.find(number)
	if err != nil {
		return now, err
	}
	base, err := config.Decode(e.opts.Path, to.data, e.opts.Env)
	if err != nil {
		return now, fmt.Errorf("revision %d is no longer valid: %w", number, err)
	}
	t := &transaction{data: to.data, base: base, overlay: to.overlay, old: now.held, fromFile: true, rollback: true}
	if err := e.plan(ctx, t); err != nil {
		return now, err
	}
	staged, err := stage(e.opts.Path, to.data)
	if err != nil {
		return now, err
	}
	if err := e.run(ctx, t, req); err != nil {
		staged.abort()
		return now, err
	}
	err = staged.commit()
	if err == nil {
		e.note(to.data, base)
	} else {
		err = fmt.Errorf("revision %d holds again, but the file still has the later text: %w", number, err)
	}
	return e.commit(t, req.Who), err
}

// find is an earlier revision.
func (e *Engine) find(number uint64) (Revision, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if number == e.now.Number {
		return Revision{}, fmt.Errorf("revision %d is the one that holds", number)
	}
	for _, r := range e.history {
		if r.Number == number {
			return r, nil
		}
	}
	return Revision{}, fmt.Errorf("there is no revision %d; revisions %d to %d are kept", number, e.history[0].Number, e.now.Number)
}
