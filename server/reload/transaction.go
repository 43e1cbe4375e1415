package reload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/server/config"
)

// transaction is one change of the configuration under way.
type transaction struct {
	data     []byte
	base     *config.Config   // of the file
	overlay  []config.Setting // set by command
	held     *config.Config   // what will hold
	old      *config.Config   // what holds
	heldBack []config.Setting // old values that stay until a restart
	changes  []config.Change  // all, with the verdicts
	applied  []config.Change  // what was put into effect
	fromFile bool             // it says whether the file is applied
	rollback bool
	began    time.Time // when applying began
}

// prepare lays what was set by command over a file's configuration and plans
// the transaction. A setting falls where the file has changed its key.
func (e *Engine) prepare(ctx context.Context, data []byte, base *config.Config) (*transaction, error) {
	now := e.revision()
	t := &transaction{data: data, base: base, old: now.held, fromFile: true}
	diff := config.Diff(now.base, base)
	t.overlay = unchanged(now.overlay, diff)
	t.heldBack = unchanged(now.heldBack, diff)
	return t, e.plan(ctx, t)
}

// unchanged is the settings without those whose key, node or device the file
// has changed, added or removed.
func unchanged(settings []config.Setting, diff []config.Change) []config.Setting {
	return slices.DeleteFunc(slices.Clone(settings), func(s config.Setting) bool {
		return slices.ContainsFunc(diff, func(c config.Change) bool {
			return c.Key == s.Key || strings.HasPrefix(s.Key, c.Key+".")
		})
	})
}

// layOver makes what will hold of the file and what was set by command.
func (e *Engine) layOver(t *transaction) error {
	t.held = t.base
	all := slices.Concat(t.overlay, t.heldBack)
	if len(all) == 0 {
		return nil
	}
	held, err := t.base.With(e.opts.Env, all...)
	if err != nil {
		return fmt.Errorf("the file does not go with what was set by command: %w", err)
	}
	t.held = held
	return nil
}

// pending are the changes that wait for a restart.
func (t *transaction) pending() []config.Change {
	if len(t.heldBack) == 0 {
		return nil
	}
	var out []config.Change
	for _, c := range config.Diff(t.held, t.base) {
		if slices.ContainsFunc(t.heldBack, func(s config.Setting) bool { return s.Key == c.Key }) {
			out = append(out, c)
		}
	}
	return out
}

// plan compares, and asks the appliers what they say to it.
func (e *Engine) plan(ctx context.Context, t *transaction) error {
	if err := e.layOver(t); err != nil {
		return err
	}
	if _, err := t.held.Local(e.opts.Node); err != nil {
		return fmt.Errorf("this node cannot leave the cluster while it runs: %w", err)
	}
	t.changes = config.Diff(t.old, t.held)
	wanted := map[string]bool{}
	for _, a := range e.opts.Appliers {
		tx := e.tx(t, a, t.changes)
		if len(tx.Changes) == 0 {
			continue
		}
		for _, c := range tx.Changes {
			wanted[c.Key] = true
		}
		verdicts, err := a.Plan(ctx, tx)
		if err != nil {
			return &ApplyError{Applier: a.Name(), Err: fmt.Errorf("cannot plan the change: %w", err)}
		}
		judge(t.changes, verdicts)
	}
	for i, c := range t.changes {
		if !wanted[c.Key] && c.How != config.Refused && c.How != config.Daemon {
			t.changes[i].How, t.changes[i].Why = config.Daemon, "nothing in the running daemon takes it"
		}
	}
	return nil
}

// tx is the transaction as an applier sees it.
func (e *Engine) tx(t *transaction, a Applier, changes []config.Change) Tx {
	tx := Tx{Node: e.opts.Node, Old: t.old, New: t.held, Began: t.began}
	for _, c := range changes {
		if a.Wants(c.Key) {
			tx.Changes = append(tx.Changes, c)
		}
	}
	return tx
}

// severity orders the ways of a change, so that the worst verdict counts.
func severity(h config.How) int {
	return slices.Index([]config.How{config.Live, config.Restarts, config.Daemon, config.Refused}, h)
}

func judge(changes []config.Change, verdicts []Verdict) {
	for _, v := range verdicts {
		for i := range changes {
			if changes[i].Key == v.Key && severity(v.How) >= severity(changes[i].How) {
				changes[i].How, changes[i].Why = v.How, v.Why
			}
		}
	}
}

// with picks the changes that apply in that way.
func with(changes []config.Change, how config.How) []config.Change {
	var out []config.Change
	for _, c := range changes {
		if c.How == how {
			out = append(out, c)
		}
	}
	return out
}

// run decides whether a planned transaction may be applied, and applies it.
func (e *Engine) run(ctx context.Context, t *transaction, req Request) error {
	if refused := with(t.changes, config.Refused); len(refused) > 0 {
		return &RefusedError{Changes: refused}
	}
	if restart := with(t.changes, config.Daemon); len(restart) > 0 {
		if !req.Partial {
			return &RefusedError{Changes: restart, Restart: true}
		}
		if err := e.leaveOut(t, restart); err != nil {
			return err
		}
	}
	t.applied = slices.DeleteFunc(slices.Clone(t.changes), func(c config.Change) bool { return c.How == config.Daemon })
	// Once it has begun, the transaction ends, whoever asked for it and left.
	return e.apply(context.WithoutCancel(ctx), t)
}

// leaveOut takes the changes that need a restart out of the transaction: the
// old values stay, as if a command had set them, until the daemon restarts.
func (e *Engine) leaveOut(t *transaction, restart []config.Change) error {
	keep := slices.Clone(t.heldBack)
	for _, c := range restart {
		if c.Op != config.Changed {
			return &RefusedError{Changes: []config.Change{c}, Restart: false}
		}
		keep = append(keep, config.Setting{Key: c.Key, Value: c.Old})
	}
	held, err := t.held.With(e.opts.Env, keep...)
	if err != nil {
		return fmt.Errorf("the configuration cannot be applied in part: %w", err)
	}
	t.held, t.heldBack = held, keep
	return nil
}

// apply puts the changes into effect, applier by applier, and undoes all of
// it in reverse where one fails.
func (e *Engine) apply(ctx context.Context, t *transaction) error {
	t.began = time.Now()
	var done []Applier
	undo := func(a Applier, err error) error {
		ae := &ApplyError{Applier: a.Name(), Err: err, Change: e.changeOf(t, err)}
		for _, d := range slices.Backward(done) {
			ae.Undo = errors.Join(ae.Undo, named(d, d.Undo(ctx, e.tx(t, d, t.applied))))
		}
		return ae
	}
	for _, a := range e.opts.Appliers {
		tx := e.tx(t, a, t.applied)
		if len(tx.Changes) == 0 {
			continue
		}
		done = append(done, a)
		if err := a.Apply(ctx, tx); err != nil {
			return undo(a, err)
		}
	}
	for _, a := range done {
		if v, ok := a.(Verifier); ok {
			if err := v.Verify(ctx, e.tx(t, a, t.applied)); err != nil {
				return undo(a, fmt.Errorf("it was applied and has not the effect: %w", err))
			}
		}
	}
	return nil
}

func named(a Applier, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", a.Name(), err)
}

// changeOf is the change that an applier's error is about, if it says so.
func (e *Engine) changeOf(t *transaction, err error) *config.Change {
	ke, ok := errors.AsType[*KeyError](err)
	if !ok {
		return nil
	}
	near := -1 // a change of the table that the key is in, or of one of its keys
	for i, c := range t.applied {
		if c.Key == ke.Key {
			return &t.applied[i]
		}
		if near < 0 && (strings.HasPrefix(ke.Key, c.Key+".") || strings.HasPrefix(c.Key, ke.Key+".")) {
			near = i
		}
	}
	if near >= 0 {
		return &t.applied[near]
	}
	return nil
}
