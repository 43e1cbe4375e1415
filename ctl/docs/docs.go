// Package docs makes the manual page and the command reference out of what the
// programs know of themselves, so that they cannot say anything else: the
// commands of lockstepctl out of its tree, those of the socket out of the
// registry's description, which a daemon gives.
//
//	make docs
//
// writes them anew; tests fail while they are not up to date.
package docs

//go:generate go run ./gen .

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/ctl"
	"github.com/lockstepd/lockstep/rpc/api"
)

// Files are the generated files by name.
func Files() map[string]string {
	root := ctl.Tree()
	return map[string]string{
		"lockstepctl.1":  Man(root),
		"lockstepctl.md": Markdown(root),
	}
}

// leaves are all commands that can be run, depth first.
func leaves(c *cobra.Command) []*cobra.Command {
	var list []*cobra.Command
	for _, sub := range ctl.Children(c) {
		if sub.HasSubCommands() {
			list = append(list, leaves(sub)...)
			continue
		}
		list = append(list, sub)
	}
	return list
}

// Man is the program as a manual page.
func Man(root *cobra.Command) string {
	var b strings.Builder
	name := root.Name()
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"lockstep\" \"lockstep manual\"\n", strings.ToUpper(name))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", name, roff(root.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n[\\fIFLAGS\\fR] \\fICOMMAND\\fR\n", name)
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s\n", roff(root.Long))
	manItems(&b, "OPTIONS", ctl.Flags(root.PersistentFlags(), false))
	b.WriteString(".SH COMMANDS\n")
	for _, c := range leaves(root) {
		manCommand(&b, c)
	}
	manItems(&b, "EXIT STATUS", ctl.Exits(root))
	manItems(&b, "ENVIRONMENT", ctl.Environment())
	fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(root.Example))
	b.WriteString(".SH SEE ALSO\n.BR lockstepd (8),\n.BR ovs\\-appctl (8),\nwhich works on the same socket\n")
	return b.String()
}

// manCommand is a command in the manual page.
func manCommand(b *strings.Builder, c *cobra.Command) {
	_, usage, _ := strings.Cut(ctl.Usage(c), " ")
	fmt.Fprintf(b, ".SS \"%s\"\n%s\n", roff(usage), roff(about(c)))
	for _, it := range append(ctl.Arguments(c), ctl.Flags(c.NonInheritedFlags(), true)...) {
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(it.Name), roff(it.What))
	}
	fmt.Fprintf(b, ".PP\n.nf\n\\fB%s\\fR\n.fi\n", strings.ReplaceAll(roff(c.Example), "\n", "\\fR\n\\fB"))
}

func manItems(b *strings.Builder, title string, items []ctl.Item) {
	fmt.Fprintf(b, ".SH %s\n", title)
	for _, it := range items {
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(it.Name), roff(it.What))
	}
}

// roff escapes text for the manual: backslashes, hyphens, and lines that would
// begin with a control character.
func roff(s string) string {
	s = strings.ReplaceAll(s, `\`, `\e`)
	s = strings.ReplaceAll(s, "-", `\-`)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// about is what a command does, in sentences.
func about(c *cobra.Command) string {
	if c.Long != "" {
		return c.Long
	}
	return strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
}

// Markdown is the program as a command reference.
func Markdown(root *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s\n\n`%s`\n", root.Name(), unwrap(root.Long), ctl.Usage(root))
	mdItems(&b, "## Flags of every command", "flag", ctl.Flags(root.PersistentFlags(), false))
	mdItems(&b, "## Exit status", "status", ctl.Exits(root))
	mdItems(&b, "## Environment", "variable", ctl.Environment())
	b.WriteString("\n## Commands\n")
	for _, c := range leaves(root) {
		path := strings.TrimPrefix(c.CommandPath(), root.Name()+" ")
		fmt.Fprintf(&b, "\n### %s\n\n`%s`\n\n%s\n", path, ctl.Usage(c), unwrap(about(c)))
		mdItems(&b, "", "argument", ctl.Arguments(c))
		mdItems(&b, "", "flag", ctl.Flags(c.NonInheritedFlags(), true))
		fmt.Fprintf(&b, "\n```sh\n%s\n```\n", c.Example)
	}
	return b.String()
}

func mdItems(b *strings.Builder, title, kind string, items []ctl.Item) {
	if len(items) == 0 {
		return
	}
	if title != "" {
		b.WriteString("\n" + title + "\n")
	}
	fmt.Fprintf(b, "\n| %s | |\n|---|---|\n", kind)
	for _, it := range items {
		fmt.Fprintf(b, "| `%s` | %s |\n", it.Name, mdCell(it.What))
	}
}

// mdCell escapes text for a table.
func mdCell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "$", `\$`).Replace(s)
}

// unwrap joins the lines of a paragraph.
func unwrap(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// Reference is what the control socket offers, as a command reference: the
// description of a registry, which "help" answers.
func Reference(commands []api.Command) string {
	var b strings.Builder
	b.WriteString("# Commands of the control socket\n\n" +
		"For `ovs-appctl`, `lockstepctl call`, and JSON-RPC. Params by name are given in brackets where they can't be given by position.\n\n" +
		"| command | params | who | time limit | |\n|---|---|---|---|---|\n")
	for _, c := range commands {
		limit := "-"
		if c.DeadlineMS > 0 {
			limit = fmt.Sprintf("%g s", float64(c.DeadlineMS)/1000)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", mdCell(strings.TrimSpace(c.Name+" "+c.Usage)), params(c.Params), c.Access, limit, mdCell(c.Doc))
	}
	return b.String()
}

// ReferenceMan is the same as a manual page.
func ReferenceMan(commands []api.Command) string {
	var b strings.Builder
	b.WriteString(".TH LOCKSTEPD\\-COMMANDS 7 \"\" \"lockstep\" \"lockstep manual\"\n" +
		".SH NAME\nlockstepd\\-commands \\- commands of lockstepd's control socket\n" +
		".SH DESCRIPTION\nFor ovs\\-appctl, \"lockstepctl call\", and JSON\\-RPC.\n.SH COMMANDS\n")
	for _, c := range commands {
		fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(strings.TrimSpace(c.Name+" "+c.Usage)), roff(strings.ToUpper(c.Doc[:1])+strings.TrimSuffix(c.Doc[1:], ".")+"."))
		if c.Access != "read" {
			fmt.Fprintf(&b, "For administrators.\n")
		}
		if c.DeadlineMS > 0 {
			fmt.Fprintf(&b, "Answers within %g s.\n", float64(c.DeadlineMS)/1000)
		}
	}
	b.WriteString(".SH SEE ALSO\n.BR lockstepctl (1),\n.BR ovs\\-appctl (8)\n")
	return b.String()
}

// params are a command's parameters with their types.
func params(list []api.Param) string {
	var words []string
	for _, p := range list {
		w := p.Name + " " + p.Type
		if !p.Required {
			w += "?"
		}
		if !p.Positional {
			w = "[" + w + "]"
		}
		words = append(words, w)
	}
	return mdCell(strings.Join(words, ", "))
}
