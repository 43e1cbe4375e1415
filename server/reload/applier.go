package reload

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/server/config"
)

// Tx is one transaction as an applier sees it.
type Tx struct {
	Node     string // the local node
	Old, New *config.Config
	// Changes are those that the applier wants, in the order of the file.
	Changes []config.Change
	// Began is when the first of the changes was put into effect; zero before.
	Began time.Time
}

// Applier puts changes of some keys into effect. Its methods are called by
// one goroutine at a time.
type Applier interface {
	// Name is for messages.
	Name() string
	// Wants reports whether the applier puts changes of that key into effect.
	// Several may want one key; a change that nobody wants needs a restart.
	Wants(key string) bool
	// Plan says which of the changes cannot be applied now, or not live. It
	// changes nothing.
	Plan(ctx context.Context, tx Tx) ([]Verdict, error)
	// Apply puts the changes into effect. Where it fails, Undo is called.
	Apply(ctx context.Context, tx Tx) error
	// Undo restores what was before Apply, which may have failed half way. It
	// is also called when a later applier fails.
	Undo(ctx context.Context, tx Tx) error
}

// Verifier is an applier that can look, after all have applied, whether the
// changes have the effect that they should; an error undoes everything.
type Verifier interface {
	Verify(ctx context.Context, tx Tx) error
}

// Verdict is what an applier says of one change: how it would apply, where
// that is other than the schema says.
type Verdict struct {
	Key string
	How config.How
	Why string
}

// Refuse is the verdict that a change cannot be made now.
func Refuse(key, format string, args ...any) Verdict {
	return Verdict{key, config.Refused, fmt.Sprintf(format, args...)}
}

// KeyError is an applier's failure with one key; the transaction's error then
// has the place in the file.
type KeyError struct {
	Key string
	Err error
}

// Error names the key.
func (e *KeyError) Error() string { return e.Key + ": " + e.Err.Error() }

// Unwrap is the failure.
func (e *KeyError) Unwrap() error { return e.Err }

// RefusedError is a configuration that is valid and cannot be applied to the
// running engine. Nothing was changed.
type RefusedError struct {
	// Changes are those that stand in the way.
	Changes []config.Change
	// Restart says that a restart of the daemon would take them all, and
	// that Partial would leave them for then.
	Restart bool
}

// Error is a line for each change that stands in the way, with its place.
func (e *RefusedError) Error() string {
	var text strings.Builder
	text.WriteString("the configuration was not applied")
	for _, c := range e.Changes {
		text.WriteString("\n" + c.Where() + ": " + c.String())
	}
	if e.Restart {
		text.WriteString("\nrestart the daemon to apply it, or apply the rest with --partial")
	}
	return text.String()
}

// ApplyError is the failure to put a change into effect. Everything was
// undone, unless Undo says otherwise.
type ApplyError struct {
	Applier string
	Change  *config.Change // what failed, where the applier said
	Err     error
	Undo    error // what could not be undone
}

// Error says where, what, why, and what state things are in.
func (e *ApplyError) Error() string {
	text := fmt.Sprintf("%s: %v", e.Applier, e.Err)
	if e.Change != nil {
		text = fmt.Sprintf("%s: %s: %v", e.Change.Where(), e.Applier, e.Err)
	}
	if e.Undo != nil {
		return text + "\nand going back failed too, so that not all is as it was: " + e.Undo.Error() + "\nrestart the daemon"
	}
	return text + "\nall is as it was before"
}

// Unwrap is the failure.
func (e *ApplyError) Unwrap() error { return e.Err }
