package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
)

// verb is one command: what help says of it and what it does.
type verb struct {
	// use is the name and the arguments; those in brackets may be left out, and
	// one that ends in "..." may be repeated. The arity follows from it.
	use   string
	short string // one line, no full stop
	long  string
	args  []string // an argument and what it is, in turn
	// do completes "cannot …" in errors; %s stands for the first argument.
	do      string
	example string
	exits   []int // codes beside the common ones
	flags   func(*pflag.FlagSet)
	// verbatim leaves what follows the first argument alone, dashes and all.
	verbatim bool
	complete completer
	files    bool // the argument is a file's path, which the shell completes
	// flagWords complete the values of flags, by name.
	flagWords map[string]completer
	run       func(ctx context.Context, args []string) error
}

// Annotations of a cobra command, for help and manual.
const (
	noteArgs  = "arguments"
	noteExits = "exits"
)

// command makes a verb a command of cobra's.
func (a *app) command(v verb) *cobra.Command {
	least, most := arity(v.use)
	c := &cobra.Command{
		Use: v.use, Short: v.short, Long: v.long, Example: v.example,
		DisableFlagsInUseLine: true,
		Annotations: map[string]string{
			noteArgs: strings.Join(v.args, "\x00"), noteExits: fmt.Sprint(v.exits),
		},
		Args: func(c *cobra.Command, args []string) error { return checkArity(c, args, least, most) },
		RunE: func(c *cobra.Command, args []string) error {
			err := v.run(c.Context(), args)
			if bad, ok := errors.AsType[badArgument](err); ok {
				return usageError{string(bad), c.CommandPath()}
			}
			if err != nil {
				return attempt{doing(v.do, args), err}
			}
			return nil
		},
	}
	if v.flags != nil {
		v.flags(c.Flags())
	}
	c.Flags().SetInterspersed(!v.verbatim)
	c.ValidArgsFunction = a.completion(v.complete)
	if v.files {
		c.ValidArgsFunction = completeFiles
	}
	a.completeFlags(c, v.flagWords)
	return c
}

// doing fills the first argument, what it is about, into the phrase for errors.
func doing(phrase string, args []string) string {
	return strings.TrimSpace(strings.Replace(phrase, "%s", arg(args, 0), 1))
}

// arity reads the number of arguments out of a usage line; most is -1 for any.
func arity(use string) (least, most int) {
	for _, w := range strings.Fields(use)[1:] {
		if !strings.HasPrefix(w, "[") {
			least++
		}
		most++
		if strings.HasSuffix(strings.TrimSuffix(w, "]"), "...") {
			return least, -1
		}
	}
	return least, most
}

// checkArity refuses a wrong number of arguments, naming what is missing or too
// much.
func checkArity(c *cobra.Command, args []string, least, most int) error {
	switch words := strings.Fields(c.Use)[1:]; {
	case len(args) < least:
		return usageError{fmt.Sprintf("%q needs %s", c.CommandPath(), strings.Join(words[len(args):least], " ")), c.CommandPath()}
	case most >= 0 && len(args) > most:
		return usageError{fmt.Sprintf("%q takes %s, and %q is too much", c.CommandPath(), atMost(words), args[most]), c.CommandPath()}
	}
	return nil
}

func atMost(words []string) string {
	if len(words) == 0 {
		return "no arguments"
	}
	return strings.Join(words, " ")
}

// group is a noun: a command that only holds verbs.
func (a *app) group(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: name, Short: short, DisableFlagsInUseLine: true,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Sprintf("%q needs a command", c.CommandPath()), c.CommandPath()}
			}
			return unknown(c, args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	c.AddCommand(verbs...)
	return c
}

// unknown refuses a command that there is not, with what may have been meant.
func unknown(c *cobra.Command, name string) error {
	msg := fmt.Sprintf("%q is not a command of %q", name, c.CommandPath())
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(name); len(near) > 0 {
		msg += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}
	return usageError{msg, c.CommandPath()}
}

// shower turns a result into text.
type shower func(o render.Options, raw json.RawMessage) (string, error)

// as shows results of type T. A plain text in its place is shown as it is.
func as[T any](show func(render.Options, T) string) shower {
	return func(o render.Options, raw json.RawMessage) (string, error) {
		if len(raw) > 0 && raw[0] == '"' {
			return render.Answer(o, raw), nil
		}
		var v T
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber() // a u64 in a value of any type keeps its digits
		if err := dec.Decode(&v); err != nil {
			return "", err
		}
		return show(o, v), nil
	}
}

// ask is a verb that sends one request and shows its result.
func (a *app) ask(method string, params func(args []string) (any, error), show shower) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		var p any
		if params != nil {
			var err error
			if p, err = params(args); err != nil {
				return err
			}
		}
		raw, err := a.call(ctx, method, p)
		if err != nil {
			return err
		}
		return a.show(method, raw, show)
	}
}

// show prints a result in the format asked for.
func (a *app) show(method string, raw json.RawMessage, show shower) error {
	if a.json() {
		return a.printJSON(raw)
	}
	s, err := show(a.look(), raw)
	if err != nil {
		return a.notUnderstood(method, err)
	}
	return a.print(s)
}

// act is a verb that changes something: its result is a confirmation, of which
// -q wants nothing.
func (a *app) act(method string, params func(args []string) (any, error)) func(context.Context, []string) error {
	return a.ask(method, params, a.confirmation)
}

// confirmation shows what was done.
func (a *app) confirmation(o render.Options, raw json.RawMessage) (string, error) {
	if a.opts.quiet {
		return "", nil
	}
	return render.Answer(o, raw), nil
}

// askText is a verb whose text is the daemon's own.
func (a *app) askText(method string) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		args = append([]string{}, args...) // without any, an empty list and not null
		if a.json() {
			raw, err := a.call(ctx, method, args)
			if err != nil {
				return err
			}
			return a.printJSON(raw)
		}
		s, err := a.callText(ctx, method, args...)
		if err != nil {
			return err
		}
		return a.printText(s)
	}
}

// printText prints the daemon's own text; a terminal gets no controls from it.
func (a *app) printText(s string) error {
	if a.OutTerm != nil {
		s = render.CleanLines(s)
	}
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return a.print(s)
}

// printJSON prints a result exactly as it came, on one line, or indented.
func (a *app) printJSON(raw json.RawMessage) error {
	if len(raw) == 0 {
		raw = json.RawMessage("null")
	}
	if !a.opts.pretty {
		return a.print(string(raw) + "\n")
	}
	s, err := indent(raw)
	if err != nil {
		return err
	}
	return a.print(s)
}
