package ctl

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) helpCommand() *cobra.Command {
	var root *cobra.Command
	c := a.command(verb{
		use: "help [COMMAND...]", short: "show help for a command",
		args: []string{"COMMAND", "a command, such as: device wait"},
		do:   "help with %s", example: "lockstepctl help device wait", verbatim: true,
		run: func(_ context.Context, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return unknown(c, slices.Concat(rest, args)[0])
			}
			a.help(c)
			return nil
		},
	})
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		root = c.Root()
		return run(c, args)
	}
	return c
}

// help prints the help of a command: what it does, how it is called, what its
// arguments, flags and exit statuses are, and an example.
func (a *app) help(c *cobra.Command) {
	_, _ = io.WriteString(a.Out, HelpText(c)) // nobody is left to tell
}

// HelpText is the help of a command.
func HelpText(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\nUsage: %s\n", c.CommandPath(), c.Short, Usage(c))
	if c.Long != "" {
		b.WriteString("\n" + strings.Join(fold(c.Long, helpWidth), "\n") + "\n")
	}
	section(&b, "Commands", Commands(c))
	section(&b, "Arguments", Arguments(c))
	section(&b, "Flags", Flags(c.NonInheritedFlags(), c.HasParent()))
	if c.HasParent() {
		b.WriteString("\n" + strings.Join(fold(globalFlags(c.Root()), helpWidth), "\n") + "\n")
	}
	if !c.HasParent() {
		section(&b, "Environment", Environment())
	}
	if !c.HasSubCommands() || !c.HasParent() {
		section(&b, "Exit status", Exits(c))
	}
	if c.Example != "" {
		b.WriteString("\nExample:\n  " + strings.ReplaceAll(c.Example, "\n", "\n  ") + "\n")
	}
	if c.HasSubCommands() {
		fmt.Fprintf(&b, "\nMore about a command: %s COMMAND --help\n", c.CommandPath())
	}
	return b.String()
}

// Item is a name and what it is, in help and manual.
type Item struct{ Name, What string }

// Usage is how a command is called.
func Usage(c *cobra.Command) string {
	switch {
	case c.HasSubCommands():
		return c.CommandPath() + " [FLAGS] COMMAND"
	case c.NonInheritedFlags().HasAvailableFlags():
		_, args, _ := strings.Cut(c.Use, " ")
		return strings.TrimSpace(c.CommandPath() + " [FLAGS] " + args)
	}
	_, args, _ := strings.Cut(c.Use, " ")
	return strings.TrimSpace(c.CommandPath() + " " + args)
}

// Commands are the commands of a group, those of the root with their verbs.
func Commands(c *cobra.Command) []Item {
	var items []Item
	for _, sub := range Children(c) {
		name := sub.Name()
		if sub.HasSubCommands() {
			var verbs []string
			for _, v := range Children(sub) {
				verbs = append(verbs, v.Name())
			}
			items = append(items, Item{name, sub.Short + ": " + strings.Join(verbs, ", ")})
			continue
		}
		items = append(items, Item{name, sub.Short})
	}
	return items
}

// Children are the commands of a group that are to be seen, in their order.
func Children(c *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(c.Commands()), func(s *cobra.Command) bool { return s.Hidden })
}

// Arguments are the arguments of a command.
func Arguments(c *cobra.Command) []Item {
	notes := c.Annotations[noteArgs]
	if notes == "" {
		return nil
	}
	var items []Item
	for pair := range slices.Chunk(strings.Split(notes, "\x00"), 2) {
		items = append(items, Item{pair[0], pair[1]})
	}
	return items
}

// Flags are the flags in a set; inherited ones are left out of the set of a
// command that has a parent, which has none of its own but the local ones.
func Flags(set *pflag.FlagSet, local bool) []Item {
	var items []Item
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || local && f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if f.Value.Type() != "bool" {
			name += " " + value
		}
		items = append(items, Item{name, usage})
	})
	return items
}

// globalFlags names the flags that every command takes.
func globalFlags(root *cobra.Command) string {
	var names []string
	for _, it := range Flags(root.PersistentFlags(), false) {
		short, rest, _ := strings.Cut(it.Name, ", ")
		if _, value, ok := strings.Cut(rest, " "); ok {
			short += " " + value
		}
		names = append(names, short)
	}
	return fmt.Sprintf("Flags of every command: %s; see: %s --help", strings.Join(names, ", "), root.Name())
}

// Environment are the variables that the program reads.
func Environment() []Item {
	return []Item{
		{"LOCKSTEP_TARGET", "what to talk to, where -t does not say"},
		{"LOCKSTEP_RUNDIR", "where pidfiles and sockets are; /run/lockstep by default"},
		{"NO_COLOR", "no colour, if it is set to anything"},
	}
}

// Exits are the exit statuses of a command.
func Exits(c *cobra.Command) []Item {
	own := c.Annotations[noteExits]
	var items []Item
	for code, what := range exits {
		if code > exitTimeout && c.HasParent() && !strings.Contains(own, fmt.Sprint(code)) {
			continue
		}
		items = append(items, Item{fmt.Sprint(code), what})
	}
	return items
}

// helpWidth is how wide help is written.
const helpWidth = 80

// section writes a titled list, descriptions aligned and wrapped.
func section(b *strings.Builder, title string, items []Item) {
	if len(items) == 0 {
		return
	}
	widest := 0
	for _, it := range items {
		widest = max(widest, len(it.Name))
	}
	widest = min(widest, 24)
	b.WriteString("\n" + title + ":\n")
	for _, it := range items {
		fmt.Fprintf(b, "  %-*s", widest, it.Name)
		if len(it.Name) > widest {
			b.WriteString("\n" + strings.Repeat(" ", widest+2))
		}
		for i, line := range fold(it.What, helpWidth-widest-4) {
			if i > 0 {
				b.WriteString(strings.Repeat(" ", widest+2))
			}
			b.WriteString("  " + line + "\n")
		}
	}
}

// fold breaks a text into lines.
func fold(s string, width int) []string {
	var lines []string
	line := ""
	for w := range strings.FieldsSeq(s) {
		if line != "" && len(line)+1+len(w) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimPrefix(line+" "+w, " ")
	}
	return append(lines, line)
}
