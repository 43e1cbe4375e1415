package reload

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/lockstepd/lockstep/server/cmap"
	"github.com/lockstepd/lockstep/server/config"
)

// The keys of the object database that a Mirror keeps.
const (
	// MirrorPrefix is before every key of the configuration that holds, a str
	// each: "config.cluster.tick_time".
	MirrorPrefix = "config."
	// RevisionKey is a u64, ErrorKey a str that is "" while the file is
	// applied.
	RevisionKey = "runtime.config.revision"
	ErrorKey    = "runtime.config.error"
)

// Mirror shows the configuration in the object database, and makes what
// clients set there a transaction of the Engine: a key is validated by the
// rules of the file, and a refused one changes nothing.
type Mirror struct {
	engine *Engine
	db     *cmap.DB
	logger *slog.Logger
}

// NewMirror guards the configuration's keys and shows them for the first time.
func NewMirror(e *Engine, db *cmap.DB, logger *slog.Logger) (*Mirror, error) {
	m := &Mirror{e, db, logger}
	if err := db.Guard(MirrorPrefix, cmap.Guard{Check: m.check, Apply: m.apply}); err != nil {
		return nil, err
	}
	m.Sync()
	return m, nil
}

// check refuses what the rules of the file refuse.
func (m *Mirror) check(changes []cmap.Change) error {
	settings, err := settingsOf(changes)
	if err != nil {
		return err
	}
	_, err = m.engine.Current().With(nil, settings...)
	return err
}

// whoKey is the context's key of who sets a key of the object database.
type whoKey struct{}

// By returns a context whose changes of the object database are somebody's, by
// the words that the history of the configuration then has for them.
func By(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, whoKey{}, who)
}

func whoOf(ctx context.Context) string {
	if who, ok := ctx.Value(whoKey{}).(string); ok {
		return who
	}
	return "cmap"
}

// apply runs the changes as one transaction.
func (m *Mirror) apply(ctx context.Context, changes []cmap.Change) error {
	settings, err := settingsOf(changes)
	if err != nil {
		return err
	}
	if _, err := m.engine.Set(ctx, Request{Who: whoOf(ctx)}, settings...); err != nil {
		return err
	}
	m.Sync()
	return nil
}

// settingsOf is what clients' changes ask of the configuration.
func settingsOf(changes []cmap.Change) ([]config.Setting, error) {
	out := make([]config.Setting, 0, len(changes))
	for _, c := range changes {
		key := strings.TrimPrefix(c.Key, MirrorPrefix)
		if c.Op == cmap.Delete {
			return nil, errors.New("a key of the configuration cannot be deleted: set it to what it should be, or change the file")
		}
		if c.New.Type() != cmap.Str {
			return nil, errors.New("keys of the configuration are of type str: set " + c.Key + " str VALUE")
		}
		out = append(out, config.Setting{Key: key, Value: c.New.Text()})
	}
	return out, nil
}

// Sync makes the object database show the configuration that holds, in one
// batch. It is called after each Outcome.
func (m *Mirror) Sync() {
	st := m.engine.Status()
	failed := ""
	if st.Err != nil {
		failed = st.Err.Error()
	}
	ops := []cmap.Op{cmap.SetOp(RevisionKey, cmap.Uint(st.Revision)), cmap.SetOp(ErrorKey, cmap.String(cut(failed)))}
	shown := map[string]bool{}
	for _, k := range m.engine.Current().Keys() {
		key := MirrorPrefix + k.Path
		shown[key] = true
		ops = append(ops, cmap.SetOp(key, cmap.String(cut(k.Value))))
	}
	for _, old := range m.db.Dump(MirrorPrefix) {
		if !shown[old.Key] {
			ops = append(ops, cmap.DeleteOp(old.Key))
		}
	}
	if err := m.db.Commit(ops...); err != nil {
		m.logger.Error("the object database does not show the configuration", "err", err)
	}
}

// cut shortens a value to what the object database takes.
func cut(s string) string {
	if len(s) > cmap.MaxValueBytes {
		return strings.ToValidUTF8(s[:cmap.MaxValueBytes], "")
	}
	return s
}
