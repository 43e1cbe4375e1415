package rpc

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
)

// Access says what a command may do, and so who may call it.
type Access uint8

const (
	// Read commands look and change nothing.
	Read Access = iota
	// Admin commands change something; each call is logged.
	Admin
)

// String returns "read" or "admin".
func (a Access) String() string {
	if a == Admin {
		return "admin"
	}
	return "read"
}

const (
	// Unlimited as MaxArgs: any number of arguments.
	Unlimited = -1
	// NoDeadline as Deadline: the command ends when its client goes away.
	NoDeadline time.Duration = -1
	// DefaultDeadline is the deadline of a command that names none.
	DefaultDeadline = 10 * time.Second
)

// A Command is one row of the control surface. Dispatch, list-commands, help,
// shell completion and the reference are all made from these rows.
type Command struct {
	Name     string        // noun/verb in lower case, stable once released
	Usage    string        // its arguments: "DEVICE [PEER]"
	MinArgs  int           // this many of the handler's parameters are required
	MaxArgs  int           // Unlimited for any number
	Access   Access        // who may call it
	Doc      string        // one sentence that says what it does
	Hidden   bool          // not listed
	Deadline time.Duration // 0 for DefaultDeadline; NoDeadline for none
	Do       Handler       // Typed or Text
}

func (c *Command) deadline() time.Duration {
	if c.Deadline == 0 {
		return DefaultDeadline
	}
	return c.Deadline
}

// goodName reports whether name is made of parts joined by slashes, each of
// words joined by dashes, and each part begins with a letter.
func goodName(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] < 'a' || part[0] > 'z' {
			return false
		}
		for word := range strings.SplitSeq(part, "-") {
			if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
				return false
			}
		}
	}
	return true
}

// validate reports every fault of the row at once.
func (c *Command) validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("command %q: "+format, append([]any{c.Name}, args...)...))
	}
	if !goodName(c.Name) {
		fault("the name must be words of lower-case letters and digits, joined by - and /")
	}
	if strings.TrimSpace(c.Doc) == "" {
		fault("it has no doc")
	}
	if c.MinArgs < 0 || (c.MaxArgs < c.MinArgs && c.MaxArgs != Unlimited) {
		fault("%d to %d arguments make no sense", c.MinArgs, c.MaxArgs)
	}
	if c.Do == nil {
		fault("it has no handler")
	} else if err := c.Do.fits(c); err != nil {
		fault("%w", err)
	}
	return errors.Join(faults...)
}

// arity checks a number of positional arguments. The words are Open vSwitch's.
func (c *Command) arity(n int) error {
	if n < c.MinArgs {
		return api.Errorf(api.CodeInvalidParams, "%q command requires at least %d arguments", c.Name, c.MinArgs)
	}
	if c.MaxArgs != Unlimited && n > c.MaxArgs {
		return api.Errorf(api.CodeInvalidParams, "%q command takes at most %d arguments", c.Name, c.MaxArgs)
	}
	return nil
}

// describe returns the row as "help" answers it.
func (c *Command) describe() api.Command {
	d := api.Command{
		Name: c.Name, Usage: c.Usage, Doc: c.Doc, Access: c.Access.String(),
		MinArgs: c.MinArgs, MaxArgs: c.MaxArgs, Params: c.Do.params(c),
	}
	if c.deadline() > 0 {
		d.DeadlineMS = c.deadline().Milliseconds()
	}
	return d
}
